"""Will this data train? What `mmjax data check` finds out, as values; `inspection_page` draws them."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import io
import itertools
import statistics
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from PIL import Image

from data_pipelines import images
from data_pipelines.protocols import BadRecord, Locates, Source
from data_pipelines.schema import Chat, Class, Media, Number, Schema, Text, spoken
from mmjax.core.errors import UserError

LISTED = 20
"""Bad records that are told one by one."""

SIZES = (32, 64, 128, 256, 512, 1024, 2048)
"""Borders, in pixels of the shorter side, of the size histogram."""

LONG_CAPTION = 16_384
"""Bytes of a caption above which only its beginning is used."""


@dataclasses.dataclass(frozen=True)
class Bad:
    """A record that cannot be used."""

    index: int
    where: str
    fault: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Spread:
    """Least, middle and most of some numbers."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        """None when there are no values."""
        return cls(min(values), statistics.median(values), max(values)) if values else None


@dataclasses.dataclass(frozen=True)
class Pictures:
    """What an image field holds, over the records that have one."""

    count: int
    width: Spread | None
    height: Spread | None
    sizes: Mapping[str, int]  # pictures by pixels of their shorter side
    modes: Mapping[str, int]  # such as "PNG RGB"
    bytes_each: Spread | None
    distinct: int  # by exact bytes
    blank: int  # of one colour only
    repeated: Sequence[str]  # records whose picture occurred before


@dataclasses.dataclass(frozen=True)
class Words:
    """What a text field holds, over the records that have one."""

    count: int
    characters: Spread | None
    words: Spread | None
    distinct: int
    cut: int  # longer than LONG_CAPTION bytes
    scripts: Mapping[str, int]  # captions by the script of most of their letters
    commonest: Sequence[tuple[str, int]]  # texts that occur more than once


@dataclasses.dataclass(frozen=True)
class Labels:
    """How often each class or number occurs."""

    count: int
    distinct: int
    occurrences: Mapping[str, int]  # the most frequent first
    absent: Sequence[str]  # declared classes without a record


@dataclasses.dataclass(frozen=True)
class Inspection:
    """The whole page. `problems` are why it will not train; `remarks` are worth knowing."""

    path: str
    kind: str
    schema: str
    records: int
    looked_at: int
    good: int
    faults: Mapping[str, int]
    bad: Sequence[Bad]
    fields: Mapping[str, Pictures | Words | Labels]
    problems: Sequence[str]
    remarks: Sequence[str]

    @property
    def trains(self) -> bool:
        """The verdict."""
        return not self.problems

    def as_json(self) -> dict[str, Any]:
        """The same as a JSON tree, with the verdict under "trains"."""
        return {"trains": self.trains} | dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class _Seen:
    """One good record, measured: no pixels or texts longer than needed are kept."""

    index: int
    fields: Mapping[str, Any]


def inspect(source: Source, schema: Schema, path: str, limit: int | None, allowed: float) -> Inspection:
    """Reads and decodes up to `limit` records, evenly spread (None: all of them).

    allowed: the share of bad records that training forgives. Raises DataError when the whole source cannot be read.
    """
    from data_pipelines.verdict import verdict

    total = len(source)
    indices = np.unique(np.linspace(0, total - 1, min(limit or total, total)).astype(int)).tolist()
    seen, bad = [], []
    with ThreadPoolExecutor() as threads:
        for result in threads.map(lambda index: _look(source, schema, index), indices):
            (bad if isinstance(result, Bad) else seen).append(result)
    fields = {field.name: _summary(field, source, seen) for field in schema.fields}
    facts = Inspection(
        path, type(source).__name__, str(schema), total, len(indices), len(seen),
        dict(collections.Counter(one.fault for one in bad).most_common()), bad, fields, (), (),
    )  # fmt: skip
    problems, remarks = verdict(facts, schema, allowed, tuple(getattr(source, "unlisted", ())))
    return dataclasses.replace(facts, problems=problems, remarks=remarks)


def _look(source: Source, schema: Schema, index: int) -> _Seen | Bad:
    try:
        record = source[index]
        measures: dict[str, Any] = {}
        for field in schema.fields:
            if record.get(field.name) is not None:
                measures[field.name] = _measure(field.kind)(record[field.name])
        return _Seen(index, measures)
    except BadRecord as error:
        return Bad(index, locate(source, index), error.fault, error.reason)
    except (UserError, OSError) as error:  # training would stop here; the page goes on, to tell all of it
        return Bad(index, locate(source, index), "stops training", str(error))


def locate(source: Source, index: int) -> str:
    """Where a record lies, for people."""
    return source.locate(index) if isinstance(source, Locates) else f"record {index}"


def _measure(kind: Any) -> Callable[[Any], Any]:
    if isinstance(kind, Media):
        return _measure_picture if kind.modality == "image" else len
    if isinstance(kind, Chat):
        return lambda value: _measure_text("\n".join(spoken(value)))
    return _measure_text if isinstance(kind, Text) else lambda value: value


def _measure_picture(data: Any) -> tuple[int, int, str, int, bytes, bool]:
    """Width, height, format and mode, bytes, hash, whether one colour fills it."""
    if isinstance(data, np.ndarray):
        picture, mode, data = images.from_array(data), "array", data.tobytes()
    else:
        picture = images.decode(data)
        with Image.open(io.BytesIO(data)) as header:
            mode = f"{header.format} {header.mode}"
    (height, width, _), blank = picture.shape, bool((picture == picture[0, 0]).all())
    return width, height, mode, len(data), hashlib.blake2b(data, digest_size=16).digest(), blank


def _measure_text(text: str) -> tuple[int, int, int, str, str]:
    """Characters, words, bytes, script, and the text (its beginning)."""
    size = len(text.encode("utf-8", "surrogatepass"))
    return len(text), len(text.split()), size, script(text[:200]), text if size <= 400 else text[:100] + str(hash(text))


def script(text: str) -> str:
    """The writing system of most letters, as Unicode names it (Latin, CJK, Arabic, ...); "none" without letters."""
    letters = (unicodedata.name(letter, "none").split()[0] for letter in text if letter.isalpha())
    commonest = collections.Counter(letters).most_common(1)
    name = commonest[0][0] if commonest else "none"
    return name if name == "CJK" else name.capitalize() if commonest else "none"


def _summary(field: Any, source: Source, seen: Sequence[_Seen]) -> Pictures | Words | Labels:
    values = [(one.index, one.fields[field.name]) for one in seen if field.name in one.fields]
    if isinstance(field.kind, Text | Chat):
        return _words([value for _, value in values])
    if isinstance(field.kind, Class | Number):
        return _labels([value for _, value in values], source.names().get(field.name, ()))
    if field.kind.modality == "image":
        return _pictures(source, values)
    return Labels(len(values), len(values), {}, ())


def _pictures(source: Source, values: Sequence[tuple[int, Any]]) -> Pictures:
    widths, heights, modes, sizes, hashes, blanks = (
        zip(*(value for _, value in values), strict=True) if values else ([],) * 6
    )
    first: dict[bytes, int] = {}
    repeated = [(index, value[4]) for index, value in values if first.setdefault(value[4], index) != index]
    names = [f"{locate(source, index)} = {locate(source, first[key])}" for index, key in repeated[:LISTED]]
    shorter = [min(size) for size in zip(widths, heights, strict=True)]
    return Pictures(
        len(values), Spread.of(widths), Spread.of(heights), dict(_histogram(shorter)),
        dict(collections.Counter(modes).most_common()), Spread.of(sizes), len(set(hashes)), sum(blanks), names,
    )  # fmt: skip


def _histogram(sides: Sequence[int]) -> Iterator[tuple[str, int]]:
    edges = (0, *SIZES, 1 << 62)
    for low, high in itertools.pairwise(edges):
        name = f"under {high}" if not low else f"{low} and more" if high == edges[-1] else f"{low}..{high - 1}"
        yield name, sum(low <= side < high for side in sides)


def _words(values: Sequence[Any]) -> Words:
    characters, words, sizes, scripts, texts = zip(*values, strict=True) if values else ([],) * 5
    counts = collections.Counter(texts)
    commonest = [(text[:80], count) for text, count in counts.most_common(5) if count > 1]
    return Words(
        len(values), Spread.of(characters), Spread.of(words), len(counts), sum(size > LONG_CAPTION for size in sizes),
        dict(collections.Counter(scripts).most_common()), commonest,
    )  # fmt: skip


def _labels(values: Sequence[Any], names: Sequence[str]) -> Labels:
    counts = collections.Counter(values)
    occurrences = {(names[value] if names else str(value)): count for value, count in counts.most_common()}
    return Labels(len(values), len(counts), occurrences, tuple(name for name in names if name not in occurrences))
