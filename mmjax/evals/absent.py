"""The same data with one modality taken away: what a model says without looking is the baseline of what it says.

B rows   T text slots   N media items of a kind in a row   S samples in a row
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool

from mmjax.core.batch import MEDIA, Batch, Text
from mmjax.core.errors import UserError
from mmjax.core.protocols import Data, specs_of

Array = np.ndarray


@dataclasses.dataclass(frozen=True)
class Wrapped:
    """Data whose batches are another's, changed."""

    data: Data

    def spec(self) -> Batch:
        """See `core.protocols.Data`."""
        return self.data.spec()

    def specs(self) -> tuple[Batch, ...]:
        """See `core.protocols.Shapes`."""
        return specs_of(self.data)

    def fingerprint(self) -> Mapping[str, str]:
        """See `core.protocols.Data`."""
        return self.data.fingerprint()

    def names(self) -> Mapping[str, tuple[str, ...]]:
        """See `core.protocols.Data`."""
        return self.data.names()

    def example(self, index: int) -> Mapping[str, Any]:
        """See `core.protocols.Data`."""
        return self.data.example(index)


@dataclasses.dataclass(frozen=True)
class Without(Wrapped):
    """`data` where no example has `modality`. Batches keep their shapes, so that nothing is compiled again."""

    modality: str = "image"

    def fingerprint(self) -> Mapping[str, str]:
        """See `core.protocols.Data`."""
        return {**self.data.fingerprint(), "without": self.modality}

    def batches(self, position: int = 0, process: int = 0, processes: int = 1) -> Iterator[Batch]:
        """See `core.protocols.Data`."""
        return (without(batch, self.modality) for batch in self.data.batches(position, process, processes))


def without(batch: Batch, modality: str) -> Batch:
    """A copy (numpy) whose slots of `modality` are invalid and zero; places of the row where its tokens would land
    become padding, and positions count on as if it had never been there. Raises UserError when the batch has no such
    modality."""
    part = getattr(batch, modality, None) if modality in MEDIA else None
    if part is None:
        there = ", ".join(name for name in batch.modalities() if name in MEDIA) or "none"
        raise UserError(
            f"{modality!r} cannot be taken away from this data; it has: {there}. To leave out the baseline without it, "
            "give absent=None"
        )
    text = None if batch.text is None else _cut(batch.text, _landing(batch, modality))
    return batch.replace(**{modality: jax.tree.map(np.zeros_like, part), "text": text})


def _landing(batch: Batch, modality: str) -> Bool[Array, "B T"]:
    """Where tokens of the modality land in the row."""
    slot = np.asarray(batch.text.slot)
    first, items, each = batch.landing().get(modality, (0, 0, 0))
    return (slot >= first) & (slot < first + items * each)


def _cut(text: Text, gone: Bool[Array, "B T"]) -> Text:
    segment = np.asarray(text.segment)
    shift = np.zeros_like(segment)
    for number in range(1, segment.max(initial=0) + 1):
        own = segment == number
        shift += np.where(own, np.cumsum(gone & own, axis=1), 0).astype(segment.dtype)
    kept = {name: np.where(gone, 0, getattr(text, name)) for name in ("ids", "segment", "block")}
    return dataclasses.replace(
        text,
        **kept,
        slot=np.where(gone, -1, text.slot),
        position=np.where(gone, 0, text.position - shift),
        loss=np.where(gone, 0, text.loss).astype(np.float32),
    )
