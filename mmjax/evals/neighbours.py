"""Nearest-neighbour classification on frozen features.

N test examples   M training examples   C classes   D feature width
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float, Int

from mmjax.core.protocols import Data, EvalContext
from mmjax.evals.classification import Judge
from mmjax.evals.embeddings import normalised
from mmjax.evals.results import Record

Array = np.ndarray


@dataclasses.dataclass(frozen=True)
class Neighbours:
    """k nearest training pictures vote, each with exp(cosine / temperature) (Wu et al. 2018, section 3.4)."""

    train: Data
    test: Data
    judge: Judge
    k: int = 20
    temperature: float = 0.07
    same: str | None = None  # label: examples of one picture; each votes and is judged once
    modality: str = "image"
    output: str = "pooled"

    def evaluate(self, context: EvalContext) -> Record:
        """`Judge.results`."""
        train, test = (
            self.judge.embedded(context, data, self.modality, self.same, self.output)
            for data in (self.train, self.test)
        )
        truth = train.labels[self.judge.label]
        classes = int(max(truth.max(), test.labels[self.judge.label].max())) + 1
        known, asked = (normalised(part.vectors[self.modality]) for part in (train, test))
        scores = vote(known, truth, asked, classes, self.k, self.temperature)
        return self.judge.results("neighbours", test, scores) | {"k": self.k, "trained_on": len(truth)}


def vote(
    known: Float[Array, "M D"],
    truth: Int[Array, " M"],
    asked: Float[Array, "N D"],
    classes: int,
    k: int,
    temperature: float,
) -> Float[Array, "N C"]:
    """Votes per class of the k nearest of `known` (rows normalised)."""
    k, scores = min(k, len(known)), np.zeros((len(asked), classes))
    for start in range(0, len(asked), 1024):
        cosine = asked[start : start + 1024] @ known.T
        near = np.argpartition(-cosine, k - 1, axis=1)[:, :k]
        weight = np.exp((np.take_along_axis(cosine, near, 1) - 1) / temperature)
        rows = np.repeat(np.arange(len(cosine)), k) + start
        np.add.at(scores, (rows, truth[near].ravel()), weight.ravel())
    return scores
