"""Which example stands at which position: a function, not a state, so that a stream can start anywhere."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from data_pipelines.randomness import fold, mix, uniform

_ROUNDS = 5


@dataclasses.dataclass(frozen=True)
class Plan:
    """epoch: how many positions one pass takes. indices: places in the source [n] of positions [n], 0 .. forever."""

    epoch: int
    indices: Callable[[np.ndarray], np.ndarray]


class Order(Protocol):
    """How a source is gone through."""

    def plan(self, source: Any, seed: int) -> Plan:
        """The order that `seed` gives; what it needs of `source` beyond its length is read here, once."""
        ...


@dataclasses.dataclass(frozen=True)
class InOrder:
    """0, 1, 2, ... and again from 0."""

    def plan(self, source: Any, seed: int) -> Plan:
        """See `Order`."""
        return Plan(len(source), lambda positions: positions % len(source))


@dataclasses.dataclass(frozen=True)
class EachOnce:
    """Every example once per pass, each pass in another order."""

    def plan(self, source: Any, seed: int) -> Plan:
        """See `Order`."""
        size = len(source)

        def indices(positions: np.ndarray) -> np.ndarray:
            number, place = np.divmod(positions, size)
            return permuted(place, size, fold(seed, number))

        return Plan(size, indices)


@dataclasses.dataclass(frozen=True)
class OneOfEach:
    """One example of each group of equal labels per pass (such as one of a picture's captions and styles), so that a
    batch does not meet a group twice. In as many passes as a group has members, each of them comes once.

    label: a name that `source.column(label)` knows."""

    label: str = "code"

    def plan(self, source: Any, seed: int) -> Plan:
        """See `Order`."""
        members, starts, counts = clusters(source.column(self.label))

        def indices(positions: np.ndarray) -> np.ndarray:
            number, place = np.divmod(positions, len(starts))
            group = permuted(place, len(starts), fold(seed, number))
            turn, member = np.divmod(number, counts[group])
            return members[starts[group] + permuted(member, counts[group], fold(fold(seed + 1, group), turn))]

        return Plan(len(starts), indices)


@dataclasses.dataclass(frozen=True)
class Clustered:
    """Runs of `size` examples that share `label` and differ in `apart`: batches with hard negatives in them.

    Clusters are drawn with chances in proportion to (number of different members) ** power, members without repetition
    where there are enough. There are no exact passes: `len(source)` positions count as one."""

    label: str = "concept"
    apart: str = "code"
    size: int = 4
    power: float = 0.75

    def plan(self, source: Any, seed: int) -> Plan:
        """See `Order`."""
        examples, first, count = clusters(source.column(self.apart))
        members, starts, sizes = clusters(source.column(self.label)[examples[first]])
        chances = np.cumsum(sizes**self.power)

        def indices(positions: np.ndarray) -> np.ndarray:
            run, place = np.divmod(positions, self.size)
            key = fold(seed, run)
            cluster = np.minimum(np.searchsorted(chances, uniform(key) * chances[-1], side="right"), len(sizes) - 1)
            turn, place = np.divmod(place, sizes[cluster])
            member = members[starts[cluster] + permuted(place, sizes[cluster], fold(key, turn))]
            drawn = (uniform(fold(seed + 1, positions)) * count[member]).astype(np.int64)
            return examples[first[member] + drawn]

        return Plan(len(source), indices)


def clusters(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(places sorted by label, where each label starts among them, how many places it has)."""
    places = np.argsort(labels, kind="stable")
    _, starts, counts = np.unique(labels[places], return_index=True, return_counts=True)
    return places, starts, counts


def permuted(place: np.ndarray, size: np.ndarray | int, key: np.ndarray) -> np.ndarray:
    """Where a random permutation of 0 .. size-1 (one per key) sends `place`; all arguments broadcast.

    A Feistel network over the square of the smallest side that holds `size`, walked until the result falls below `size`
    (Black and Rogaway, CT-RSA 2002, sections 4 and 5: cycle walking, generalised Feistel): no table, so 10**12 examples
    cost the same as ten. Grain's `shuffle` is the same idea one position at a time, and 5 times slower for a batch.
    """
    place, size, key = np.broadcast_arrays(place, size, key)
    size = size.astype(np.uint64)
    side = np.ceil(np.sqrt(np.maximum(size, 1))).astype(np.uint64)
    keys = [fold(key, number) for number in range(_ROUNDS)]
    result = _feistel(place.astype(np.uint64), side, keys)
    while (outside := np.flatnonzero(result >= size)).size:
        result[outside] = _feistel(result[outside], side[outside], [key[outside] for key in keys])
    return result.astype(np.int64)


def _feistel(value: np.ndarray, side: np.ndarray, keys: list[np.ndarray]) -> np.ndarray:
    left, right = value // side, value % side
    for key in keys:
        left, right = right, (left + mix(key ^ right) % side) % side
    return left * side + right
