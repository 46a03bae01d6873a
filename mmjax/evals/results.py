"""What a result looks like: a number with its interval, the chance level beside it, and how many cases it rests on.

Q cases (queries)   C clusters   R bootstrap draws   L groups

Cases that share a picture are not independent: 14 captions of one drawing succeed or fail together. The bootstrap
therefore draws *clusters* with replacement (Davison and Hinkley 1997, section 3.8), and averages groups (languages)
apart before it averages over them, so that a frequent group does not speak for the others.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

Array = np.ndarray
Record = dict[str, Any]


def number(value: float, low: float | None, high: float | None, chance: float | None, n: int) -> Record:
    """One result as JSON: five significant digits, `None` for what is not known."""
    short = {"value": value, "low": low, "high": high, "chance": chance}
    return {name: rounded(x) for name, x in short.items()} | {"n": int(n)}


def rounded(x: float | None) -> float | None:
    """Five significant digits; `None` for what is not known."""
    return None if x is None or not math.isfinite(x) else float(f"{x:.5g}")


@dataclasses.dataclass(frozen=True)
class Bootstrap:
    """Percentile intervals: `draws` resamples, covering `level` of them."""

    draws: int = 1000
    level: float = 0.95
    seed: int = 0

    def weights(self, clusters: int) -> Float[Array, "R C"]:
        """How often each cluster is drawn in each resample. 4 bytes times draws times clusters."""
        rng = np.random.default_rng(self.seed)
        return rng.multinomial(clusters, np.full(clusters, 1 / clusters), size=self.draws).astype(np.float32)

    def interval(self, draws: Float[Array, " R"]) -> tuple[float, float]:
        """The middle `level` of the draws that are finite."""
        draws = draws[np.isfinite(draws)]
        if draws.size == 0:
            return math.nan, math.nan
        tail = (1 - self.level) / 2
        low, high = np.quantile(draws, [tail, 1 - tail])
        return float(low), float(high)


@dataclasses.dataclass(frozen=True, eq=False)
class Estimate:
    """A value with its resampled twins; two estimates over the same `Cases` were resampled together."""

    value: float
    draws: Float[Array, " R"]
    n: int
    bootstrap: Bootstrap
    chance: float | None = None

    def record(self) -> Record:
        """As JSON."""
        return number(self.value, *self.bootstrap.interval(self.draws), self.chance, self.n)


@dataclasses.dataclass(frozen=True, eq=False)
class Cases:
    """What is being averaged over: Q cases, which cluster each is drawn with, which group each is averaged in."""

    cluster: Int[Array, " Q"]
    group: Int[Array, " Q"]
    bootstrap: Bootstrap

    @classmethod
    def of(cls, cluster: Array, group: Array | None = None, bootstrap: Bootstrap = Bootstrap()) -> Cases:
        """Cases from any labels; without `group` all are one group."""
        group = np.zeros(len(cluster)) if group is None else group
        return cls(codes(cluster), codes(group), bootstrap)

    @functools.cached_property
    def weights(self) -> Float[Array, "R C"]:
        """How often each cluster is drawn in each resample."""
        return self.bootstrap.weights(int(self.cluster.max(initial=0)) + 1)

    def mean(self, values: Float[Array, " Q"], where: Bool[Array, " Q"] | None = None, chance: Any = None) -> Estimate:
        """The mean over groups of the mean over the cases of each; `chance` [Q] is averaged the same way."""
        return self.means({"": (values, chance)}, where)[""]

    def means(
        self, table: Mapping[str, tuple[Array, Any]], where: Bool[Array, " Q"] | None = None
    ) -> dict[str, Estimate]:
        """`mean` of several (values, chance) at once, for one price."""
        where = np.ones(len(self.cluster), bool) if where is None else where
        group, values = codes(self.group[where]), [np.asarray(v, np.float64)[where] for v, _ in table.values()]
        present, cluster = np.unique(self.cluster[where], return_inverse=True)
        groups = int(group.max(initial=0)) + 1
        cell, cells = cluster * groups + group, max(len(present), 1) * groups
        sums = [np.bincount(cell, column, minlength=cells) for column in (np.ones(len(cell)), *values)]
        stacked = np.stack(sums).reshape(len(sums), -1, groups).transpose(1, 0, 2).reshape(-1, len(sums) * groups)
        drawn = self.weights[:, present] @ stacked[: len(present)].astype(np.float32)
        counts, *totals = np.split(drawn, len(sums), axis=1)
        found = {}
        for (name, (_, chance)), column, total in zip(table.items(), values, totals, strict=True):
            level = None if chance is None else np.broadcast_to(chance, where.shape)[where]
            found[name] = Estimate(
                self._mean_of_groups(column, group),
                _mean_of_rows(_divide(total, counts)),
                len(cell),
                self.bootstrap,
                None if level is None else self._mean_of_groups(level, group),
            )
        return found

    def median(
        self, values: Float[Array, " Q"], where: Bool[Array, " Q"] | None = None, chance: float | None = None
    ) -> Estimate:
        """The mean over groups of the (lower) median over the cases of each."""
        where = np.ones(len(self.cluster), bool) if where is None else where
        parts, drawn = [], []
        for one in np.unique(self.group[where]):
            rows = np.flatnonzero(where & (self.group == one))
            rows = rows[np.argsort(values[rows], kind="stable")]
            parts.append(values[rows[(len(rows) - 1) // 2]])
            drawn.append(self._drawn_medians(values[rows], self.cluster[rows]))
        value = float(np.mean(parts)) if parts else math.nan
        draws = _mean_of_rows(np.stack(drawn, axis=1)) if drawn else np.full(self.bootstrap.draws, np.nan)
        return Estimate(value, draws, int(where.sum()), self.bootstrap, chance)

    def _drawn_medians(self, values: Float[Array, " n"], cluster: Int[Array, " n"]) -> Float[Array, " R"]:
        """Weighted medians of sorted `values`, one per draw. Draws are looked for in a window around the middle, which
        is widened until it holds them all: most of 10,000 values are never anybody's median."""
        clusters, count = self.weights.shape[1], len(values)
        total = self.weights @ np.bincount(cluster, minlength=clusters).astype(np.float32)
        reach = 50 + count // 8
        while True:
            low, high = max(count // 2 - reach, 0), min(count // 2 + reach, count)
            before = self.weights @ np.bincount(cluster[:low], minlength=clusters).astype(np.float32)
            upto = before[:, None] + np.cumsum(self.weights[:, cluster[low:high]], axis=1)
            held = ((before < total / 2) | (low == 0)) & (upto[:, -1] >= total / 2)
            if held.all() or (low == 0 and high == count):
                break
            reach *= 2
        middle = (upto >= total[:, None] / 2).argmax(axis=1)
        return np.where(total > 0, values[low + middle], np.nan)

    @staticmethod
    def _mean_of_groups(values: Array, group: Array) -> float:
        if len(values) == 0:
            return math.nan
        return float(np.mean(np.bincount(group, values) / np.bincount(group)))


def codes(*columns: Array) -> Int[Array, " Q"]:
    """One integer 0.. per row: equal where all columns are equal, in sorted order of the columns."""
    if len(columns[0]) == 0:
        return np.zeros(0, np.int64)
    if len(columns) == 1:
        return np.unique(columns[0], return_inverse=True)[1].reshape(-1)
    return np.unique(np.stack(columns, axis=1), axis=0, return_inverse=True)[1].reshape(-1)


def is_number(tree: Any) -> bool:
    """Whether a node of a result tree is one number record."""
    return isinstance(tree, Mapping) and {"value", "low", "high", "n"} <= tree.keys()


def _divide(total: Array, count: Array) -> Array:
    return np.where(count > 0, total / np.where(count > 0, count, 1), np.nan)


def _mean_of_rows(drawn: Array) -> Array:
    """Over the groups that were drawn at all; NaN where none was."""
    seen = np.isfinite(drawn)
    return _divide(np.where(seen, drawn, 0).sum(1), seen.sum(1))
