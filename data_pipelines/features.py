"""The features that batches of pictures and texts are made of.   n rows of a chunk, S samples of a row, T text slots"""

from __future__ import annotations

import bisect
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from data_pipelines import images, native
from data_pipelines.chunks import Chunk
from data_pipelines.protocols import BadRecord
from data_pipelines.tokenizers import Subwords, Tokenizer, from_memory
from mmjax.core.batch import Batch, Images, Text
from mmjax.core.errors import UserError, unknown_name


@dataclasses.dataclass(frozen=True)
class ImageFeature:
    """A picture per row, `height` x `width` pixels; it belongs to the row's first sample.

    The field holds encoded bytes, or uint8 arrays [H W 3] (a stacked array of the right size is taken as it is)."""

    field: str = "image"
    height: int = 224
    width: int = 224
    fit: images.Fit = images.Squash()
    max_pixels: int = images.MAX_PIXELS

    def spec(self) -> Mapping[str, Any]:
        """See `Feature`."""
        return {"image": (1, self.height, self.width)}

    def build(self, chunk: Chunk) -> Mapping[str, Any]:
        """See `Feature`."""
        column, shape = chunk.column(self.field), (self.height, self.width, 3)
        if isinstance(column, np.ndarray) and column.dtype == np.uint8 and column.shape[1:] == shape and self._as_is:
            pixels, valid = column, np.ones(len(chunk), bool)
        else:
            pixels, valid = np.zeros((len(chunk), *shape), np.uint8), np.zeros(len(chunk), bool)
            for row, value in enumerate(column):
                if value is not None and row not in chunk.errors:
                    valid[row] = self._into(pixels[row], value, chunk, row)
        return {"image": Images(pixels[:, None], valid[:, None], valid[:, None].astype(np.int32))}

    def show(self, part: Mapping[str, Any], row: int) -> Mapping[str, Any]:
        """See `Feature`."""
        return {"image": part["image"].pixels[row, 0]} if part["image"].valid[row, 0] else {}

    def fingerprint(self) -> Mapping[str, str]:
        """Who decodes and resizes: pixels differ by a grey level between packages."""
        return {"pixels by": native.packages()}

    @property
    def _as_is(self) -> bool:
        return not isinstance(self.fit, images.RandomCrop)

    def _into(self, place: np.ndarray, value: Any, chunk: Chunk, row: int) -> bool:
        try:
            place[:] = self.fit(self._picture(value), self.height, self.width, chunk.rng(row, "image"))
        except BadRecord as error:
            chunk.fail(row, error)
            return False
        return True

    def _picture(self, value: Any) -> images.Picture:
        if isinstance(value, bytes | bytearray | memoryview):
            smallest = (self.height, self.width) if self._as_is else None
            return images.decode(bytes(value), self.max_pixels, smallest)
        if isinstance(value, np.ndarray):
            return images.from_array(value, self.max_pixels)
        kind = type(value).__name__
        raise BadRecord("bad_schema", f"{self.field!r} must hold encoded bytes or a uint8 array; it holds {kind}")


class Reading(Protocol):
    """How text attends to itself, and where it is predicted. causal: whether a place sees none behind it."""

    causal: bool

    def block(self, place: np.ndarray) -> np.ndarray: ...

    def loss(self, place: np.ndarray) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class Bidirectional:
    """Every place sees every place; nothing is predicted."""

    causal = False

    def block(self, place: np.ndarray) -> np.ndarray:
        """See `Reading`."""
        return np.zeros_like(place)

    def loss(self, place: np.ndarray) -> np.ndarray:
        """See `Reading`."""
        return np.zeros(place.shape, np.float32)


