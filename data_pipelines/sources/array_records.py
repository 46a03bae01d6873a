"""ArrayRecord shards whose records are msgpack maps: random access, a hash over every chunk.

write_array_records(({"image": png_bytes, "caption": "a cat"} for ...), "train.array_record")
ArrayRecords("train.array_record", Schema.parse("image:image, caption:text"))
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import itertools
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from data_pipelines.protocols import BadRecord
from data_pipelines.schema import Schema
from data_pipelines.sources.files import digest, ends_digest, missing_package, shards
from data_pipelines.sources.peeking import class_names, readable, texts
from mmjax.core.errors import DataError, ExitCode, UserError

SUFFIXES = (".array_record", ".arrayrecord")
PROBED = 100
"""Records of which one must be readable to compare its columns with the schema."""


@dataclasses.dataclass(frozen=True)
class ArrayRecords:
    """An .array_record file, or a folder of them in the order of their names, as `write_array_records` writes them."""

    path: str
    schema: Schema

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return self.declared.read(self.row(index))

    def row(self, index: int) -> Mapping[str, Any]:
        """The stored columns, before the schema. Raises DataError (shard and record) where its bytes are damaged."""
        path, inside = self._place(index)
        try:
            data = _reader(path, _stamp(path)).read([inside])[0]
        except RuntimeError as error:
            _reader.cache_clear()  # a reader that failed once fails for intact records too
            raise _damaged(path, f"record {inside}", error) from None
        return _unpack(data)

    def peek(self, index: int, fields: tuple[str, ...]) -> Mapping[str, Any]:
        """The record with these fields only; others are not read."""
        return self.declared.only(fields).read(self.row(index))

    def texts(self, field: str) -> Iterator[str]:
        """Every text of a field, without the media."""
        return texts(self, field)

    def locate(self, index: int) -> str:
        """Shard and record inside it."""
        path, inside = self._place(index)
        return f"{path.name}, record {inside}"

    def names(self) -> Mapping[str, tuple[str, ...]]:
        """The class names, in the order of their indices."""
        return self.declared.names()

    def fingerprint(self) -> Mapping[str, str]:
        """Names, sizes and both ends (where the index lies) of the shards, and the schema."""
        parts = [f"{path.name}:{ends_digest(path)}" for path in self._shards]
        return {"source": "ArrayRecords", "schema": str(self.declared), "shards": digest(parts)}

    @functools.cached_property
    def declared(self) -> Schema:
        """The schema, proven on the first record, with all class names (a pass over the data, unless declared)."""
        self.schema.check_columns(self._columns, f"{self.path} (first records)")
        return self.schema.with_names(lambda field: class_names(readable(self.row, len(self)), field))

    @property
    def _columns(self) -> set[str]:
        """Columns of the first record that can be read; a damaged one is told when it is asked for."""
        damage: Exception | None = None
        for index in range(min(PROBED, len(self))):
            try:
                return set(self.row(index))
            except (BadRecord, DataError) as error:
                damage = damage or error
        raise DataError(f"{self.path}: none of the first {PROBED} records can be read: {damage}")

    def _place(self, index: int) -> tuple[pathlib.Path, int]:
        index = range(len(self))[index]
        shard = bisect.bisect_right(self._ends, index)
        return self._shards[shard], index - (self._ends[shard - 1] if shard else 0)

    @functools.cached_property
    def _shards(self) -> list[pathlib.Path]:
        return shards(self.path, SUFFIXES)

    @functools.cached_property
    def _ends(self) -> list[int]:
        return list(itertools.accumulate(_count(path) for path in self._shards))


def write_array_records(records: Iterable[Mapping[str, Any]], path: str) -> int:
    """Writes records (bytes, text, numbers, None, and lists and dicts of these) and returns how many.

    The file appears under its name only when it is complete. Raises UserError for a value that msgpack cannot hold."""
    import msgpack

    target = pathlib.Path(path).expanduser()
    if target.suffix not in SUFFIXES:
        raise UserError(f"name the file {target.stem}{SUFFIXES[0]}; got {path!r}")
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    writer = _module().ArrayRecordWriter(
        str(part), "group_size:1"
    )  # one record per chunk: nothing else is read with it
    count = 0
    try:
        for record in records:
            try:
                writer.write(msgpack.packb(dict(record), default=_plain))
            except (TypeError, ValueError, OverflowError) as error:
                raise UserError(f"record {count} cannot be stored: {error}") from None
            count += 1
        writer.close()
        os.replace(part, target)
    finally:
        if writer.is_open():
            writer.close()
        part.unlink(missing_ok=True)
    return count


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise TypeError(f"a {type(value).__name__} has no msgpack form; give bytes, text, numbers, lists or dicts")


def _unpack(data: bytes) -> Mapping[str, Any]:
    import msgpack

    try:
        row = msgpack.unpackb(data, strict_map_key=True)
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        raise BadRecord(
            "unreadable", f"not a msgpack record ({error}); write shards with write_array_records"
        ) from None
    if not isinstance(row, dict):
        raise BadRecord("bad_schema", f"expected a map of columns, found {type(row).__name__}")
    return row


def _module() -> Any:
    try:
        from array_record.python import array_record_module
    except ImportError:
        raise missing_package("array_record", "array_record", "reading .array_record files") from None
    return array_record_module


@functools.lru_cache(maxsize=256)
def _reader(path: pathlib.Path, stamp: tuple[int, int]) -> Any:
    """An open shard; shared by threads, never sent to another process."""
    del stamp  # part of the key: a file that was replaced is opened anew
    return _module().ArrayRecordReader(str(path), "readahead_buffer_size:0")


def _stamp(path: pathlib.Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def _count(path: pathlib.Path) -> int:
    try:
        reader = _reader(path, _stamp(path))
        if reader.ok():
            count = reader.num_records()
            if count:
                return count
            raise DataError(f"{path} holds no record; leave empty shards out", code=ExitCode.NO_INPUT)
        reader.read([0])  # an unreadable index counts as zero records: reading says why
        raise RuntimeError("its index cannot be read")
    except RuntimeError as error:
        _reader.cache_clear()
        raise _damaged(path, "the index", error) from None


def _damaged(path: pathlib.Path, what: str, error: Exception) -> DataError:
    return DataError(
        f"{path}: {what} is damaged or cut off ({error}); copy the shard again from its origin, or leave it out"
    )
