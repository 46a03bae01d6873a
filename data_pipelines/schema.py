"""One declaration of what a record holds, whatever it is stored in.

    image:image, caption:text, label:class?                  name:kind, `?` marks what a record may lack
    image:image=jpg|png, caption:text=title                  `=` names the columns (or tar suffixes) it is read from
    label:class[cat|dog], score:number[0..1], age:int[0..]   names and ranges

Kinds: `image`, `audio`, `video` (encoded bytes, or the name of a file beside the data), `text`, `chat` (a list of
messages), `class` (a name, which becomes its index), `int` and `number`. As JSON the same: `{"image": "image", "label":
"class[cat|dog]?=species"}`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import numbers
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

from data_pipelines.protocols import BadRecord
from mmjax.core.errors import DataError, UserError, nearest, unknown_name

Opener = Callable[[str], bytes]
"""The bytes of a file that a record refers to by name. Raises BadRecord("missing_file")."""


class Kind(Protocol):
    """What a field holds: `read` turns a stored value into the record's value or raises BadRecord."""

    def read(self, value: Any, opener: Opener | None) -> Any: ...

    def __str__(self) -> str: ...


@dataclasses.dataclass(frozen=True)
class Media:
    """Encoded bytes of an image, a sound or a film: stored as such, as `{"bytes": ..., "path": ...}` (Hugging Face
    tables) or as the name of a file."""

    modality: str = "image"

    def read(self, value: Any, opener: Opener | None) -> bytes:
        if isinstance(value, Mapping):
            value = value.get("bytes") or value.get("path")
        if isinstance(value, str) and value.strip() and opener is not None:
            value = opener(value)
        if isinstance(value, memoryview | bytearray):
            value = bytes(value)
        if not isinstance(value, bytes):
            wanted = "bytes" if opener is None else "bytes or a file name"
            raise BadRecord("bad_schema", f"expected {wanted} of {_article(self.modality)}, found {_found(value)}")
        if not value:
            raise BadRecord("empty", f"the {self.modality} has no bytes")
        return value

    def __str__(self) -> str:
        return self.modality


@dataclasses.dataclass(frozen=True)
class Text:
    """Unicode text (UTF-8 where stored as bytes)."""

    def read(self, value: Any, opener: Opener | None) -> str:
        if isinstance(value, bytes):
            try:
                value = value.decode("utf-8-sig")
            except UnicodeDecodeError as error:
                raise BadRecord("bad_value", f"not UTF-8 text ({error.reason} at byte {error.start})") from None
        if not isinstance(value, str):
            raise BadRecord("bad_schema", f"expected text, found {_found(value)}")
        if not value.strip():
            raise BadRecord("empty", "the text is empty")
        return value

    def __str__(self) -> str:
        return "text"


@dataclasses.dataclass(frozen=True)
class Chat:
    """Messages in order, {"role": "user", "content": "what is it?"}, or the JSON text of them. Who may speak, and what
    a message may hold, is the template's to say (`templates.Conversation`)."""

    def read(self, value: Any, opener: Opener | None) -> list[Mapping[str, Any]]:
        if isinstance(value, str | bytes):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError) as error:
                raise BadRecord("bad_value", f"not the JSON of a list of messages: {error}") from None
        if not isinstance(value, list | tuple) or not all(isinstance(message, Mapping) for message in value):
            raise BadRecord("bad_schema", f"expected a list of messages, found {_found(value)}")
        if not value:
            raise BadRecord("empty", "the conversation has no message")
        return list(value)

    def __str__(self) -> str:
        return "chat"


