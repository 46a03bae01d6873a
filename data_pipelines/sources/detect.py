"""From a path to a source: what kind of data lies there, and what its records seem to hold."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from data_pipelines.protocols import BadRecord, Source
from data_pipelines.schema import Chat, Class, Field, Media, Number, Schema, Text
from data_pipelines.sources.array_records import SUFFIXES, ArrayRecords
from data_pipelines.sources.captions import CAPTION_FILES, FILE_COLUMNS, TEXT_COLUMNS
from data_pipelines.sources.files import IMAGE_SUFFIXES, existing, listing
from data_pipelines.sources.image_folder import ImageFolder
from data_pipelines.sources.json_lines import JsonLines
from data_pipelines.sources.parquet import ParquetTable
from data_pipelines.sources.tar_shards import TarShards
from data_pipelines.sources.tfds import TfdsSource
from mmjax.core.errors import DataError, ExitCode

SEEN = 32
"""Records that are looked at to guess a schema."""

_SHARDED = {(".parquet",): ParquetTable, (".tar",): TarShards, SUFFIXES: ArrayRecords, (".jsonl", ".ndjson"): JsonLines}
_LABELS = ("label", "class", "category", "cls")


def open_source(path: str, schema: Schema | None = None) -> Source:
    """The source for a file or folder. Without `schema` the records' own columns are taken (`guess`).

    Raises DataError when nothing there is a known kind of data, or when several kinds lie side by side."""
    root = existing(path)
    if root.is_dir():
        return _folder(root, path, schema)
    if root.suffix in (".csv", ".tsv") or root.name in CAPTION_FILES:
        return ImageFolder(str(root.parent), captions=root.name, schema=schema)
    for suffixes, kind in _SHARDED.items():
        if root.suffix.lower() in suffixes:
            return _table(kind, path, schema)
    if root.suffix == ".gz" or root.suffix == ".zip":
        raise DataError(f"{path!r} is compressed; unpack it first (random access is not possible inside)")
    known = ".jsonl, .csv, .tsv, .parquet, .tar, .array_record, or a folder of pictures"
    raise DataError(f"{path!r} is no kind of data that is known here: expected {known}", code=ExitCode.NO_INPUT)


def _folder(root: pathlib.Path, path: str, schema: Schema | None) -> Source:
    if (root / "dataset_info.json").is_file() and (root / "features.json").is_file():
        return TfdsSource(path, schema=schema)
    if any((root / name).is_file() for name in CAPTION_FILES):
        return ImageFolder(path, schema=schema)
    found = {suffixes: names for suffixes in _SHARDED if (names := listing(root, suffixes))}
    if listing(root, IMAGE_SUFFIXES) and not any(names for suffixes, names in found.items() if suffixes[0] == ".jsonl"):
        return ImageFolder(path, schema=schema)
    if len(found) > 1:
        kinds = " and ".join(f"{len(names)} {suffixes[0]}" for suffixes, names in found.items())
        raise DataError(f"{path!r} holds {kinds} files; name the file or folder to read")
    for suffixes, names in found.items():
        if suffixes[0] == ".jsonl" and len(names) > 1:
            raise DataError(f"{path!r} holds {len(names)} .jsonl files ({', '.join(names[:4])}); name the one to read")
        whole = str(root / names[0]) if suffixes[0] == ".jsonl" else path
        return _table(_SHARDED[suffixes], whole, schema)
    return ImageFolder(path, schema=schema)  # which says what it misses


def _table(kind: Any, path: str, schema: Schema | None) -> Source:
    if schema is not None:
        return kind(path, schema)
    bare = kind(path, Schema(()))
    rows, damage = [], None
    for index in range(min(SEEN, len(bare))):
        try:
            rows.append(bare.row(index))
        except BadRecord:
            continue
        except DataError as error:  # told when the record is read, if there are others to guess from
            damage = error
    if damage is not None and not rows:
        raise damage
    return kind(path, guess(rows, path))


def guess(rows: Sequence[Mapping[str, Any]], where: str) -> Schema:
    """The schema that fits all of `rows`: pictures, one caption, one conversation, labels. Raises DataError when there
    is no picture."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    values = {name: [row[name] for row in rows if row.get(name) is not None] for name in columns}
    pictures = [name for name in columns if values[name] and all(map(_is_picture, values[name]))]
    texts = [name for name in columns if name not in pictures and values[name] and all(map(_is_text, values[name]))]
    labels = [name for name in columns if name in _LABELS and values[name] and name not in pictures]
    if not pictures:
        there = ", ".join(columns) or "nothing"
        raise DataError(
            f"{where}: no column holds pictures; found {there}; say what they hold with --schema image:image=COLUMN"
        )
    picture = min(pictures, key=lambda name: _rank(name, FILE_COLUMNS))
    captions = [
        name for name in texts if name not in labels and (name in (*TEXT_COLUMNS, "txt") or " " in values[name][0])
    ]
    fields = [_field("image", Media("image"), [picture], rows)]
    if captions:
        caption = min(captions, key=lambda name: _rank(name, (*TEXT_COLUMNS, "txt")))
        fields.append(_field("caption", Text(), [caption], rows))
    chats = [name for name in columns if values[name] and all(map(_is_chat, values[name]))]
    fields += [_field(name, Chat(), [name], rows) for name in chats[:1]]
    fields += [_field("label", _label_kind(values[name]), [name], rows) for name in labels[:1]]
    return Schema(tuple(fields))


def _field(name: str, kind: Any, columns: list[str], rows: Sequence[Mapping[str, Any]]) -> Field:
    lacking = any(all(row.get(column) is None for column in columns) for row in rows)
    return Field(name, kind, lacking, () if columns == [name] else tuple(columns))


def _label_kind(values: Sequence[Any]) -> Any:
    return Number(whole=True) if all(isinstance(value, int) for value in values) else Class()


def _rank(name: str, order: Sequence[str]) -> int:
    return order.index(name.lower()) if name.lower() in order else len(order)


def _is_picture(value: Any) -> bool:
    if isinstance(value, Mapping):
        return bool(value.keys() & {"bytes", "path"}) and _is_picture(value.get("bytes") or value.get("path"))
    if isinstance(value, bytes):
        heads = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\0", b"MM\0*")
        return value.startswith(heads) or value[8:12] == b"WEBP"
    return isinstance(value, str) and value.lower().endswith(IMAGE_SUFFIXES)


def _is_chat(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(message, Mapping) for message in value)


def _is_text(value: Any) -> bool:
    if isinstance(value, bytes):
        try:
            value = value.decode("utf-8")
        except UnicodeDecodeError:
            return False
    return isinstance(value, str)
