"""`ChatFeature`: records as dialogues of text and media in one row.   n rows of a chunk, T text slots, N media items"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from data_pipelines.chunks import Chunk
from data_pipelines.pieces import Item, Mark, Shelf
from data_pipelines.protocols import BadRecord, Feature, Record
from data_pipelines.several import items_of, kind_of
from data_pipelines.spans import MediaSpan, Sample, Span, TextSpan, lay_out, moved, needs
from data_pipelines.templates import Said, Template
from data_pipelines.tokenizers import MAX_BYTES, Tokenizer, from_memory, mark_id, mark_names
from data_pipelines.truncation import DropOldest, Truncation
from mmjax.core.batch import MEDIA, Batch, Text
from mmjax.core.errors import UserError, unknown_name

Array = np.ndarray
Script = Callable[[Record], list[Said]]
SHORT = 256  # characters: longer texts seldom come again


@dataclasses.dataclass(frozen=True)
class ChatFeature:
    """A dialogue per row, of `length` slots, and the media that land in it.

    media: the features that make these, one for each kind (`ImageFeature`, `Several`). per_item: how many slots an item
    of each kind takes; 0 for media that do not land in the row but are looked at from there (cross-attention).
    `truncation` drops what is too long, span by span, media with their spans (`lost` counts); a dialogue that cannot be
    used at all becomes a null example."""

    tokenizer: Tokenizer
    template: Template
    length: int = 512
    per_item: Mapping[str, int] = dataclasses.field(default_factory=dict)
    media: tuple[Feature, ...] = ()
    truncation: Truncation = DropOldest()

    def __post_init__(self):
        kinds = [kind_of(feature) for feature in self.media]
        faults = [unknown_name("mark of the tokenizer", name, mark_names(self.tokenizer)) for name in self._unmarked]
        if sorted(map(str, kinds)) != sorted(self.per_item):
            made = ", ".join(map(str, kinds)) or "nothing"
            faults.append(
                f"per_item must say how many slots an item of {made} takes, as media make; got {self.per_item}"
            )
        if self.length < 1 or any(size < 0 for size in self.per_item.values()):
            faults.append(f"length and per_item count slots; got {self.length} and {self.per_item}")
        if faults:
            raise UserError("\n".join(faults))

    # ------------------------------------------------------------------------------------------------------- Feature

    def spec(self) -> Mapping[str, Any]:
        """See `Feature`."""
        parts = {name: size for feature in self.media for name, size in feature.spec().items()}
        return {"text": (self.length, {kind: size for kind, size in self.per_item.items() if size}), **parts}

    def build(self, chunk: Chunk) -> Mapping[str, Any]:
        """See `Feature`: the token row, and the media that stand in it."""
        return self.assembled(chunk, [[sample] for sample in self.samples(chunk)])

    def samples(self, chunk: Chunk) -> list[Sample]:
        """The dialogue of each row; an empty one where the row cannot be used."""
        return self._samples(chunk, self.template.said)

    def assembled(self, chunk: Chunk, rows: Sequence[Sequence[Sample]]) -> dict[str, Any]:
        """What `build` makes, with these samples in each row; media are those of its first."""
        firsts = [samples[0] for samples in rows]
        parts: dict[str, Any] = {"text": self._text(rows)}
        for kind, feature in zip(self._kinds, self.media, strict=True):
            field, _ = self._kinds[kind]
            column = chunk.column(field)
            held = [items_of(value) for value in column]
            kept = [sample.items.get(kind, ()) for sample in firsts]
            whole = all(numbers == tuple(range(len(items))) for numbers, items in zip(kept, held, strict=True))
            if not (whole and isinstance(column, np.ndarray)):
                column = [_one([items[i] for i in numbers]) for numbers, items in zip(kept, held, strict=True)]
            parts |= feature.build(dataclasses.replace(chunk, columns={**chunk.columns, field: column}))
        return parts

    def show(self, part: Mapping[str, Any], row: int) -> Mapping[str, Any]:
        """See `Feature`: the dialogue as the model reads it, and its first media."""
        text = part["text"]
        ids, slot = (leaf[row][text.segment[row] > 0] for leaf in (text.ids, text.slot))
        edges = np.flatnonzero(np.diff(slot >= 0, prepend=False)) if slot.size else ()
        runs = zip(np.split(ids, edges), np.split(slot, edges), strict=True)
        words = ["<media>" if places[:1].max(initial=-1) >= 0 else self.tokenizer.decode(run) for run, places in runs]
        shown = {"dialogue": " ".join(word for word in words if word)}
        for feature in self.media:
            shown |= feature.show(part, row)
        return shown

    def fingerprint(self) -> Mapping[str, str]:
        """What the tokenizer was made from, and who makes the media."""
        found = dict(self.tokenizer.fingerprint())
        for feature in self.media:
            found |= feature.fingerprint() if hasattr(feature, "fingerprint") else {}
        return found

    # ------------------------------------------------------------------------------------------------- what it costs

    def sizes(self, chunk: Chunk) -> Int[Array, "n 1+kinds"]:
        """Slots of each row, and items of each kind of `MEDIA`; 0 where a row cannot be built. Decodes no media."""
        found = np.zeros((len(chunk), 1 + len(MEDIA)), np.int32)
        for row in range(len(chunk)):
            found[row] = needs(self._kept(chunk, row, self.template.said), self.per_item).sum(0)
        return found

    def lost(self, chunk: Chunk) -> Int[Array, "n 1"]:
        """How many slots of each row truncation dropped; all of them where the row is refused."""
        found = np.zeros((len(chunk), 1), np.int32)
        for row in range(len(chunk)):
            try:
                spans = self._spans(_record(chunk, row), self.template.said)
            except BadRecord:
                continue
            size, stays = needs(spans, self.per_item), self._staying(spans)
            found[row] = size[:, 0].sum() if stays is None else size[~stays, 0].sum()
        return found

    # ------------------------------------------------------------------------------------------------- for inference

    def prompts(self, records: Sequence[Record]) -> Batch:
        """One row for each record: the dialogue up to where the model is to speak, padded on the right. Answers in the
        records are not looked at. Raises UserError for records that make no prompt."""
        fields = dict.fromkeys(field for record in records for field in record)
        columns = {field: [record.get(field) for record in records] for field in fields}
        chunk = Chunk(columns, np.zeros(len(records), np.uint64))
        parts = self.assembled(chunk, [[sample] for sample in self._samples(chunk, self.template.asked)])
        if chunk.errors:
            told = [f"prompt {row}: {error.reason}" for row, error in sorted(chunk.errors.items())]
            raise UserError("\n".join(told))
        rows = np.arange(len(records), dtype=np.int32)[:, None]
        return Batch(**parts, id=rows, fault=np.zeros(rows.shape, np.uint8))

    def asking(self, said: Sequence[str], media: Mapping[str, Sequence[Any]]) -> Batch:
        """One prompt: what a user and the model have said in turn, the user last, and the items of each kind that are
        shown first (encoded bytes or arrays). Raises UserError for kinds that this dialogue cannot show."""
        for kind in media:
            if kind not in self._kinds:
                raise UserError(unknown_name("kind of media in this dialogue", kind, self._kinds))
        shown = {self._kinds[kind][0]: tuple(items) for kind, items in media.items()}
        kinds = [kind for kind, items in media.items() for _ in items]
        return self.prompts([{**self.template.put(said, kinds), **shown}])

    def answers(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """The text of what the model said in each row, up to where it closes its turn."""
        return [self.tokenizer.decode(_until([int(number) for number in row], self.stops)) for row in ids]

    @property
    def stops(self) -> tuple[int, ...]:
        """The ids with which the model closes its turns: where decoding may stop."""
        return tuple(sorted(mark_id(self.tokenizer, name) for name in self.template.stops()))

    # -------------------------------------------------------------------------------------------------------- inside

    @property
    def _unmarked(self) -> list[str]:
        return sorted(self.template.marks() - set(mark_names(self.tokenizer)))

    @functools.cached_property
    def _kinds(self) -> Mapping[str, tuple[str, int]]:
        """Of each kind: the field that holds its items, and N."""
        return {kind_of(feature): (feature.field, feature.spec()[kind_of(feature)][0]) for feature in self.media}

    @functools.cached_property
    def _row(self) -> Batch:
        """The shapes of one row."""
        return Batch.spec(1, **self.spec())

    def _samples(self, chunk: Chunk, script: Script) -> list[Sample]:
        return [lay_out(self._kept(chunk, row, script), self.per_item) for row in range(len(chunk))]

    def _kept(self, chunk: Chunk, row: int, script: Script) -> list[Span]:
        """The spans of a row that stay; none where it cannot be used."""
        try:
            if row in chunk.errors:
                return []
            spans = self._spans(_record(chunk, row), script)
            stays = self._staying(spans)
            if stays is None:
                size = needs(spans, self.per_item).sum(0)
                told = [f"{size[0]} slots", *(f"{n} {kind}s" for kind, n in zip(MEDIA, size[1:], strict=True) if n)]
                room = [f"{self.length} slots", *(f"{n} {kind}s" for kind, (_, n) in self._kinds.items())]
                raise BadRecord(
                    "too_large", f"{', '.join(told)}: this feature has room for {', '.join(room)}, and cuts no span"
                )
            return [span for span, stay in zip(spans, stays, strict=True) if stay]
        except BadRecord as error:
            chunk.fail(row, error)
            return []

    def _spans(self, record: Record, script: Script) -> list[Span]:
        """All spans of a record. Raises BadRecord."""
        shelf = Shelf({kind: len(_items(record, field, kind)) for kind, (field, _) in self._kinds.items()})
        spans, turn, silent = [], 0, False
        for said in script(record):
            turn += not said.role.loss and not silent and not said.role.lasting
            silent = silent if said.role.lasting else not said.role.loss
            spans += self._turn(said, 0 if said.role.lasting else max(turn, 1), record, shelf)
        if left := [f"{len(items)} {kind}s" for kind, items in shelf.left.items() if items]:
            raise BadRecord("bad_schema", f"{', '.join(left)} of the record have no place in its dialogue")
        return spans

    def _turn(self, said: Said, turn: int, record: Record, shelf: Shelf) -> list[Span]:
        role, found = said.role, []
        for pieces, loss in ((role.opens, 0.0), (said.pieces, role.loss), (said.closes, role.loss)):
            for content in (content for piece in pieces for content in piece.contents(record, shelf)):
                if isinstance(content, Item):
                    found.append(MediaSpan(content.kind, content.number, role.media or role.reading, turn))
                else:
                    found.append(TextSpan(self._ids(content), role.reading, loss, turn))
        return found

    def _ids(self, content: str | Mark) -> Sequence[int]:
        if isinstance(content, Mark):
            return (mark_id(self.tokenizer, content.name),)
        if len(content) > MAX_BYTES // 4 and len(content.encode("utf-8", "replace")) > MAX_BYTES:
            raise BadRecord("too_large", f"a text of {len(content)} characters: split those above {MAX_BYTES} bytes")
        if len(content) > SHORT:
            return self.tokenizer.encode(content)
        return from_memory(self._memory, content, self.tokenizer.encode)

    @functools.cached_property
    def _memory(self) -> dict[str, Sequence[int]]:
        """Short texts already cut up."""
        return {}

    def _staying(self, spans: Sequence[Span]) -> Array | None:
        size = needs(spans, self.per_item)
        items = {kind: count for kind, (_, count) in self._kinds.items()}
        room = np.array([self.length, *(items.get(kind, 0) for kind in MEDIA)])
        if (size.sum(0) <= room).all():
            return np.ones(len(spans), bool)
        return self.truncation.keep(np.array([span.turn for span in spans]), size, room)

    def _text(self, rows: Sequence[Sequence[Sample]]) -> Text:
        shape = (len(rows), self.length)
        text = Text(
            np.full(shape, self.tokenizer.pad, np.int32), np.full(shape, -1, np.int32),
            *(np.zeros(shape, np.int32) for _ in range(3)), np.zeros(shape, np.float32), self._row.text.per_item,
        )  # fmt: skip
        landing = self._row.landing()
        start = {kind: np.zeros(1, np.int32) for kind in landing}
        for row, samples in enumerate(rows):
            end = 0
            for number, sample in enumerate(samples, 1):
                size = len(sample)
                here = (row, slice(end, end + size))
                for name in ("ids", "block", "position", "loss"):
                    getattr(text, name)[here] = getattr(sample, name)
                text.slot[here] = moved(sample.slot, np.zeros(size, np.int32), sample.landing, landing, start)
                text.segment[here] = number
                end += size
        return text


def _record(chunk: Chunk, row: int) -> dict[str, Any]:
    return {field: column[row] for field, column in chunk.columns.items()}


def _items(record: Record, field: str, kind: str) -> tuple[Any, ...]:
    items = items_of(record.get(field))
    for number, item in enumerate(items):
        if item is None:
            raise BadRecord("bad_schema", f"{kind} {number} of the {len(items)} in {field!r} is missing")
    return items


def _one(items: Sequence[Any]) -> Any:
    """As a feature for one item takes them, where there is one or none."""
    return tuple(items) if len(items) > 1 else items[0] if items else None


def _until(ids: list[int], stops: Sequence[int]) -> list[int]:
    return ids[: next((place for place, number in enumerate(ids) if number in stops), len(ids))]
