"""Questions with short answers: visual, over documents, or in the context of worked examples."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence

from mmjax.core.protocols import Data, EvalContext
from mmjax.evals.answers import ExactMatch, VqaAccuracy, normalised_answer
from mmjax.evals.generation import Field, Generator, Label
from mmjax.evals.judging import Grouping, judge, written
from mmjax.evals.results import Record
from mmjax.evals.tallies import Metric


@dataclasses.dataclass(frozen=True)
class Answering:
    """Accuracy of answers (`metrics`: `VqaAccuracy`, `ExactMatch`, `Anls`; the first one picks the examples).

    Results are those of `Grouping.results`. Chance is the score of always giving the most frequent answer of the data;
    `image_absent`, inside of each number, is that of the same model without the picture.

    Few-shot accuracy is this evaluator over data with more turns: a template that puts k solved questions, each with
    its picture, before the one that is asked. Give one evaluator per k and compare them; with `absent="image"` the
    baseline loses the pictures of the solved ones too.
    """

    data: Data
    generator: Generator
    truth: Field | Label = Field("answers")
    metrics: tuple[Metric, ...] = (VqaAccuracy(), ExactMatch())
    grouping: Grouping = Grouping()
    absent: str | None = "image"

    def evaluate(self, context: EvalContext) -> Record:
        """See the class."""
        said = written(context, self)
        truths = self.truth.of(self.data, said.about)
        return {"kind": "answering", **judge(context, self, said, truths, usual(truths))}


def usual(truths: Sequence[Sequence[str]]) -> str:
    """The most frequent answer: each question has one vote, shared among what its people said."""
    votes: Counter[str] = Counter()
    for given in truths:
        for answer in given:
            votes[normalised_answer(answer)] += 1 / len(given)
    return max(votes, key=lambda answer: (votes[answer], answer), default="")
