"""Metrics as sums: counts of each case that add up, and the score of any sum of them.

Q cases   K counts   R bootstrap draws   C clusters   G groups

Accuracy, BLEU, METEOR, F1 and perplexity all have this form. The score of a corpus is the score of the sum, which is
not the mean of the scores of its examples; resampling the sums gives each an interval of the same kind.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from jaxtyping import Bool, Float, Int

from mmjax.core.errors import DataError
from mmjax.evals.results import Cases, Estimate, codes

Array = np.ndarray
Score = Callable[[Float[Array, "... K"]], Float[Array, "..."]]


@dataclasses.dataclass(frozen=True, eq=False)
class Tally:
    """Counts of each case, and what a sum of them is worth. `score` works on the last dimension; where nothing was
    counted it says NaN."""

    counts: Float[Array, "Q K"]
    score: Score

    @property
    def each(self) -> Float[Array, " Q"]:
        """The score of every case by itself."""
        return self.score(self.counts)

    @property
    def value(self) -> float:
        """The score of the corpus."""
        return float(self.score(self.counts.sum(0)))

    def at(self, cases: Cases, where: Bool[Array, " Q"] | None = None) -> float:
        """The mean over groups of the score of the sum over each group's cases."""
        where = np.ones(len(cases.cluster), bool) if where is None else where
        group = codes(cases.group[where])
        scores = self.score(_sums(group, self.counts[where], int(group.max(initial=-1)) + 1))
        return float(np.mean(scores)) if len(scores) else math.nan

    def estimate(self, cases: Cases, where: Bool[Array, " Q"] | None = None, chance: float | None = None) -> Estimate:
        """`at`, with its resampled twins: clusters are drawn, counts summed, sums scored."""
        where = np.ones(len(cases.cluster), bool) if where is None else where
        return Estimate(self.at(cases, where), self._draws(cases, where), int(where.sum()), cases.bootstrap, chance)

    def _draws(self, cases: Cases, where: Array) -> Float[Array, " R"]:
        group = codes(cases.group[where])
        present, cluster = np.unique(cases.cluster[where], return_inverse=True)
        groups, width = int(group.max(initial=-1)) + 1, self.counts.shape[1]
        cells = _sums(cluster * groups + group, self.counts[where], len(present) * groups)
        drawn = cases.weights[:, present].astype(np.float64) @ cells.reshape(len(present), groups * width)
        scores = self.score(drawn.reshape(-1, groups, width))
        seen = np.isfinite(scores)
        return ratio(np.where(seen, scores, 0).sum(1), seen.sum(1))


class Metric(Protocol):
    """Judges texts: `truths[i]` holds everything that is right for `said[i]`. May give several scores."""

    def __call__(self, said: Sequence[str], truths: Sequence[Sequence[Any]]) -> Mapping[str, Tally]: ...


def mean_of(values: Float[Array, " Q"]) -> Tally:
    """A metric that is a plain mean over cases."""
    values = np.asarray(values, np.float64)
    return Tally(np.stack([values, np.ones(len(values))], axis=-1), mean_score)


def mean_score(counts: Float[Array, "... 2"]) -> Float[Array, "..."]:
    """Sum divided by count."""
    return ratio(counts[..., 0], counts[..., 1])


def ratio(top: Array, bottom: Array) -> Array:
    """`top / bottom`, NaN where there is nothing to divide by."""
    return np.divide(top, bottom, out=np.full(np.shape(bottom), math.nan), where=np.asarray(bottom) != 0)


def measure(
    metrics: Sequence[Metric], said: Sequence[str], truths: Sequence[Sequence[Any]], group: Int[Array, " Q"]
) -> dict[str, Tally]:
    """All scores of `metrics`, each group (language) measured as a corpus of its own: how rare a word is, is a matter
    of its language. Raises DataError where an example has nothing to compare with."""
    check_pairs(said, truths)
    found: dict[str, Tally] = {}
    for value in np.unique(group):
        rows = np.flatnonzero(group == value)
        for metric in metrics:
            for name, tally in metric([said[i] for i in rows], [truths[i] for i in rows]).items():
                if name not in found:
                    found[name] = Tally(np.zeros((len(said), tally.counts.shape[1])), tally.score)
                found[name].counts[rows] = tally.counts
    return found


def check_pairs(said: Sequence[Any], truths: Sequence[Sequence[Any]]) -> None:
    """Raises DataError unless there is one text, and at least one truth, per example."""
    if len(said) != len(truths):
        raise DataError(f"{len(said)} texts cannot be compared with the references of {len(truths)} examples")
    if not len(said):
        raise DataError("there is nothing to compare: no text was given")
    bare = [i for i, given in enumerate(truths) if isinstance(given, str) or len(given) == 0]
    if bare:
        raise DataError(
            f"example {bare[0]} has {truths[bare[0]]!r} to compare with; expected a sequence of one or more references"
        )


def _sums(cell: Int[Array, " Q"], counts: Float[Array, "Q K"], cells: int) -> Float[Array, "cells K"]:
    out = np.zeros((cells, counts.shape[1]))
    np.add.at(out, cell, counts)
    return out