@dataclasses.dataclass(frozen=True)
class Causal:
    """Each place sees what stands before it; every id but the first is predicted."""

    causal = True

    def block(self, place: np.ndarray) -> np.ndarray:
        """See `Reading`."""
        return place

    def loss(self, place: np.ndarray) -> np.ndarray:
        """See `Reading`."""
        return (place > 0).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class TextFeature:
    """`samples` texts per row of `length` ids each; the text of sample s stands in slots [(s-1) length, s length).

    A text that is too long is cut at the end (`lost` counts). begin, end: ids put around it, kept when it is cut.
    The field holds text; with several samples, a tuple of at most so many (None where one is missing)."""

    tokenizer: Tokenizer
    field: str = "caption"
    length: int = 64
    samples: int = 1
    reading: Reading = Bidirectional()
    begin: tuple[int, ...] = ()
    end: tuple[int, ...] = ()
    subwords: Subwords | None = None

    def __post_init__(self):
        if self.length <= len(self.begin) + len(self.end):
            raise UserError(f"{self.length} slots hold no text between {len(self.begin)} + {len(self.end)} marks")

    def spec(self) -> Mapping[str, Any]:
        """See `Feature`."""
        return {"text": self.samples * self.length, "samples": self.samples}

    def build(self, chunk: Chunk) -> Mapping[str, Any]:
        """See `Feature`."""
        shape = (len(chunk), self.samples, self.length)
        chance = self._chances(chunk) if self.subwords else np.zeros(shape[:2])
        found = [
            self._encoded(text, chance[row, number])
            for row, value in enumerate(chunk.column(self.field))
            for number, text in enumerate(self._texts(value, chunk, row))
        ]
        ids = np.concatenate([row for row, _ in found]).reshape(shape)
        count = np.array([size for _, size in found]).reshape(shape[:2])
        place = np.broadcast_to(np.arange(self.length, dtype=np.int32), shape)
        real = place < count[..., None]
        segment = real * np.arange(1, self.samples + 1, dtype=np.int32)[:, None]
        block, loss = self.reading.block(place) * real, self.reading.loss(place) * real

        def flat(array: np.ndarray, dtype=np.int32) -> np.ndarray:
            return array.reshape(len(chunk), -1).astype(dtype, copy=False)

        slot = np.full((len(chunk), self.samples * self.length), -1, np.int32)
        return {"text": Text(flat(ids), slot, flat(segment), flat(block), flat(place * real), flat(loss, np.float32))}

    def lost(self, chunk: Chunk) -> np.ndarray:
        """[n samples] how many ids of each text do not fit."""
        room = self.length - len(self.begin) - len(self.end)
        texts = [self._texts(value, chunk, row) for row, value in enumerate(chunk.column(self.field))]
        sizes = [[0 if text is None else len(self.tokenizer.encode(text)) for text in row] for row in texts]
        return np.maximum(0, np.array(sizes).reshape(len(chunk), self.samples) - room)

    def show(self, part: Mapping[str, Any], row: int) -> Mapping[str, Any]:
        """See `Feature`."""
        ids, segment = part["text"].ids[row], part["text"].segment[row]
        texts = [self.tokenizer.decode(ids[segment == number]) for number in range(1, self.samples + 1)]
        return {self.field: texts[0] if self.samples == 1 else tuple(texts)}

    def texts(self, texts: Sequence[str]) -> Batch:
        """A batch whose rows are these texts, one sample each and cut without chance: for prompts and searches."""
        plain = dataclasses.replace(self, samples=1, subwords=None)
        rows = np.arange(len(texts), dtype=np.int32)[:, None]
        built = plain.build(Chunk({self.field: list(texts)}, np.zeros(len(texts), np.uint64)))
        return Batch(**built, id=rows, fault=np.zeros(rows.shape, np.uint8))

    def fingerprint(self) -> Mapping[str, str]:
        """What the tokenizer was made from."""
        return self.tokenizer.fingerprint()

    def _texts(self, value: Any, chunk: Chunk, row: int) -> Sequence[str | None]:
        """`samples` texts; a value of another kind makes the row null."""
        texts = (value,) if value is None or isinstance(value, str) else value
        if not isinstance(texts, tuple | list) or not all(text is None or isinstance(text, str) for text in texts):
            chunk.fail(row, BadRecord("bad_schema", f"{self.field!r} must hold text; it holds {type(value).__name__}"))
            texts = ()
        if len(texts) > self.samples:
            fault = f"{self.field!r} holds {len(texts)} texts; this feature has room for {self.samples}"
            chunk.fail(row, BadRecord("bad_schema", fault))
        return (*texts[: self.samples], *([None] * (self.samples - len(texts))))

    def _chances(self, chunk: Chunk) -> np.ndarray:
        return np.stack([chunk.uniform(f"{self.field} {number}") for number in range(self.samples)], axis=1)

    def _encoded(self, text: str | None, chance: float) -> tuple[np.ndarray, int]:
        """(ids filled up to `length`, how many are real)."""
        rows, limits = from_memory(self._memory, text, self._ways)
        return rows[min(bisect.bisect_right(limits, chance), len(rows) - 1)]

    def _ways(self, text: str | None) -> tuple[list[tuple[np.ndarray, int]], list[float]]:
        if text is None:
            return [self._row(())], [1.0]
        if self.subwords is None:
            return [self._row(self.tokenizer.encode(text))], [1.0]
        ways, limits = self.subwords.ways(self.tokenizer, text)
        return [self._row(way) for way in ways], limits.tolist()

    def _row(self, ids: Sequence[int]) -> tuple[np.ndarray, int]:
        room = self.length - len(self.begin) - len(self.end)
        marked = [*self.begin, *ids[:room], *self.end] if len(ids) else []
        row = np.full(self.length, self.tokenizer.pad, np.int32)
        row[: len(marked)] = marked
        return row, len(marked)

    @functools.cached_property
    def _memory(self) -> dict[str | None, tuple[list[tuple[np.ndarray, int]], list[float]]]:
        """Texts already cut up."""
        return {}


