"""Parquet tables (as Hugging Face data sets are stored), with media inside as bytes or beside as files.

A Parquet file is compressed in row groups, so that one row costs a whole group. Each file is therefore unpacked once,
on first use, into an Arrow file in the cache folder, where every row can be read in place by all processes.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

from data_pipelines.cache import cached
from data_pipelines.schema import Class, Field, Schema
from data_pipelines.sources.files import digest, ends_digest, missing_package, opener, shards
from data_pipelines.sources.peeking import texts
from mmjax.core.errors import DataError, ExitCode

ROWS = 256
"""Rows of an Arrow batch: small enough to find a row at once, large enough to cost no space."""


@dataclasses.dataclass(frozen=True)
class ParquetTable:
    """A .parquet file, or a folder of them in the order of their names. Media are bytes, `{"bytes", "path"}` or names
    of files relative to the table."""

    path: str
    schema: Schema

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return self._read(index, self.declared)

    def peek(self, index: int, fields: tuple[str, ...]) -> Mapping[str, Any]:
        """The record with these fields only; others are not read."""
        return self._read(index, self.declared.only(fields))

    def texts(self, field: str) -> Iterator[str]:
        """Every text of a field, without the media."""
        return texts(self, field)

    def _read(self, index: int, schema: Schema) -> Mapping[str, Any]:
        shard, _ = self._place(index)
        return schema.read(self.row(index, schema.places), opener(shard.parent))

    def row(self, index: int, columns: Collection[str] | None = None) -> Mapping[str, Any]:
        """The stored columns (all, if not given), before the schema. Raises DataError for damaged bytes."""
        shard, inside = self._place(index)
        batches = _unpacked(shard, _stamp(shard))
        number = bisect.bisect_right(batches.ends, inside)
        batch = batches.file.get_batch(number)
        offset = inside - (batches.ends[number - 1] if number else 0)
        wanted = [name for name in batch.schema.names if columns is None or name in columns]
        return {name: batch.column(name)[offset].as_py() for name in wanted}

    def locate(self, index: int) -> str:
        """File and row, from 0."""
        shard, inside = self._place(index)
        return f"{shard.name}, row {inside}"

    def names(self) -> Mapping[str, tuple[str, ...]]:
        """The class names, in the order of their indices."""
        return self.declared.names()

    def fingerprint(self) -> Mapping[str, str]:
        """Names, sizes and both ends (where row counts and statistics lie) of the files, and the schema."""
        parts = [f"{path.name}:{ends_digest(path)}" for path in self._shards]
        return {"source": "ParquetTable", "schema": str(self.declared), "shards": digest(parts)}

    @functools.cached_property
    def declared(self) -> Schema:
        """The schema, proven on the columns of every file, with all class names."""
        for path in self._shards:
            self.schema.check_columns(_open(path).schema_arrow.names, str(path))
        return self.schema.with_names(self._class_names)

    def _class_names(self, field: Field) -> Iterator[str]:
        for path in self._shards:
            present = [place for place in field.places if place in _open(path).schema_arrow.names]
            table = _open(path).read(columns=present)
            values = (value for column in table.columns for value in column.unique().to_pylist())
            yield from (name for value in values if (name := Class.name(value)) is not None)

    def _place(self, index: int) -> tuple[pathlib.Path, int]:
        index = range(len(self))[index]
        shard = bisect.bisect_right(self._ends, index)
        return self._shards[shard], index - (self._ends[shard - 1] if shard else 0)

    @functools.cached_property
    def _shards(self) -> list[pathlib.Path]:
        return shards(self.path, (".parquet",))

    @functools.cached_property
    def _ends(self) -> list[int]:
        ends = list(itertools.accumulate(_open(path).metadata.num_rows for path in self._shards))
        if not ends[-1]:
            raise DataError(f"{self.path!r} has no row", code=ExitCode.NO_INPUT)
        return ends


class Unpacked(NamedTuple):
    """A memory-mapped Arrow file, and the row after the last of each of its batches."""

    file: Any
    ends: list[int]


def _stamp(path: pathlib.Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


@functools.lru_cache(maxsize=256)
def _unpacked(path: pathlib.Path, stamp: tuple[int, int]) -> Unpacked:
    """The rows of a Parquet file where they can be read one by one; made once per machine."""
    import pyarrow as pa

    made_from = {"path": str(path.resolve()), "stamp": stamp, "content": ends_digest(path), "rows": ROWS}
    arrow = cached("parquet.arrow", made_from, functools.partial(_unpack, path))
    file = pa.ipc.open_file(pa.memory_map(str(arrow)))
    sizes = (file.get_batch(number).num_rows for number in range(file.num_record_batches))
    return Unpacked(file, list(itertools.accumulate(sizes)))


def _unpack(path: pathlib.Path, target: pathlib.Path) -> None:
    import pyarrow as pa

    source = _open(path)
    batches = source.iter_batches(batch_size=ROWS)
    with pa.OSFile(str(target), "wb") as sink, pa.ipc.new_file(sink, source.schema_arrow) as writer:
        for number in itertools.count():
            try:
                batch = next(batches, None)
            except (pa.ArrowException, OSError) as error:  # storage that stumbles looks the same: both end the run
                raise _damaged(path, f"rows {number * ROWS}..{(number + 1) * ROWS - 1}", error) from None
            if batch is None:
                return
            writer.write_batch(batch)


def _open(path: pathlib.Path) -> Any:
    try:
        import pyarrow as pa
        import pyarrow.parquet as parquet
    except ImportError:
        raise missing_package("pyarrow", "mmjax[parquet]", "reading .parquet files") from None
    try:
        return parquet.ParquetFile(path, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # storage, not damage: the pipeline asks again
        raise _damaged(path, "its footer", error) from None


def _damaged(path: pathlib.Path, what: str, error: Exception) -> DataError:
    return DataError(f"{path}: {what} cannot be read ({error}); copy the file again from its origin, or leave it out")
