"""Which samples share a row: bins of several resources, and the row that stands at any position of an endless stream.

n samples   D resources: places first, then whatever else is scarce (samples of a row, items of each kind of media)
"""

from __future__ import annotations

import bisect
import dataclasses
import threading
from collections.abc import Callable
from typing import Protocol

import numpy as np
from jaxtyping import Int

Array = np.ndarray


class Packer(Protocol):
    """Puts samples into as few bins as it can."""

    def bins(self, needs: Int[Array, "n D"], room: Int[Array, " D"]) -> list[Int[Array, " k"]]:
        """Samples of each bin, ascending, so that every sample is in one bin and the needs of a bin sum up to at most
        `room`. None of the samples may need more than that alone."""
        ...


@dataclasses.dataclass(frozen=True)
class BestFit:
    """The longest sample first, each into the fullest bin that has room: best-fit decreasing, at most 11/9 of the
    fewest bins and a few (Johnson et al. 1974, SIAM J. Comput. 3(4)). n log n while places are what is scarce."""

    def bins(self, needs: Array, room: Array) -> list[Array]:
        """See `Packer`."""
        held: list[list[int]] = []
        left: list[list[int]] = []  # of each bin, what is left of every resource
        open_bins: list[tuple[int, int]] = []  # (places left, bin), ascending
        rows, always = needs.tolist(), np.flatnonzero(needs.min(0, initial=1) > 0)
        for sample in np.argsort(-needs[:, 0], kind="stable").tolist():
            need = rows[sample]
            at = bisect.bisect_left(open_bins, (need[0], 0))
            while at < len(open_bins) and not _holds(left[open_bins[at][1]], need):
                at += 1
            if at < len(open_bins):
                number = open_bins.pop(at)[1]
            else:
                number = len(held)
                held.append([])
                left.append(room.tolist())
            held[number].append(sample)
            rest = left[number] = [a - b for a, b in zip(left[number], need, strict=True)]
            if all(rest[resource] for resource in always):
                bisect.insort(open_bins, (rest[0], number))
        return [np.sort(samples) for samples in held]


@dataclasses.dataclass(frozen=True)
class FirstFit:
    """In the order of the samples, each into the first bin that has room: keeps neighbours together (Johnson et al.
    1974). Quadratic in a window's bins."""

    def bins(self, needs: Array, room: Array) -> list[Array]:
        """See `Packer`."""
        held: list[list[int]] = []
        left = np.empty((len(needs), len(room)), np.int64)
        for sample, need in enumerate(needs):
            fits = (left[: len(held)] >= need).all(1)
            number = int(fits.argmax()) if fits.any() else len(held)
            if number == len(held):
                held.append([])
                left[number] = room
            held[number].append(sample)
            left[number] -= need
        return [np.array(samples) for samples in held]


def _holds(left: list[int], need: list[int]) -> bool:
    return all(a >= b for a, b in zip(left, need, strict=True))


class Windows:
    """Bins of windows of samples, one window after the other, counted through: bin p is found without what came before
    it but its numbers.

    pack: the bins of window number w, a pure function. count: of windows; None is without end. To find bin p, the
    windows before it are packed once and counted (some 300 000 samples a second on one core of a server:
    benchmarks/packing.py); the last few are remembered.
    """

    def __init__(self, pack: Callable[[int], list[Array]], count: int | None):
        self._pack, self._count = pack, count
        self._ends: list[int] = []  # of each window seen, how many bins there are up to its end
        self._recent: dict[int, list[Array]] = {}
        self._lock = threading.Lock()

    def total(self) -> int | None:
        """Number of bins; packs all windows."""
        if self._count is None:
            return None
        with self._lock:
            while len(self._ends) < self._count:
                self._see(len(self._ends))
        return self._ends[-1] if self._ends else 0

    def bins(self, positions: Int[Array, " n"]) -> list[tuple[int, Array]]:
        """(window, its samples) of the bins at `positions`, each before the end."""
        found = []
        with self._lock:
            for position in positions.tolist():
                while not self._ends or self._ends[-1] <= position:
                    self._see(len(self._ends))
                window = bisect.bisect_right(self._ends, position)
                first = self._ends[window - 1] if window else 0
                found.append((window, self._see(window)[position - first]))
        return found

    def _see(self, window: int) -> list[Array]:
        bins = self._recent.get(window)
        if bins is None:
            while len(self._recent) >= _RECENT:
                self._recent.pop(next(iter(self._recent)))
            bins = self._recent[window] = self._pack(window)
        if window == len(self._ends):
            self._ends.append((self._ends[-1] if window else 0) + len(bins))
        return bins


_RECENT = 8  # windows
