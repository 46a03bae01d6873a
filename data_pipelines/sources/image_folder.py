"""A folder of pictures: with a captions file, with a text beside each picture, or with one sub-folder per class."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from data_pipelines.schema import Class, Field, Media, Schema, Text
from data_pipelines.sources.captions import CAPTION_FILES, read_captions
from data_pipelines.sources.files import (
    IMAGE_SUFFIXES,
    OTHER_IMAGE_SUFFIXES,
    content_digest,
    digest,
    existing,
    listing,
    opener,
)
from data_pipelines.sources.peeking import class_names, texts
from mmjax.core.errors import DataError, ExitCode


@dataclasses.dataclass(frozen=True)
class ImageFolder:
    """Records "image", "caption" and "label", and further columns of the captions file that `schema` asks for.

    captions: name of the captions file inside the folder; None looks for `captions.*` and `metadata.*`, then for
        `picture.txt` beside `picture.png`. A captions file decides which pictures are used, and how often.
    schema: None takes what is there; classes (sub-folders) only where there are no captions.
    """

    folder: str
    captions: str | None = None
    schema: Schema | None = None

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return self._read(self.declared, self._rows[index])

    def peek(self, index: int, fields: tuple[str, ...]) -> Mapping[str, Any]:
        """The record with these fields only; others are not read."""
        return self._read(self.declared.only(fields), self._rows[index])

    def texts(self, field: str) -> Iterator[str]:
        """Every text of a field, without the media."""
        return texts(self, field)

    def _read(self, schema: Schema, row: Mapping[str, Any]) -> Mapping[str, Any]:
        read = opener(self._root)
        if "text_file" in row and "caption" in schema.places:
            row = {**row, "caption": read(row["text_file"])}
        return schema.read(row, read)

    def locate(self, index: int) -> str:
        """The picture's name inside the folder."""
        row = self._rows[index]
        listed = f" ({self._captions_file.name}, caption {index + 1})" if self._captions_file else ""
        return f"{row['image']}{listed}"

    def names(self) -> Mapping[str, tuple[str, ...]]:
        """The class names, in the order of their indices."""
        return self.declared.names()

    def fingerprint(self) -> Mapping[str, str]:
        """Names and sizes of the pictures (and text files), content of the captions file, and the schema."""
        texts = [row["text_file"] for row in self._rows if "text_file" in row]
        files = [*dict.fromkeys(row["image"] for row in self._rows), *texts]
        parts = {"files": digest(f"{name}:{_size(self._root / name)}" for name in map(str, files))}
        if self._captions_file:
            parts["captions"] = content_digest(self._captions_file)
        return {"source": "ImageFolder", "schema": str(self.declared), **parts}

    @functools.cached_property
    def declared(self) -> Schema:
        """The schema with all class names."""
        return (self.schema or self._found).with_names(lambda field: class_names(iter(self._rows), field))

    @functools.cached_property
    def unlisted(self) -> tuple[str, ...]:
        """Pictures in the folder that its captions file does not mention."""
        used = {str(pathlib.PurePosixPath(str(row["image"]))) for row in self._rows}
        return tuple(name for name in self._pictures if name not in used)

    @functools.cached_property
    def _root(self) -> pathlib.Path:
        root = existing(self.folder)
        if not root.is_dir():
            raise DataError(f"{self.folder!r} is a file; an image folder was expected", code=ExitCode.NO_INPUT)
        return root

    @functools.cached_property
    def _pictures(self) -> list[str]:
        return listing(self._root, IMAGE_SUFFIXES)

    @functools.cached_property
    def _captions_file(self) -> pathlib.Path | None:
        if self.captions is not None:
            return existing(str(self._root / self.captions))
        return next((self._root / name for name in CAPTION_FILES if (self._root / name).is_file()), None)

    @functools.cached_property
    def _rows(self) -> list[Mapping[str, Any]]:
        if self._captions_file:
            rows = read_captions(self._captions_file)
            for number, row in enumerate(rows, 1):
                if not isinstance(row.get("image"), str):
                    raise DataError(f"{self._captions_file}, caption {number} names no picture: {str(row)[:80]}")
            return [_labelled(row) for row in rows]
        if not self._pictures:
            raise DataError(f"{self.folder!r} holds no picture{self._others}", code=ExitCode.NO_INPUT)
        texts = {name[: -len(".txt")]: name for name in listing(self._root, (".txt",))}
        rows = [{"image": name} for name in self._pictures]
        stems = [name.rpartition(".")[0] for name in self._pictures]
        return [
            _labelled(row | ({"text_file": texts[stem]} if stem in texts else {}))
            for row, stem in zip(rows, stems, strict=True)
        ]

    @property
    def _others(self) -> str:
        """What there is instead of pictures that can be read."""
        others = listing(self._root, OTHER_IMAGE_SUFFIXES)
        convert = f"; {len(others)} files such as {others[0]} are of other kinds: convert them first" if others else ""
        return f" ({', '.join(IMAGE_SUFFIXES)}) at any depth{convert}"

    @property
    def _found(self) -> Schema:
        captioned = sum("caption" in row or "text_file" in row for row in self._rows)
        classes = {row.get("label") for row in self._rows}
        fields = [Field("image", Media("image"))]
        if captioned:
            fields.append(Field("caption", Text(), optional=captioned < len(self._rows)))
        elif len(classes) > 1:
            fields.append(Field("label", Class(), optional=None in classes))
        return Schema(tuple(fields))


def _labelled(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The row with its first sub-folder as class, unless the captions file says one."""
    head, slash, _ = row["image"].partition("/")
    return {"label": head, **row} if slash else row


def _size(path: pathlib.Path) -> int:
    try:
        return path.stat().st_size
    except (OSError, ValueError):  # listed but not there, or no name of a file at all
        return -1
