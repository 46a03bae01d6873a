"""Phrases to be found in a picture: does the box that a model writes hold the thing?"""

from __future__ import annotations

import dataclasses

from mmjax.core.protocols import Data, EvalContext
from mmjax.evals.boxes import BoxFit
from mmjax.evals.generation import Field, Generator, Label
from mmjax.evals.judging import Grouping, judge, written
from mmjax.evals.results import Record
from mmjax.evals.tallies import Metric


@dataclasses.dataclass(frozen=True)
class Grounding:
    """Accuracy at an intersection over union of 0.5, and the mean of it (RefCOCO, arXiv 1608.00272).

    `truth` is a label of one box [4] or several [K 4] as fractions of the picture; `BoxFit.read` says how the model
    writes one. A model that cannot see still knows where things tend to be: that is `image_absent`. Results are those
    of `Grouping.results`.
    """

    data: Data
    generator: Generator
    truth: Field | Label = Label("box")
    metrics: tuple[Metric, ...] = (BoxFit(),)
    grouping: Grouping = Grouping()
    absent: str | None = "image"

    def evaluate(self, context: EvalContext) -> Record:
        """See the class."""
        said = written(context, self)
        return {"kind": "grounding", **judge(context, self, said, self.truth.of(self.data, said.about))}
