"""`mmjax report RUN`: one self-contained HTML page about a run."""

from mmjax.report.page import write_report

__all__ = ["write_report"]
