"""Looking at some fields of records without reading the rest: texts for a tokenizer, the names of classes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from data_pipelines.protocols import BadRecord
from data_pipelines.schema import Class, Field, spoken


class Peeks(Protocol):
    """A source that can read some fields of a record alone."""

    def __len__(self) -> int: ...

    def peek(self, index: int, fields: tuple[str, ...]) -> Mapping[str, Any]:
        """The record with these fields only. Raises like `__getitem__`."""
        ...


def texts(source: Peeks, field: str) -> Iterator[str]:
    """Every text of a field, of a conversation those of its messages; records that are bad are left out (they are told
    when they are trained on)."""
    for record in readable(lambda index: source.peek(index, (field,)), len(source)):
        yield from spoken(record.get(field))


def class_names(rows: Iterator[Mapping[str, Any]], field: Field) -> Iterator[str]:
    """The class name that each stored row has for `field`."""
    for row in rows:
        yield from (name for place in field.places if (name := Class.name(row.get(place))) is not None)


def readable(read: Callable[[int], Mapping[str, Any]], count: int) -> Iterator[Mapping[str, Any]]:
    """`read(0)`, `read(1)`, ... without those that raise BadRecord."""
    for index in range(count):
        try:
            yield read(index)
        except BadRecord:
            continue
