"""What goes when a sample is too long: whole spans, never a part of one.

n spans   D resources: places, and items of each kind of media
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

import numpy as np
from jaxtyping import Bool, Int

Array = np.ndarray


class Truncation(Protocol):
    """Which spans of a sample that does not fit stay."""

    def keep(
        self, turn: Int[Array, " n"], needs: Int[Array, "n D"], room: Int[Array, " D"]
    ) -> Bool[Array, " n"] | None:
        """Spans to keep, so that their needs sum up to at most `room`; those of turn 0 always stay. None: this sample
        cannot be used, because the spans that must stay do not fit, or nothing fits beside them."""
        ...


@dataclasses.dataclass(frozen=True)
class DropOldest:
    """Whole turns go, from the first on; the last one must fit."""

    def keep(self, turn: Array, needs: Array, room: Array) -> Array | None:
        """See `Truncation`."""
        for oldest in np.unique(turn[turn > 0]):
            stays = (turn == 0) | (turn >= oldest)
            if _fits(needs[stays], room):
                return stays
        return None


@dataclasses.dataclass(frozen=True)
class DropLast:
    """Spans go, from the last on; the first one must fit."""

    def keep(self, turn: Array, needs: Array, room: Array) -> Array | None:
        """See `Truncation`."""
        always = turn == 0
        taken = needs[always].sum(0) + np.cumsum(needs * ~always[:, None], axis=0)
        stays = always | (taken <= room).all(1)
        return stays if (stays & ~always).any() and _fits(needs[stays], room) else None


@dataclasses.dataclass(frozen=True)
class Refuse:
    """A sample that is too long is not used."""

    def keep(self, turn: Array, needs: Array, room: Array) -> Array | None:
        """See `Truncation`."""
        return np.ones(turn.shape, bool) if _fits(needs, room) else None


def _fits(needs: Array, room: Array) -> bool:
    return bool((needs.sum(0) <= room).all())
