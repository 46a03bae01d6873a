"""Random batches that keep every promise of `mmjax.core.batch`."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np

from mmjax.core.batch import MEDIA, Batch, Text


def fake(spec: Batch, seed: int, vocabulary: int) -> Batch:
    """See `Batch.fake`."""
    rng = np.random.default_rng(seed)
    rows, samples = spec.fault.shape
    parts = {name: _media(getattr(spec, name), samples, rng) for name in MEDIA if getattr(spec, name) is not None}
    if spec.text is not None:
        parts["text"] = _text(spec.text, samples, vocabulary, rng)
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


def _text(spec: Text, samples: int, vocabulary: int, rng: np.random.Generator) -> Text:
    """Each row: up to S samples of random lengths back to back, a bidirectional prefix, then causal, then padding."""
    rows, length = spec.ids.shape
    out = {name: np.zeros((rows, length), np.int32) for name in ("ids", "segment", "block", "position")}
    loss = np.zeros((rows, length), np.float32)
    for row in range(rows):
        ends = np.sort(rng.integers(1, length + 1, samples))
        ends[-1] = max(ends[-1], min(length, samples))
        start = 0
        for number, end in enumerate(ends, 1):
            size = max(0, end - start)
            places, prefix = np.arange(size), size // 2
            span = slice(start, start + size)
            out["ids"][row, span] = rng.integers(0, vocabulary, size)
            out["segment"][row, span] = number
            out["position"][row, span] = places
            out["block"][row, span] = np.maximum(places - prefix + 1, 0)
            loss[row, span] = places >= prefix
            start = max(start, end)
    return Text(slot=np.full((rows, length), -1, np.int32), loss=loss, **out)
