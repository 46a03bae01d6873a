"""Spans of text and media, the places of a sample that follow from them, and the proof that media land where they must.

n places of one sample   K places of several   m samples   B rows, T slots
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from data_pipelines.features import Bidirectional, Causal, Reading
from mmjax.core.batch import MEDIA, Batch
from mmjax.core.batch_check import misplaced
from mmjax.core.errors import DataError

Array = np.ndarray

Landing = Mapping[str, tuple[int, int, int]]
"""Of each kind that lands: the first number of its media tokens, how many items, tokens of each (`Batch.landing`)."""


@dataclasses.dataclass(frozen=True)
class TextSpan:
    """Ids that stand together; `loss` is the weight of predicting each of them.

    turn: the exchange it is part of, which truncation keeps or drops as a whole; 0 is what every truncation keeps."""

    ids: Sequence[int]
    reading: Reading = Causal()
    loss: float = 0.0
    turn: int = 1


@dataclasses.dataclass(frozen=True)
class MediaSpan:
    """The place of item number `item` (of those of its kind that the record holds)."""

    kind: str
    item: int
    reading: Reading = Bidirectional()
    turn: int = 1


Span = TextSpan | MediaSpan


@dataclasses.dataclass(frozen=True)
class Sample:
    """The places of one sample. Its media tokens are numbered as in a row of its own that has room for nothing more."""

    ids: Int[Array, " n"]  # 0 where media land
    slot: Int[Array, " n"]
    block: Int[Array, " n"]
    position: Int[Array, " n"]
    loss: Float[Array, " n"]
    items: Mapping[str, tuple[int, ...]]  # kind -> which of the record's items land, in order
    landing: Landing

    def __len__(self) -> int:
        return len(self.ids)


def needs(spans: Sequence[Span], per_item: Mapping[str, int]) -> Int[Array, "spans 1+kinds"]:
    """What each span takes: places, and items of each kind of `MEDIA`."""
    found = np.zeros((len(spans), 1 + len(MEDIA)), np.int64)
    for number, span in enumerate(spans):
        if isinstance(span, TextSpan):
            found[number, 0] = len(span.ids)
        else:
            found[number, [0, 1 + MEDIA.index(span.kind)]] = per_item[span.kind], 1
    return found


def lay_out(spans: Sequence[Span], per_item: Mapping[str, int]) -> Sample:
    """One sample's places from its spans, of which none is cut. An item of a kind with 0 tokens lands nowhere.

    Consecutive bidirectional spans share one block; each place of a causal span begins the next one (PaliGemma, arXiv
    2407.07726). Raises DataError when an item has two places."""
    items = _items(spans)
    landing, first = {}, 0
    for kind in MEDIA:
        if per_item.get(kind):
            landing[kind] = (first, len(items.get(kind, ())), per_item[kind])
            first += landing[kind][1] * per_item[kind]
    size = needs(spans, per_item)[:, 0]
    total = int(size.sum())
    position = np.arange(total, dtype=np.int32)

    def spread(values: Sequence[float], dtype: type = np.int32) -> Array:
        return np.repeat(np.asarray(values, dtype), size)

    started = np.cumsum(size) - size
    token = spread([_first_token(span, items, landing) for span in spans])
    slot = np.where(token < 0, -1, token + position - spread(started))
    ids = np.zeros(total, np.int32)
    ids[slot < 0] = [number for span in spans if isinstance(span, TextSpan) for number in span.ids]
    causal = spread([span.reading.causal for span in spans], bool)
    after_causal = np.concatenate([[False], causal[:-1]])[:total]
    block = np.cumsum(causal | after_causal, dtype=np.int32)
    loss = spread([span.loss if isinstance(span, TextSpan) else 0 for span in spans], np.float32)
    return Sample(ids, slot.astype(np.int32), block, position, loss, items, landing)


def _items(spans: Sequence[Span]) -> dict[str, tuple[int, ...]]:
    items: dict[str, tuple[int, ...]] = {}
    for number, span in enumerate(spans):
        if isinstance(span, MediaSpan):
            if span.item in items.get(span.kind, ()):
                raise DataError(f"span {number}: {span.kind} {span.item} has a place in the sample already")
            items[span.kind] = (*items.get(span.kind, ()), span.item)
    return items


def _first_token(span: Span, items: Mapping[str, tuple[int, ...]], landing: Landing) -> int:
    """The number of a media span's first token; -1 for text, and for media that land nowhere."""
    if isinstance(span, TextSpan) or span.kind not in landing:
        return -1
    first, _, size = landing[span.kind]
    return first + items[span.kind].index(span.item) * size


def moved(slot: Array, sample: Array, source: Landing, target: Landing, start: Mapping[str, Array]) -> Array:
    """Slots [K] of media numbered as in `source`, numbered as in `target`, where the items of kind k of sample number
    `sample` [K] stand from item `start[k]` [m] on."""
    if not source:
        return slot
    firsts = np.array([first for first, _, _ in source.values()])
    shift = np.stack([target[kind][0] - first + start[kind] * size for kind, (first, _, size) in source.items()])
    which = np.searchsorted(firsts, slot, side="right") - 1
    return np.where(slot < 0, -1, slot + shift[which, sample]).astype(np.int32)


def proven(batch: Batch, source: Any) -> Batch:
    """The (numpy) batch, when each token of its valid media stands in the token row exactly once, in order, inside its
    own segment. Otherwise raises DataError with the data set, the examples and their spans."""
    faults = misplaced(batch) if batch.text is not None else []
    if faults:
        told = [f"- example {batch.id[fault.row, fault.segment - 1]}: {fault}" for fault in faults]
        raise DataError(
            "\n".join([f"{_short(source)}: media do not stand in the token row as they must:", *told])
            + "\nThe feature that laid the row out is at fault."
        )
    return batch


def _short(source: Any) -> str:
    text = repr(source)
    return text if len(text) <= 200 else f"{text[:200]}..."
