"""Tiny encoder-decoder models, and batches for them."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np

from mmjax.core.batch import Batch
from mmjax.encoders.cnn import ResNet, basic
from mmjax.fusion.connectors import AsIs
from mmjax.models.coca import CoCa, pooler
from mmjax.models.decoder import Sense
from mmjax.models.seq2seq import Seq2Seq, ShowAttendTell
from mmjax.nn.norms import GroupNorm
from mmjax.nn.recurrent import LSTM, AttendTell
from tests.drawn import drawn

VOCAB, ROWS, PLACES = 31, 3, 20

CNN = Sense(ResNet(basic, (1, 1), 8, GroupNorm(4)), AsIs())
MODELS = {
    "whisper": Seq2Seq.whisper("mu", VOCAB, 64),
    "text_to_text": Seq2Seq.text_to_text("mu", VOCAB),
    "unified_io": Seq2Seq.unified_io("mu", VOCAB, 32),
    "show_attend_tell": ShowAttendTell.of(VOCAB, 16, stack=AttendTell(LSTM(24), 12), media={"image": CNN}),
    "coca": CoCa.of("mu", VOCAB, 64, 32, 16, generative=pooler(3, 2)),
}
MEDIA = {
    "whisper": {"sensor": (9, 5, 100.0)},
    "text_to_text": {},
    "unified_io": {"image": (32, 32)},
    "show_attend_tell": {"image": (32, 32)},
    "coca": {"image": (32, 32)},
}
LANDS = {"unified_io": {"image": 4}}


def spec_of(name, samples=1, rows=ROWS):
    """One item for each sample."""
    media = {kind: (samples, *shape) for kind, shape in MEDIA[name].items()}
    return Batch.spec(rows, samples=samples, text=(PLACES, LANDS.get(name, {})), **media)


def fake(name, samples=1, seed=0):
    """A fake batch of two samples a row or of one."""
    return Batch.fake(spec_of(name, samples), seed, VOCAB)


def parameters(name):
    """Random parameters, also where a model starts with zeros."""
    return drawn(MODELS[name], fake(name))["params"]


def alone(batch, row, number):
    """One sample of a packed batch in a row of its own. Items are the samples', in order."""
    text = batch.text
    mine = np.flatnonzero(text.segment[row] == number)
    sizes = dict(text.per_item)

    def cut(x, padding=0):
        whole = np.full((1, x.shape[1]), padding, x.dtype)
        whole[0, : mine.size] = x[row, mine]
        return whole

    slot = cut(text.slot, -1)
    slot = np.where(slot >= 0, slot % max([1, *sizes.values()]), -1)
    segment = np.minimum(cut(text.segment), 1)
    vectors = {name: cut(getattr(text, name)) for name in ("ids", "block", "position", "loss")}
    media = {}
    for kind in batch.modalities()[1:]:
        part = jax.tree.map(lambda x: x[row : row + 1, number - 1 : number], getattr(batch, kind))
        media[kind] = dataclasses.replace(part, segment=np.minimum(part.segment, 1))
    fault = np.zeros((1, 1), np.uint8)
    text = dataclasses.replace(text, slot=slot, segment=segment, **vectors)
    return batch.replace(text=text, fault=fault, id=np.zeros((1, 1), np.int32), **media), mine


def first(batch, count):
    """Prompts: the first `count[row]` places of each row's only sample."""
    keep = np.arange(batch.text.ids.shape[1]) < np.asarray(count)[:, None]
    text = batch.text
    cut = {name: getattr(text, name) * keep for name in ("ids", "segment", "block", "position", "loss")}
    return batch.replace(text=dataclasses.replace(text, slot=np.where(keep, text.slot, -1), **cut))


def followed(batch, count, ids):
    """The prompts with `ids` [B n] after them."""
    text = batch.text
    vectors = {name: np.array(getattr(text, name)) for name in ("ids", "segment", "block", "position")}
    for row, size in enumerate(count):
        where, ahead = np.arange(size, size + ids.shape[1]), 1 + np.arange(ids.shape[1])
        vectors["ids"][row, where] = ids[row]
        vectors["segment"][row, where] = 1
        for name in ("block", "position"):
            vectors[name][row, where] = vectors[name][row, size - 1] + ahead
    return batch.replace(text=dataclasses.replace(text, **vectors))
