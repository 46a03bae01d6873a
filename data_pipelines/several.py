"""Several media items of a kind per sample, from a feature for one.   n rows, N items of each"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from data_pipelines.chunks import Chunk
from data_pipelines.protocols import BadRecord, Feature
from data_pipelines.randomness import fold
from mmjax.core.batch import MEDIA


@dataclasses.dataclass(frozen=True)
class Several:
    """Up to `count` items per row, each made as `feature` makes the one of its field: `Several(ImageFeature(), 4)`.

    The field holds a tuple of what `feature` takes (one alone, or None, too). More than `count` make the row null."""

    feature: Feature
    count: int = 4

    @property
    def field(self) -> str:
        """That of the feature."""
        return self.feature.field

    def spec(self) -> Mapping[str, Any]:
        """See `Feature`."""
        return {name: (self.count, *size[1:]) for name, size in self.feature.spec().items()}

    def build(self, chunk: Chunk) -> Mapping[str, Any]:
        """See `Feature`. The first item of a row meets the same chance as the one of `feature` would."""
        values = [self._values(value, chunk, row) for row, value in enumerate(chunk.column(self.field))]
        row = np.repeat(np.arange(len(chunk)), [len(items) for items in values])
        item = np.concatenate([np.arange(len(items)) for items in values])
        key = np.where(item == 0, chunk.keys[row], fold(chunk.keys[row], item))
        flat = Chunk({self.field: [value for items in values for value in items]}, key, chunk.names)
        (kind,) = self.spec()
        part = self.feature.build(flat if len(flat) else Chunk({}, chunk.keys))[kind]
        for number, error in flat.errors.items():
            chunk.fail(int(row[number]), error)

        def dealt(leaf: np.ndarray) -> np.ndarray:
            whole = np.zeros((len(chunk), self.count, *leaf.shape[2:]), leaf.dtype)
            whole[row, item] = leaf[: row.size, 0]
            return whole

        return {kind: jax.tree.map(dealt, part)}

    def show(self, part: Mapping[str, Any], row: int) -> Mapping[str, Any]:
        """See `Feature`: the first one."""
        return self.feature.show(part, row)

    def fingerprint(self) -> Mapping[str, str]:
        """That of the feature."""
        return self.feature.fingerprint() if hasattr(self.feature, "fingerprint") else {}

    def _values(self, value: Any, chunk: Chunk, row: int) -> Sequence[Any]:
        items = items_of(value)
        if len(items) > self.count:
            fault = f"{self.field!r} holds {len(items)} items; this feature has room for {self.count}"
            chunk.fail(row, BadRecord("too_large", fault))
        return items[: self.count]


def items_of(value: Any) -> tuple[Any, ...]:
    """The media items that a field of a record holds: a tuple or list of them, one alone, or none."""
    if value is None:
        return ()
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def kind_of(feature: Feature) -> str | None:
    """The kind of media that a feature makes."""
    return next((name for name in feature.spec() if name in MEDIA), None)
