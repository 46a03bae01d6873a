"""Labels for data that has none: which records hold the very same picture or text."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from data_pipelines.chunks import Chunk
from data_pipelines.protocols import BadRecord


@dataclasses.dataclass(frozen=True)
class SameFeature:
    """`labels[name]` int32 [B 1]: equal where the `field` of records holds equal bytes or text, -1 where it holds none.

    So that copies are not negatives of each other: `InfoNCE(alike=("picture", "caption"))`. The number is a 31-bit hash
    (CRC-32, PNG specification, annex D): two different values meet once in 2 * 10^9 pairs."""

    field: str
    name: str

    def spec(self) -> Mapping[str, Any]:
        """See `Feature`."""
        return {"labels": {self.name: ((), "int32")}}

    def build(self, chunk: Chunk) -> Mapping[str, Any]:
        """See `Feature`."""
        numbers = np.full((len(chunk), 1), -1, np.int32)
        for row, value in enumerate(chunk.column(self.field)):
            if value is not None and row not in chunk.errors:
                try:
                    numbers[row] = zlib.crc32(self._bytes(value)) >> 1
                except BadRecord as error:
                    chunk.fail(row, error)
        return {"labels": {self.name: numbers}}

    def _bytes(self, value: Any) -> Any:
        if isinstance(value, str):
            return " ".join(value.split()).encode("utf-8", "surrogatepass")
        if isinstance(value, bytes | bytearray | memoryview):
            return value
        if isinstance(value, np.ndarray):
            return value.tobytes()
        raise BadRecord(
            "bad_schema", f"{self.field!r} must hold bytes, text or an array; it holds {type(value).__name__}"
        )

    def show(self, part: Mapping[str, Any], row: int) -> Mapping[str, Any]:
        """Nothing: a hash says nothing to people."""
        return {}
