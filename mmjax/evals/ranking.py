"""Ranks of the right answers in a gallery, and what ranks would be if the order were random.

Q queries   G gallery items   P positives of a query   E embedding width
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike

Array = np.ndarray
_CHUNK = 4_000_000  # similarities held at a time: 16 MB


@dataclasses.dataclass(frozen=True, eq=False)
class Ranked:
    """How each query did."""

    rank: Int[Array, " Q"]  # of the best positive, 1 = first
    precision: Float[Array, " Q"]  # average precision over all positives
    positives: Int[Array, " Q"]  # P
    pool: Int[Array, " Q"]  # G

    def recall(self, k: int) -> Float[Array, " Q"]:
        """1 where a positive is among the first k."""
        return (self.rank <= k).astype(np.float64)


@dataclasses.dataclass(frozen=True, eq=False)
class Relation:
    """Which gallery items are right for which query: pairs sorted by query, and where each query's begin."""

    item: Int[Array, " pairs"]
    start: Int[Array, " Q+1"]

    @classmethod
    def between(cls, key_of_query: Array, key_of_pair: Array, item_of_pair: Array, keys: int) -> Relation:
        """A query with key `a` has as positives all items paired with key `a` (each counted once)."""
        items = int(item_of_pair.max(initial=-1)) + 1
        flat = np.unique(key_of_pair.astype(np.int64) * items + item_of_pair)
        key, item = flat // items, flat % items
        first = np.searchsorted(key, np.arange(keys + 1))
        counts = np.diff(first)[key_of_query]
        start = np.concatenate([[0], np.cumsum(counts)])
        index = np.arange(start[-1]) - np.repeat(start[:-1] - first[key_of_query], counts)
        return cls(item[index], start)

    def of(self, query: int) -> Int[Array, " P"]:
        """The positives of one query."""
        return self.item[self.start[query] : self.start[query + 1]]


def rank(queries: Float[Array, "Q E"], gallery: Float[Array, "G E"], right: Relation) -> Ranked:
    """Ranks by cosine (rows are normalised already). Every query needs a positive.

    Ties count against the model: a positive stands behind all wrong items of equal similarity, so that a collapsed
    model gains nothing. Average precision: mean over positives of (positives at or above) / (items at or above)."""
    counts = np.diff(right.start)
    best, precision = np.zeros(len(queries), np.int64), np.zeros(len(queries))
    for rows, pairs in _chunks(right.start, len(gallery)):
        similar = queries[rows] @ gallery.T
        owner = np.repeat(np.arange(rows.stop - rows.start), counts[rows])
        score = similar[owner, right.item[pairs]]
        above = (similar[owner] >= score[:, None]).sum(1)  # items at or above each positive
        order = np.lexsort((-score, owner))
        place = np.arange(len(order)) - (right.start[rows] - right.start[rows.start])[owner]
        place = _last_of_ties(owner, score[order], place) + 1  # positives at or above, in sorted order
        above = above[order]
        total = np.bincount(owner, place / above, minlength=rows.stop - rows.start)
        precision[rows] = total / counts[rows]
        first = right.start[rows] - right.start[rows.start]
        best[rows] = above[first] - place[first] + 1
    return Ranked(best, precision, counts, np.full(len(queries), len(gallery)))


def _last_of_ties(owner: Array, score: Array, place: Array) -> Array:
    """For pairs sorted by (owner, falling score): the largest place among those of equal owner and score."""
    ends = np.flatnonzero(np.append((np.diff(score) != 0) | (np.diff(owner) != 0), True))
    return place[ends[np.searchsorted(ends, np.arange(len(place)))]]


def _chunks(start: Int[Array, " Q+1"], width: int) -> Iterator[tuple[slice, slice]]:
    """Slices of queries, and of their pairs, that keep pairs times gallery under `_CHUNK` (one query at least)."""
    most = max(_CHUNK // max(width, 1), 1)
    low, count = 0, len(start) - 1
    while low < count:
        high = int(np.searchsorted(start, start[low] + most, side="right")) - 1
        high = min(max(high, low + 1), low + most, count)
        yield slice(low, high), slice(int(start[low]), int(start[high]))
        low = high


# -------------------------------------------------------------------------------------------------------------- chance


def chance_recall(pool: ArrayLike, positives: ArrayLike, k: int) -> Float[Array, " Q"]:
    """Exactly expected recall at k under a random order: 1 - C(G-P, k) / C(G, k)."""
    pool, positives = np.broadcast_arrays(np.asarray(pool, np.float64), np.asarray(positives, np.float64))
    # The ratio is a product of k factors, and, P and k being interchangeable in it, of P factors as well.
    few, many = (np.full(pool.shape, k), positives) if k <= positives.max(initial=0) else (positives, k)
    miss = np.ones(pool.shape)
    for i in range(int(few.max(initial=0))):
        miss = np.where(i < few, miss * np.clip((pool - many - i) / np.maximum(pool - i, 1), 0, 1), miss)
    return 1 - miss


def chance_precision(pool: ArrayLike, positives: ArrayLike) -> Float[Array, " Q"]:
    """Exactly expected average precision under a random order: (H + (P - 1) / (G - 1) (G - H)) / G, H = 1 + .. + 1/G
    (Bestgen 2015, "Exact expected average precision of the random baseline for system evaluation")."""
    pool, positives = np.asarray(pool, np.float64), np.asarray(positives, np.float64)
    harmonic = np.cumsum(1 / np.arange(1, int(pool.max(initial=1)) + 1))[pool.astype(int) - 1]
    return (harmonic + (positives - 1) / np.maximum(pool - 1, 1) * (pool - harmonic)) / pool


def chance_median_rank(pool: Int[Array, " Q"], positives: Int[Array, " Q"]) -> float:
    """The rank that half of the queries reach when every order is random: the median of the mixture over queries."""
    kinds, counts = np.unique(np.stack([pool, positives], 1), axis=0, return_counts=True)
    low, high = 1, int(pool.max())
    while low < high:  # recall grows with k
        middle = (low + high) // 2
        reached = chance_recall(kinds[:, 0], kinds[:, 1], middle) @ counts / counts.sum()
        low, high = (low, middle) if reached >= 0.5 else (middle + 1, high)
    return float(low)
