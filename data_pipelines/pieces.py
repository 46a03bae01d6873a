"""Pieces of a template: literal text, marks, media, and what fields of a record hold.

A piece is asked for its contents, in order: texts, marks of the tokenizer, and places of the record's media items.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from data_pipelines.protocols import BadRecord, Record
from mmjax.core.batch import MEDIA


@dataclasses.dataclass(frozen=True)
class Item:
    """The place of a record's media item."""

    kind: str
    number: int


class Shelf:
    """A record's media items while they are being given places."""

    def __init__(self, counts: Mapping[str, int]):
        self.left = {kind: list(range(count)) for kind, count in counts.items()}

    def next(self, kind: str) -> Item | None:
        """The first item of `kind` that has no place yet."""
        items = self.left.get(kind)
        return Item(kind, items.pop(0)) if items else None

    def take(self, kind: str, number: int) -> Item | None:
        """That very item, unless there is none or it has a place."""
        if number not in self.left.get(kind, ()):
            return None
        self.left[kind].remove(number)
        return Item(kind, number)


@dataclasses.dataclass(frozen=True)
class Words:
    """Literal text."""

    text: str

    def contents(self, record: Record, shelf: Shelf) -> Iterator[Content]:
        """See `Piece`."""
        yield self.text


@dataclasses.dataclass(frozen=True)
class Mark:
    """A mark of the tokenizer: "begin", "end", or one of `tokenizers.Marked`."""

    name: str

    def contents(self, record: Record, shelf: Shelf) -> Iterator[Content]:
        """See `Piece`."""
        yield self


@dataclasses.dataclass(frozen=True)
class Media:
    """The record's next item of `kind`; nothing where it has none."""

    kind: str = "image"

    def contents(self, record: Record, shelf: Shelf) -> Iterator[Content]:
        """See `Piece`."""
        item = shelf.next(self.kind)
        if item:
            yield item


@dataclasses.dataclass(frozen=True)
class Rest:
    """All items of `kind` that have no place yet."""

    kind: str = "image"

    def contents(self, record: Record, shelf: Shelf) -> Iterator[Content]:
        """See `Piece`."""
        while item := shelf.next(self.kind):
            yield item


@dataclasses.dataclass(frozen=True)
class Field:
    """What a field holds: a text, or a sequence of texts and media: "a cat", {"type": "text", "text": "a cat"},
    {"type": "image"} (the next one), {"type": "image", "item": 2}.

    placeholders: strings that stand for the next item in a text, {"<image>": "image"}; only for texts that nobody else
    wrote. Raises BadRecord for a field that is missing or holds something else."""

    name: str
    placeholders: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def contents(self, record: Record, shelf: Shelf) -> Iterator[Content]:
        """See `Piece`."""
        value = record.get(self.name)
        if value is None:
            raise BadRecord("empty", f"{self.name!r} is missing")
        yield from contents_of(value, shelf, self.placeholders, repr(self.name))


Content = str | Mark | Item


class Piece(Protocol):
    """A part of a turn."""

    def contents(self, record: Record, shelf: Shelf) -> Iterator[Content]:
        """The texts, marks and media it stands for, in order."""
        ...


def contents_of(value: Any, shelf: Shelf, placeholders: Mapping[str, str], where: str) -> Iterator[Content]:
    """What a value as for `Field` stands for; `where` it stands is for messages."""
    for part in value if isinstance(value, list | tuple) else (value,):
        kind = part.get("type") if isinstance(part, Mapping) else None
        text = part.get("text") if kind == "text" else part
        if isinstance(text, str):
            yield from _replaced(text, shelf, placeholders, where)
        elif kind in MEDIA:
            yield _found(shelf.take(kind, part["item"]) if "item" in part else shelf.next(kind), kind, where)
        else:
            raise BadRecord("bad_schema", f"{where} must hold text or a list of texts and media; it holds {part!r:.60}")


def _replaced(text: str, shelf: Shelf, placeholders: Mapping[str, str], where: str) -> Iterator[Content]:
    pattern = "|".join(map(re.escape, placeholders))
    for piece in re.split(f"({pattern})", text) if placeholders else [text]:
        if piece in placeholders:
            yield _found(shelf.next(placeholders[piece]), placeholders[piece], where)
        elif piece:
            yield piece


def _found(item: Item | None, kind: str, where: str) -> Item:
    if item is None:
        raise BadRecord("bad_schema", f"{where} speaks of {kind} that the record does not have, or names one twice")
    return item
