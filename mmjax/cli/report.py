"""`mmjax report RUN`: one self-contained HTML page about a run."""

from __future__ import annotations

import argparse

from mmjax.cli.loading import from_run
from mmjax.cli.output import print_json
from mmjax.report import write_report


def run(arguments: argparse.Namespace) -> None:
    """Writes the page and says where it lies."""
    experiment = from_run(arguments.run, arguments.experiment).experiment if arguments.experiment else None
    path = write_report(arguments.run, arguments.out, experiment)
    if arguments.json:
        print_json({"report": str(path)})
    else:
        print(f"report: {path.resolve().as_uri()}")
