"""Questions whether something is in the picture: what a model sees that is not there."""

from __future__ import annotations

import dataclasses

from mmjax.core.protocols import Data, EvalContext
from mmjax.evals.generation import Field, Generator, Label
from mmjax.evals.judging import Grouping, judge, written
from mmjax.evals.pope import Pope
from mmjax.evals.results import Record
from mmjax.evals.tallies import Metric


@dataclasses.dataclass(frozen=True)
class Hallucination:
    """POPE (arXiv 2305.10355): accuracy, precision, recall, F1 and the share of yes.

    `truth` is "yes" or "no". Put how the absent things were chosen (random, popular, adversarial) into a label and
    slice by it. Chance is the score of always saying yes. Results are those of `Grouping.results`.
    """

    data: Data
    generator: Generator
    truth: Field | Label = Field("answer")
    metrics: tuple[Metric, ...] = (Pope(),)
    grouping: Grouping = Grouping()
    absent: str | None = "image"

    def evaluate(self, context: EvalContext) -> Record:
        """See the class."""
        said = written(context, self)
        return {"kind": "hallucination", **judge(context, self, said, self.truth.of(self.data, said.about), "yes")}
