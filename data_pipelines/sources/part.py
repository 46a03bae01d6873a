"""A fixed share of a source, to train on one part and judge on another."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from data_pipelines.cache import cached
from data_pipelines.protocols import BadRecord, Source
from data_pipelines.sources.peeking import texts
from mmjax.core.errors import DataError, UserError


@dataclasses.dataclass(frozen=True)
class Part:
    """The records whose `by` falls in the share [low, high) of all, 0 <= low < high <= 1.

    Equal bytes fall in the same part: no picture is in two, nor are captions of one picture when `by` is the picture.
    The share is drawn by hash: adding records moves no old one to another part. Hashes are read once, then cached.
    """

    source: Any
    low: float
    high: float
    by: str = "image"

    def __post_init__(self):
        if not 0 <= self.low < self.high <= 1:
            raise UserError(f"a part is a share of 0..1 with low < high; got {self.low:g}..{self.high:g}")

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return self.source[int(self._indices[index])]

    def peek(self, index: int, fields: tuple[str, ...]) -> Mapping[str, Any]:
        """The record with these fields only; others are not read."""
        return self.source.peek(int(self._indices[index]), fields)

    def texts(self, field: str) -> Iterator[str]:
        """Every text of a field in this part, without the media."""
        return texts(self, field)

    def locate(self, index: int) -> str:
        """Where the record lies in the whole source."""
        return self.source.locate(int(self._indices[index]))

    def names(self) -> Mapping[str, tuple[str, ...]]:
        """Those of the source, so that labels mean the same in all parts."""
        return self.source.names()

    def fingerprint(self) -> Mapping[str, str]:
        """The source's, and which share of it this is."""
        return {**self.source.fingerprint(), "part": f"{self.low:g}..{self.high:g} by {self.by}"}

    @functools.cached_property
    def _indices(self) -> np.ndarray:
        made_from = {"source": dict(self.source.fingerprint()), "by": self.by}
        places = np.load(cached("shares.npy", made_from, self._write), allow_pickle=False)
        inside = np.flatnonzero((places >= self.low) & (places < self.high))
        if not inside.size:
            total = f"{len(places)} records"
            raise DataError(f"the part {self.low:g}..{self.high:g} of {total} is empty; add records or widen it")
        return inside

    def _write(self, path: pathlib.Path) -> None:
        with ThreadPoolExecutor() as threads, path.open("wb") as file:
            np.save(file, np.fromiter(threads.map(self._place, range(len(self.source))), np.float64))

    def _place(self, index: int) -> float:
        """A number in [0, 1) from the bytes of `by`; a record that lacks them goes by its number."""
        try:
            value = self.source.peek(index, (self.by,)).get(self.by)
        except BadRecord:
            value = None
        data = value if isinstance(value, bytes) else str(index if value is None else value).encode()
        return int.from_bytes(hashlib.blake2b(data, digest_size=6).digest()) / 2**48


@dataclasses.dataclass(frozen=True)
class Captioned:
    """A source of pictures and classes whose captions are the names of the classes: `template` with {} for the name."""

    source: Source
    label: str = "label"
    template: str = "{}"
    field: str = "caption"

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return self._with_caption(self.source[index])

    def peek(self, index: int, fields: tuple[str, ...]) -> Mapping[str, Any]:
        """The record with these fields only; others are not read."""
        inner = {self.label if name == self.field else name for name in fields}
        record = self._with_caption(self.source.peek(index, tuple(inner)))
        return {name: record[name] for name in fields if name in record}

    def texts(self, field: str) -> Iterator[str]:
        """Every caption."""
        return texts(self, field)

    def _with_caption(self, record: Mapping[str, Any]) -> Mapping[str, Any]:
        if self.label not in record:
            return record
        name = self.source.names()[self.label][record[self.label]]
        return {**record, self.field: self.template.format(name.replace("_", " "))}

    def locate(self, index: int) -> str:
        """Where the record lies in the source."""
        return self.source.locate(index)

    def names(self) -> Mapping[str, tuple[str, ...]]:
        """Those of the source."""
        return self.source.names()

    def fingerprint(self) -> Mapping[str, str]:
        """The source's, and how captions are made."""
        return {**self.source.fingerprint(), "captions": f"{self.field} = {self.template!r} of {self.label}"}
