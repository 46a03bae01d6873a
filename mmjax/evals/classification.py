"""Scores of classes against the truth: what zero-shot, neighbours and probes have in common.

N examples   C classes
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from mmjax.core.errors import DataError
from mmjax.core.protocols import Data, EvalContext
from mmjax.evals.embeddings import Embedded, embed
from mmjax.evals.results import Bootstrap, Cases, Record

Array = np.ndarray


@dataclasses.dataclass(frozen=True)
class Judge:
    """Turns class scores into results; every field is a label of the data."""

    label: str  # the class to predict
    cluster: str | None = None  # drawn as one in the bootstrap; None = every picture by itself
    slices: tuple[str, ...] = ()
    bootstrap: Bootstrap = Bootstrap()

    def labels(self) -> tuple[str | None, ...]:
        """What must be known of each example."""
        return (self.label, self.cluster, *self.slices)

    def embedded(
        self, context: EvalContext, data: Data, modality: str, same: str | None, output: str = "embeddings"
    ) -> Embedded:
        """What is judged: one row per picture (`same`), those without a class (-1) left out. Raises DataError when none
        has one."""
        found = embed(context, data, (modality,), self.labels(), output, once=(modality, same))
        found = found.select(found.labels[self.label] >= 0)
        if len(found.id) == 0:
            raise DataError(f"no example has a class in label {self.label!r} (all are -1)")
        return found

    def results(self, kind: str, found: Embedded, scores: Float[Array, "N C"]) -> Record:
        """`all`: accuracy, top5, and balanced accuracy (the mean over classes of each one's recall); then accuracy by
        slice, recall by class and the most frequent confusions.

        A class that ties with the true one counts as better, so equal scores earn nothing. Chance is what the best
        answer that ignores the picture gets: the most frequent class (balanced: 1 / number of classes that occur)."""
        truth = found.labels[self.label]
        rank = (scores >= np.take_along_axis(scores, truth[:, None], 1)).sum(1)
        cluster = found.identity(self.cluster)
        plain = Cases.of(cluster, bootstrap=self.bootstrap)
        by_class = Cases.of(cluster, truth, self.bootstrap)
        right, shares = (rank == 1).astype(float), np.sort(np.bincount(truth) / len(truth))[::-1]
        present = np.unique(truth)
        five = min(5, scores.shape[1] - 1)
        return {
            "kind": kind,
            "label": self.label,
            "classes": len(present),
            "all": {
                "accuracy": plain.mean(right, chance=shares[0]).record(),
                f"top{five}": plain.mean((rank <= five).astype(float), chance=shares[:five].sum()).record(),
                "balanced": by_class.mean(right, chance=1 / len(present)).record(),
            },
            "slices": {label: self._slice(plain, found, label, right, truth) for label in self.slices},
            "recall": {
                found.name_of(self.label, c): plain.mean(right, truth == c, 1 / len(present)).record() for c in present
            },
            "confusions": _confusions(found, self.label, truth, scores.argmax(1)),
        }

    @staticmethod
    def _slice(cases: Cases, found: Embedded, label: str, right: Array, truth: Array) -> Record:
        values = found.labels[label]
        rows = {}
        for value in np.unique(values[values >= 0]):
            where = values == value
            most = np.bincount(truth[where]).max() / where.sum()
            rows[found.name_of(label, value)] = {"accuracy": cases.mean(right, where, most).record()}
        return rows


def class_names(found: Embedded, label: str) -> Sequence[str]:
    """Names of the classes, by their integer. Raises DataError when the data does not name them."""
    if label not in found.names:
        raise DataError(f"the classes of {label!r} have no names: the data's names() must list them")
    return found.names[label]


def _confusions(found: Embedded, label: str, truth: Int[Array, " N"], guess: Int[Array, " N"]) -> list[Record]:
    wrong = truth != guess
    pairs, counts = np.unique(np.stack([truth[wrong], guess[wrong]], 1), axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:10]
    return [
        {"true": found.name_of(label, pairs[i, 0]), "said": found.name_of(label, pairs[i, 1]), "n": int(counts[i])}
        for i in order
    ]
