"""Tar shards as WebDataset writes them: members of one stem are one record. Nothing is ever extracted.

A shard comes from somewhere else and is not trusted: its members are read in place, their names are only keys, and a
shard that holds anything but plain files under relative names is refused as a whole (`tarfile` alone would follow
links, and ends without a word at the first damaged header).
"""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
import re
import tarfile
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

from data_pipelines.protocols import BadRecord
from data_pipelines.schema import Class, Field, Media, Number, Schema, Text
from data_pipelines.sources.files import IMAGE_SUFFIXES, digest, ends_digest, read_at, shards
from data_pipelines.sources.peeking import class_names, readable, texts
from mmjax.core.errors import DataError, ExitCode

PROBED = 100
"""Records whose members are compared with the schema before training."""

SUFFIXES = {
    "image": tuple(suffix[1:] for suffix in IMAGE_SUFFIXES),
    "audio": ("wav", "flac", "mp3", "ogg"),
    "video": ("mp4", "webm", "mkv", "mov"),
    "text": ("txt", "caption"),
    "class": ("cls",),
    "int": ("cls",),
}
"""Where the first field of a kind is looked for when its schema names no suffix (the customs of WebDataset)."""


class Place(NamedTuple):
    """Where a member's bytes lie in its shard."""

    offset: int
    size: int


class Entry(NamedTuple):
    """One record: its shard, its stem and its members by suffix."""

    shard: int
    stem: str
    members: Mapping[str, Place]


@dataclasses.dataclass(frozen=True)
class TarShards:
    """A .tar file, or a folder of them in the order of their names. Members `.json` add their keys as columns.

    max_members: a shard with more is refused before its index fills the memory.
    """

    path: str
    schema: Schema
    max_members: int = 2_000_000

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return self.declared.read(self.row(index, {*self.declared.places, "json"}))

    def peek(self, index: int, fields: tuple[str, ...]) -> Mapping[str, Any]:
        """The record with these fields only; others are not read."""
        schema = self.declared.only(fields)
        return schema.read(self.row(index, {*schema.places, "json"}))

    def texts(self, field: str) -> Iterator[str]:
        """Every text of a field, without the media."""
        return texts(self, field)

    def row(self, index: int, suffixes: Collection[str] | None = None) -> Mapping[str, Any]:
        """The stored members by suffix (only `suffixes`, if given), with the keys of a `.json` member."""
        entry = self._index[index]
        shard = self._shards[entry.shard]
        wanted = [suffix for suffix in entry.members if suffixes is None or suffix in suffixes]
        row = {suffix: read_at(shard, *entry.members[suffix]) for suffix in wanted}
        return _object(row.pop("json")) | row if "json" in row else row

    def locate(self, index: int) -> str:
        """Shard and stem."""
        entry = self._index[index]
        return f"{self._shards[entry.shard].name}: {entry.stem}"

    def names(self) -> Mapping[str, tuple[str, ...]]:
        """The class names, in the order of their indices."""
        return self.declared.names()

    def fingerprint(self) -> Mapping[str, str]:
        """Names, sizes and both ends of the shards, every member's name and place, and the schema."""
        parts = [f"{path.name}:{ends_digest(path)}" for path in self._shards]
        members = digest(f"{e.stem}.{s}:{p.offset}:{p.size}" for e in self._index for s, p in e.members.items())
        return {"source": "TarShards", "schema": str(self.declared), "shards": digest(parts), "members": members}

    @functools.cached_property
    def declared(self) -> Schema:
        """The schema with suffixes for every field, proven on the first records, with all class names."""
        schema = Schema(tuple(_with_suffixes(field, self.schema) for field in self.schema.fields))
        count = min(PROBED, len(self))
        columns = {name for index in range(count) for name in self._index[index].members}
        columns |= {name for row in readable(lambda index: self.row(index, ("json",)), count) for name in row}
        schema.check_columns(sorted(columns), f"{self.path} (first {count} records)")
        return schema.with_names(self._class_names)

    def _class_names(self, field: Field) -> Iterator[str]:
        rows = readable(lambda index: self.row(index, {*field.places, "json"}), len(self))
        return class_names(rows, field)

    @functools.cached_property
    def _shards(self) -> list[pathlib.Path]:
        return shards(self.path, (".tar",))

    @functools.cached_property
    def _index(self) -> list[Entry]:
        entries = [
            entry for number, path in enumerate(self._shards) for entry in _entries(number, path, self.max_members)
        ]
        if not entries:
            raise DataError(f"{self.path!r} has no record: its shards hold no files", code=ExitCode.NO_INPUT)
        return entries


