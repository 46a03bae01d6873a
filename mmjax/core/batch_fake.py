"""Random batches that keep every promise of `mmjax.core.batch`."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np

from mmjax.core.batch import MEDIA, Batch, Text
from mmjax.core.errors import UserError


def fake(spec: Batch, seed: int, vocabulary: int) -> Batch:
    """See `Batch.fake`."""
    rng = np.random.default_rng(seed)
    rows, samples = spec.fault.shape
    parts = {name: _media(getattr(spec, name), samples, rng) for name in MEDIA if getattr(spec, name) is not None}
    if spec.text is not None:
        parts = _fitting(parts, spec.text)
        row = Batch(**parts, text=spec.text)
        parts["text"] = _text(row, samples, vocabulary, rng)
    labels = {name: _values(leaf, rng) for name, leaf in spec.labels.items()}
    ids = np.arange(rows * samples, dtype=np.int32).reshape(rows, samples)
    return Batch(**parts, labels=labels, id=ids, fault=np.zeros((rows, samples), np.uint8))


def _values(leaf: jax.ShapeDtypeStruct, rng: np.random.Generator) -> np.ndarray:
    if leaf.dtype == np.bool_:
        return rng.random(leaf.shape) < 0.5
    if np.issubdtype(leaf.dtype, np.integer):
        return rng.integers(0, min(256, np.iinfo(leaf.dtype).max + 1), leaf.shape).astype(leaf.dtype)
    return rng.uniform(-1, 1, leaf.shape).astype(leaf.dtype)


def _media(spec, samples: int, rng: np.random.Generator):
    """Items dealt to the row's samples in turn; some absent, sample 1 always present."""
    rows, count = spec.valid.shape
    segment = np.broadcast_to(np.sort(np.arange(count) % samples) + 1, (rows, count)).astype(np.int32)
    valid = (rng.random((rows, count)) < 0.75) | (segment == 1)
    filled = {}
    for field in dataclasses.fields(spec):
        leaf = getattr(spec, field.name)
        if field.name == "valid":
            filled["valid"] = valid
        elif field.name == "segment":
            filled["segment"] = np.where(valid, segment, 0).astype(np.int32)
        elif field.name == "length":
            longest = next(getattr(spec, n) for n in ("samples", "frames", "values") if hasattr(spec, n)).shape[2]
            filled["length"] = np.where(valid, rng.integers(1, longest + 1, valid.shape), 0).astype(np.int32)
        elif field.name == "channel":
            filled["channel"] = (rng.random(leaf.shape) < 0.8) & valid[..., None]
        elif field.name == "time_s":
            filled["time_s"] = np.broadcast_to(np.arange(leaf.shape[2], dtype=np.float32) / 4, leaf.shape).copy()
        elif field.metadata.get("static"):
            filled[field.name] = leaf
        else:
            filled[field.name] = _values(leaf, rng)
    return type(spec)(**filled)


def _fitting(parts: dict, text: Text) -> dict:
    """The media parts without the items whose tokens find no room in the row beside one text id; those of the first
    sample find theirs first. Raises UserError when the first sample cannot have one of each kind."""
    sizes = dict(text.per_item)
    kinds = [kind for kind in parts if kind in sizes]
    if not kinds:
        return parts
    segment = np.concatenate([parts[kind].segment for kind in kinds], axis=1)
    size = np.concatenate([np.full(parts[kind].segment.shape[1], sizes[kind]) for kind in kinds])
    turn = np.argsort(np.where(segment > 0, segment, segment.max() + 1), axis=1, kind="stable")
    taken = np.cumsum(np.take_along_axis(size * (segment > 0), turn, axis=1), axis=1)
    fits = np.empty(segment.shape, bool)
    np.put_along_axis(fits, turn, taken < text.ids.shape[1], axis=1)
    starts = np.cumsum([parts[kind].segment.shape[1] for kind in kinds])[:-1]
    for kind, keep in zip(kinds, np.split(fits, starts, axis=1), strict=True):
        if not (keep & (parts[kind].segment == 1)).any(1).all():
            raise UserError(
                f"a row of {text.ids.shape[1]} slots holds no {sizes[kind]} tokens of {kind} beside the rest"
            )
        parts[kind] = _keep(parts[kind], keep)
    return parts


def _keep(part, keep: np.ndarray):
    """`part` with the other items absent."""
    held = {name: getattr(part, name) for name in ("valid", "segment", "length", "channel") if hasattr(part, name)}
    cut = {name: leaf * (keep if leaf.ndim == 2 else keep[..., None]) for name, leaf in held.items()}
    return dataclasses.replace(part, **cut)


def _text(batch: Batch, samples: int, vocabulary: int, rng: np.random.Generator) -> Text:
    """Each row: up to S samples of random lengths back to back: a bidirectional prefix in which the sample's media
    land, causal text, then padding."""
    rows, length = batch.text.ids.shape
    out = {name: np.zeros((rows, length), np.int32) for name in ("ids", "segment", "block", "position")}
    slot, loss = np.full((rows, length), -1, np.int32), np.zeros((rows, length), np.float32)
    for row in range(rows):
        media = [_landing(batch, row, number) for number in range(1, samples + 1)]
        room = length - sum(item.size for items in media for item in items)
        ends = np.sort(rng.integers(1, room + 1, samples))
        ends[-1] = max(ends[-1], min(room, samples))
        start = 0
        for number, size in enumerate(np.diff(ends, prepend=0), 1):
            head = _mingled(size // 2, media[number - 1], rng)
            prefix = head.size
            places = np.arange(prefix + size - size // 2)
            span = slice(start, start + places.size)
            out["ids"][row, span] = rng.integers(0, vocabulary, places.size)
            out["segment"][row, span] = number
            out["position"][row, span] = places
            out["block"][row, span] = np.maximum(places - prefix + 1, 0)
            loss[row, span] = places >= prefix
            slot[row, start : start + prefix] = head
            start += places.size
    return Text(slot=slot, loss=loss, per_item=batch.text.per_item, **out)


def _landing(batch: Batch, row: int, number: int) -> list[np.ndarray]:
    """The numbers of the tokens of each media item of one sample."""
    return [
        first + item * size + np.arange(size)
        for kind, (first, _, size) in batch.landing().items()
        for item in np.flatnonzero(getattr(batch, kind).segment[row] == number)
    ]


def _mingled(texts: int, items: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Slots of `texts` text places with the items set among them at random, in order."""
    slots = np.full(texts, -1, np.int32)
    if not items:
        return slots
    gaps = np.sort(rng.integers(0, texts + 1, len(items)))
    return np.insert(slots, np.repeat(gaps, [item.size for item in items]), np.concatenate(items))