def spoken(value: Any) -> Iterator[str]:
    """The texts that a value holds: itself, or those of its messages and their parts."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, part in value.items():
            yield from spoken(part) if name not in ("role", "from", "type", "id") else ()
    elif isinstance(value, list | tuple):
        for part in value:
            yield from spoken(part)


@dataclasses.dataclass(frozen=True)
class Number:
    """A finite number in [low, high]; `whole` numbers become int, others float."""

    whole: bool = False
    low: float | None = None
    high: float | None = None

    def read(self, value: Any, opener: Opener | None) -> int | float:
        number = self._number(value)
        if number is None or (self.whole and number != int(number)):
            wanted = "a whole number" if self.whole else "a finite number"
            raise BadRecord("bad_schema", f"expected {wanted}, found {_found(value)}")
        if (self.low is not None and number < self.low) or (self.high is not None and number > self.high):
            raise BadRecord("bad_value", f"{number:g} lies outside {self._range()}")
        return int(number) if self.whole else float(number)

    @staticmethod
    def _number(value: Any) -> float | int | None:
        if isinstance(value, bytes):
            value = value.decode("ascii", "replace")
        try:
            number = int(value) if isinstance(value, numbers.Integral) else float(value)
        except (TypeError, ValueError):
            return None
        return None if isinstance(value, bool) or not math.isfinite(number) else number

    def _range(self) -> str:
        low, high = ("" if end is None else f"{end:g}" for end in (self.low, self.high))
        return f"[{low}..{high}]"

    def __str__(self) -> str:
        return ("int" if self.whole else "number") + ("" if self.low is None and self.high is None else self._range())


@dataclasses.dataclass(frozen=True)
class Class:
    """One of `names`, which becomes its index; without names a source collects and sorts those that occur."""

    names: tuple[str, ...] = ()

    def read(self, value: Any, opener: Opener | None) -> int:
        name = self.name(value)
        if name is None:
            raise BadRecord("bad_schema", f"expected a class name, found {_found(value)}")
        if name not in self.names:
            raise BadRecord("bad_value", unknown_name("class", name, self.names))
        return self.names.index(name)

    @staticmethod
    def name(value: Any) -> str | None:
        """The class name that a stored value means, or None."""
        if isinstance(value, bytes):
            value = value.decode("utf-8", "replace")
        if isinstance(value, numbers.Integral) and not isinstance(value, bool):
            value = str(int(value))
        return value.strip() if isinstance(value, str) and value.strip() else None

    def __str__(self) -> str:
        return "class" + (f"[{'|'.join(self.names)}]" if self.names else "")


def _found(value: Any) -> str:
    shown = repr(value)
    return f"{type(value).__name__} {shown if len(shown) <= 40 else shown[:37] + '...'}"


def _article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


@dataclasses.dataclass(frozen=True)
class Field:
    """One value of a record: its name there, its kind, and the columns it may stand in (its own name by default)."""

    name: str
    kind: Any
    optional: bool = False
    columns: tuple[str, ...] = ()

    @property
    def places(self) -> tuple[str, ...]:
        """Where it is looked for, in order."""
        return self.columns or (self.name,)

    def __str__(self) -> str:
        source = "=" + "|".join(self.columns) if self.columns else ""
        return f"{self.name}:{self.kind}{'?' if self.optional else ''}{source}"


@dataclasses.dataclass(frozen=True)
class Schema:
    """What every record of a source holds."""

    fields: tuple[Field, ...]

    @classmethod
    def parse(cls, text: str) -> Schema:
        """Reads the one-line form, or JSON (or a .json file) that maps names to kinds. All faults in one UserError."""
        text = text.strip()
        if text.endswith(".json"):
            text = _read_json_file(text)
        parts = _json_parts(text) if text.startswith("{") else _line_parts(text)
        fields, faults = [], []
        for name, form in parts:
            try:
                fields.append(_field(name, form))
            except UserError as error:
                faults.append(str(error))
        doubled = {field.name for field in fields if [f.name for f in fields].count(field.name) > 1}
        faults += [f"schema: {name} is declared twice" for name in sorted(doubled)]
        if not fields and not faults:
            faults = ["the schema is empty; write for example: image:image,caption:text,label:class?"]
        if faults:
            raise UserError("\n".join(faults))
        return cls(tuple(fields))

    def __str__(self) -> str:
        return ", ".join(map(str, self.fields))

    def of_kind(self, kind: type, modality: str | None = None) -> list[Field]:
        """The fields of a kind, in order."""
        same = [field for field in self.fields if isinstance(field.kind, kind)]
        return [field for field in same if modality is None or field.kind.modality == modality]

    def only(self, names: Iterable[str]) -> Schema:
        """The schema of these fields alone."""
        return Schema(tuple(field for field in self.fields if field.name in names))

    @property
    def places(self) -> set[str]:
        """Every column that may be read."""
        return {place for field in self.fields for place in field.places}

    def read(self, row: Mapping[str, Any], opener: Opener | None = None) -> dict[str, Any]:
        """The record in `row`; what an optional field lacks is left out. All faults of the row in one BadRecord."""
        record, faults = {}, []
        for field in self.fields:
            try:
                value = self._value(field, row)
                if value is not None:
                    record[field.name] = field.kind.read(value, opener)
            except BadRecord as bad:
                if not (field.optional and bad.fault == "empty"):
                    faults.append((bad.fault, f"{field.name}: {bad.reason}"))
        if faults:
            raise BadRecord(faults[0][0], "; ".join(detail for _, detail in faults))
        return record

    def _value(self, field: Field, row: Mapping[str, Any]) -> Any:
        for place in field.places:
            if row.get(place) is not None:
                return row[place]
        if field.optional:
            return None
        if any(place in row for place in field.places):
            raise BadRecord("empty", "the value is null")
        raise BadRecord("bad_schema", self._missing(field, row))

    def _missing(self, field: Field, columns: Iterable[str]) -> str:
        wanted = " or ".join(map(repr, field.places))
        free = [name for name in columns if name not in self.places]
        near = nearest(field.places[0], free) or nearest(field.name, free)
        there = ", ".join(sorted(columns)[:12]) or "nothing"
        hint = f"; did you mean {near[0]!r}? ({field.name}:{field.kind}={near[0]})" if near else ""
        return f"expected {_article(str(field.kind))} under {wanted}, found only {there}{hint}"

    def check_columns(self, columns: Iterable[str], where: str) -> None:
        """Raises DataError for each required field that no column holds, with the nearest column names."""
        columns = list(columns)
        absent = [f for f in self.fields if not f.optional and not any(place in columns for place in f.places)]
        if absent:
            lines = [f"{where}: {field.name}: {self._missing(field, columns)}" for field in absent]
            raise DataError("\n".join(lines))

    def with_names(self, collect: Callable[[Field], Iterable[str]]) -> Schema:
        """The schema whose nameless classes have the sorted names that `collect` finds in the data."""
        return Schema(tuple(_named(field, collect) for field in self.fields))

    def names(self) -> dict[str, tuple[str, ...]]:
        """What the integers of each class field mean."""
        return {field.name: field.kind.names for field in self.of_kind(Class)}


def _named(field: Field, collect: Callable[[Field], Iterable[str]]) -> Field:
    if not isinstance(field.kind, Class) or field.kind.names:
        return field
    found = sorted(set(collect(field)))
    if not found and not field.optional:
        raise DataError(
            f"{field.name}: not one record has a class name; found nothing under {' or '.join(field.places)}"
        )
    return dataclasses.replace(field, kind=Class(tuple(found)))


# ------------------------------------------------------------------------------------------------------------ text form

KINDS = {
    "image": Media("image"), "audio": Media("audio"), "video": Media("video"), "text": Text(), "chat": Chat(),
    "class": Class(), "int": Number(whole=True), "number": Number(),
}  # fmt: skip

_FORM = re.compile(r"(?P<kind>\w+)(\[(?P<inside>[^\]]*)\])?(?P<optional>\?)?(=(?P<columns>.+))?")


def _field(name: str, form: str) -> Field:
    match = _FORM.fullmatch(form.strip())
    if not name or match is None:
        raise UserError(
            f"schema: cannot read {f'{name}:{form}'!r}; write name:kind, such as label:class[cat|dog]?=species"
        )
    word, inside = match["kind"], match["inside"]
    if word not in KINDS:
        raise UserError(f"schema: {name}: " + unknown_name("kind", word, KINDS))
    kind = KINDS[word] if inside is None else _narrowed(KINDS[word], inside, name)
    columns = tuple(part.strip() for part in (match["columns"] or "").split("|") if part.strip())
    return Field(name, kind, bool(match["optional"]), columns)


def _narrowed(kind: Kind, inside: str, name: str) -> Kind:
    if isinstance(kind, Class):
        names = tuple(dict.fromkeys(part.strip() for part in inside.split("|") if part.strip()))
        return dataclasses.replace(kind, names=names)
    low, dots, high = inside.partition("..")
    try:
        ends = [float(end) if end.strip() else None for end in (low, high)]
    except ValueError:
        ends = []
    if not isinstance(kind, Number) or not dots or not ends:
        raise UserError(f"schema: {name}:{kind}[{inside}]: brackets hold class names (a|b) or a range (0..1)")
    return dataclasses.replace(kind, low=ends[0], high=ends[1])


def _line_parts(text: str) -> list[tuple[str, str]]:
    parts = [part.partition(":") for part in re.split(r",(?![^\[]*\])", text) if part.strip()]
    return [(name.strip(), form.strip()) for name, _, form in parts]


def _json_parts(text: str) -> list[tuple[str, str]]:
    try:
        tree = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"the schema is not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None
    return [(str(name), str(form)) for name, form in tree.items()]


def _read_json_file(name: str) -> str:
    try:
        return pathlib.Path(name).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise UserError(f"the schema file {name} cannot be read: {error.strerror}") from None
