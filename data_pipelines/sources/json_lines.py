"""JSON lines: one object per line, media as files named relative to the file."""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from data_pipelines.protocols import BadRecord
from data_pipelines.schema import Schema
from data_pipelines.sources.files import content_digest, existing, opener, read_at
from data_pipelines.sources.peeking import class_names, readable, texts
from mmjax.core.errors import DataError, ExitCode

PROBED = 100
"""Lines whose keys are compared with the schema before training."""


@dataclasses.dataclass(frozen=True)
class JsonLines:
    """`{"image": "cats/01.png", "caption": "a cat"}` per line. References may not leave the file's folder."""

    path: str
    schema: Schema

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return self.declared.read(self.row(index), opener(self._file.parent))

    def peek(self, index: int, fields: tuple[str, ...]) -> Mapping[str, Any]:
        """The record with these fields only; others are not read."""
        return self.declared.only(fields).read(self.row(index), opener(self._file.parent))

    def texts(self, field: str) -> Iterator[str]:
        """Every text of a field, without the media."""
        return texts(self, field)

    def locate(self, index: int) -> str:
        """File and line."""
        return f"{self._file.name}, line {self._lines[index, 2]}"

    def names(self) -> Mapping[str, tuple[str, ...]]:
        """The class names, in the order of their indices."""
        return self.declared.names()

    def fingerprint(self) -> Mapping[str, str]:
        """Content of the file (not of the media it names) and the schema."""
        return {"source": "JsonLines", "schema": str(self.declared), "content": self._content}

    @functools.cached_property
    def declared(self) -> Schema:
        """The schema, proven on the first lines, with all class names."""
        count = min(PROBED, len(self))
        columns = {name for row in readable(self.row, count) for name in row}
        self.schema.check_columns(sorted(columns), f"{self._file.name} (first {count} lines)")
        return self.schema.with_names(lambda field: class_names(readable(self.row, len(self)), field))

    def row(self, index: int) -> Mapping[str, Any]:
        """The stored columns, before the schema. Raises BadRecord for a line that is no JSON object."""
        start, stop, _ = self._lines[index].tolist()
        try:
            row = json.loads(read_at(self._file, start, stop - start).decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise BadRecord("unreadable", f"not a line of JSON: {error}") from None
        if not isinstance(row, dict):
            raise BadRecord("bad_schema", f"expected an object per line, found {type(row).__name__}")
        return row

    @functools.cached_property
    def _file(self) -> pathlib.Path:
        return existing(self.path)

    @functools.cached_property
    def _content(self) -> str:
        return content_digest(self._file)

    @functools.cached_property
    def _lines(self) -> np.ndarray:
        """(start, stop, number) [n 3] of each line that is not blank, in bytes."""
        spans, start = [], 0
        with self._file.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    spans.append((start, start + len(line), number))
                start += len(line)
        if not spans:
            raise DataError(f"{self.path!r} has no record: the file is empty", code=ExitCode.NO_INPUT)
        return np.asarray(spans, np.int64)