@dataclasses.dataclass(frozen=True)
class LabelFeature:
    """A number (or an array of `shape`) per sample under `labels[field]`; -1 (or nan) where a record has none.

    A name is looked up in the source's `names()`. samples: how many of the row's samples have a value of their own;
    with 1, all samples of a row share it."""

    field: str
    dtype: str = "int32"
    shape: tuple[int, ...] = ()
    samples: int = 1

    def spec(self) -> Mapping[str, Any]:
        """See `Feature`."""
        return {"labels": {self.field: (self.shape, self.dtype)}, "samples": self.samples}

    def build(self, chunk: Chunk) -> Mapping[str, Any]:
        """See `Feature`."""
        column, shape = chunk.column(self.field), (len(chunk), self.samples, *self.shape)
        if isinstance(column, np.ndarray) and column.size == np.prod(shape) and column.dtype.kind in "iufb":
            return {"labels": {self.field: column.reshape(shape).astype(self.dtype)}}
        values = np.full(shape, absent(np.dtype(self.dtype)))
        for row, value in enumerate(column):
            try:
                values[row] = self._number(value, chunk, values[row])
            except BadRecord as error:
                chunk.fail(row, error)
        return {"labels": {self.field: values}}

    def show(self, part: Mapping[str, Any], row: int) -> Mapping[str, Any]:
        """See `Feature`."""
        value = part["labels"][self.field][row]
        return {self.field: value[0] if self.samples == 1 else value}

    def _number(self, value: Any, chunk: Chunk, none: np.ndarray) -> np.ndarray:
        if value is None:
            return none
        if isinstance(value, str):
            known = chunk.names.get(self.field, ())
            if not known:
                raise BadRecord(
                    "bad_schema", f"{self.field!r} must hold {self.dtype}; it holds the text {value[:40]!r}"
                )
            if value not in known:
                raise BadRecord("bad_value", unknown_name(self.field, value, known))
            value = known.index(value)
        try:
            number = np.asarray(value).astype(self.dtype)
            return np.broadcast_to(number.reshape(-1, *self.shape), none.shape)
        except (TypeError, ValueError) as error:
            expected = f"{self.field!r} must hold {self.dtype} {list(self.shape)}"
            raise BadRecord("bad_schema", f"{expected}: {error}") from None


def absent(dtype: np.dtype) -> Any:
    """What stands where a label has no value."""
    return np.array({"f": np.nan, "i": -1}.get(dtype.kind, 0), dtype)


def labels(*fields: str, samples: int = 1) -> tuple[LabelFeature, ...]:
    """Integer labels under these names."""
    return tuple(LabelFeature(field, samples=samples) for field in fields)