def _with_suffixes(field: Field, schema: Schema) -> Field:
    if field.columns or field is not schema.of_kind(type(field.kind))[0]:
        return field
    word = field.kind.modality if isinstance(field.kind, Media) else _word(field.kind)
    return dataclasses.replace(field, columns=(field.name, *SUFFIXES.get(word, ())))


def _word(kind: Any) -> str:
    return {Text: "text", Class: "class", Number: "int"}[type(kind)]


def _object(data: bytes) -> dict[str, Any]:
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadRecord("unreadable", f"its .json is not JSON: {error}") from None
    if not isinstance(tree, dict):
        raise BadRecord("bad_schema", f"its .json holds {type(tree).__name__}; an object was expected")
    return tree


def _entries(number: int, path: pathlib.Path, max_members: int) -> list[Entry]:
    """The records of one shard, in the order of their first members."""
    found: dict[str, dict[str, Place]] = {}
    for name, place in _members(path, max_members):
        folder, slash, base = name.rpartition("/")
        stem, _, suffix = base.partition(".")
        members = found.setdefault(f"{folder}{slash}{stem}", {})
        if suffix.lower() in members:
            raise _refused(path, f"holds {name!r} twice, so that its records cannot be told apart")
        members[suffix.lower()] = place
    return [Entry(number, stem, members) for stem, members in found.items()]


def _members(path: pathlib.Path, max_members: int) -> Iterator[tuple[str, Place]]:
    """(name, place) of each plain file. Raises DataError for what is unsafe, damaged or cut off."""
    size, count, last = path.stat().st_size, 0, -1
    try:
        with tarfile.open(path, "r:") as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # it would keep each header in memory
                if archive.offset <= last or member.size < 0:  # a negative size would walk back for ever
                    raise _refused(path, f"has an impossible size in the header of {member.name!r}")
                last = archive.offset
                count += 1
                if count > max_members:
                    raise _refused(path, f"holds more than {max_members:,} members (raise max_members if it should)")
                _check(path, member, size)
                if member.isreg():
                    yield member.name, Place(member.offset_data, member.size)
            _check_end(path, archive.offset, size)
    except (tarfile.TarError, ValueError, EOFError, OverflowError, RecursionError) as error:
        raise _refused(path, _why(path, error)) from None


def _check(path: pathlib.Path, member: tarfile.TarInfo, size: int) -> None:
    name = member.name
    kind = "a link" if member.issym() or member.islnk() else "a device or pipe"
    if not (member.isreg() or member.isdir()):
        raise _refused(path, f"holds {kind}, {name!r}; only plain files are read")
    if member.issparse():
        raise _refused(path, f"holds a sparse file, {name!r}; write it in full")
    if name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", name) or ".." in re.split(r"[/\\]", name):
        raise _refused(path, f"holds {name!r}, which points out of the archive")
    if "\0" in name:
        raise _refused(path, f"holds a name with a NUL character, {name!r}")
    if member.offset_data + member.size > size:
        raise _refused(path, f"is cut off inside {name!r}; copy it again from its origin")


def _check_end(path: pathlib.Path, offset: int, size: int) -> None:
    """The index must have ended at the end marker, and nothing may follow: else records were lost without a word."""
    if size - offset < tarfile.BLOCKSIZE:
        raise _refused(path, "ends without its end marker: it was cut off; copy it again from its origin")
    with path.open("rb") as file:
        file.seek(offset)
        if any(file.read(tarfile.BLOCKSIZE)):
            raise _refused(path, f"is damaged at byte {offset:,}: no header there; copy it again from its origin")
        while chunk := file.read(1 << 20):
            if any(chunk):
                raise _refused(
                    path, f"goes on after its end marker at byte {offset:,}; were two archives joined by cat?"
                )


def _why(path: pathlib.Path, error: Exception) -> str:
    with path.open("rb") as file:
        head = file.read(6)
    packed = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"\x28\xb5": "zstd"}.get(head[:2])
    if packed:
        return f"is compressed with {packed}, which allows no random access; unpack the compression (keep the .tar)"
    return f"is not a readable tar archive ({error}); copy it again from its origin"


def _refused(path: pathlib.Path, why: str) -> DataError:
    return DataError(f"{path} {why}")
