"""BLIP: one model that matches pictures with texts, judges whether they fit, and speaks of them (arXiv 2201.12086).

B rows   S samples of a row   T places of the row   n places of a caption   D width   J pairs judged   K rows spoken
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mmjax.core.batch import Batch, Text
from mmjax.core.parameters import slot
from mmjax.core.tokens import Fused, Tokens
from mmjax.fusion.connectors import AsIs
from mmjax.heads.matching import Matching
from mmjax.models.seq2seq import Writes
from mmjax.models.towers import met
from mmjax.nn.pooling import Mean
from mmjax.ops.masks import bidirectional


@dataclasses.dataclass(frozen=True)
class Judge:
    """Which pairs of a batch are judged: in training the first `rows` pictures, in evaluation all, each with the first
    `length` ids of its first caption. same, alike: labels of what is no mistake; hardness: of the mistakes (see
    `heads.matching`)."""

    rows: int
    length: int
    same: str | None = None
    alike: tuple[str, ...] = ()
    hardness: float = 1.0


class BLIP(Writes):
    """A picture is encoded once and serves three purposes; a row of text serves one of two.

    Captions (rows without anything to predict) meet the pictures in the space of `head`, through `pool` and the tower
    `text`. Some of them are judged: the decoder's blocks read caption and picture, every place seeing the whole of
    both, and `read` makes one vector of it. Rows with something to predict are spoken: the decoder writes them,
    its memory is the picture behind `connector`. Outputs are those of `models.towers`, `heads.matching` and
    `heads.language`.

    spoken: how many rows of a batch the decoder writes at most in training (None: all of them); in a batch with more,
    every "nll" is NaN, which the guard of a run sees. Without pictures, or without text, there is what the other gives
    alone.
    """

    image: nn.Module
    text: nn.Module
    head: nn.Module
    pool: nn.Module = slot(Mean)
    connector: nn.Module = slot(AsIs)
    read: nn.Module = slot(Mean)
    judge: Judge | None = None
    spoken: int | None = None

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool = False) -> dict[str, Any]:
        samples, pooled, present = batch.fault.shape[1], {}, {}
        pictures = None if batch.image is None else self.image(batch.image, train=train)
        if pictures is not None:
            pooled["image"], present["image"] = self.pool(pictures, samples), batch.present("image")
        if batch.text is None:
            return met(self.head, pooled, present)
        speaks = jnp.any(batch.text.loss > 0, axis=1)
        captions = dataclasses.replace(batch.text, segment=jnp.where(speaks[:, None], 0, batch.text.segment))
        pooled["text"] = self.text(captions, samples, train=train)
        present["text"] = batch.present("text") & ~speaks[:, None]
        outputs = met(self.head, pooled, present)
        memory = self._memory(pictures, batch)
        if self.judge is not None and memory is not None:
            outputs |= self._judged(captions, memory, outputs, batch, train)
        return outputs | self._spoken(batch.text, memory, speaks, train)

    def fuse(self, batch: Batch, *, train: bool = False) -> Fused:
        """See `Writes.fuse`."""
        pictures = None if batch.image is None else self.image(batch.image, train=train)
        return Fused(self._row(batch.text), self._memory(pictures, batch))

    def _memory(self, pictures: Tokens | None, batch: Batch) -> Tokens | None:
        return None if pictures is None else self.connector(pictures, batch.image.valid.shape[1])

    def _row(self, text: Text) -> Tokens:
        return self.decoder.fuse(Batch(text=text)).row

    def _judged(
        self, captions: Text, memory: Tokens, outputs: Mapping[str, Any], batch: Batch, train: bool
    ) -> dict[str, dict[str, Array]]:
        judge, shape = self.judge, batch.fault.shape
        chosen = _first(jnp.any(captions.segment == 1, axis=1), judge.rows) if train else jnp.arange(shape[0])

        def met(x: Array) -> Array:
            return x.reshape(*shape, *x.shape[1 + (shape[1] > 1) :])[chosen, 0]

        known = {name: jax.tree.map(met, outputs[name]) for name in ("embeddings", "present")}
        labels, ids, fault = jax.tree.map(lambda x: x[chosen, :1], (batch.labels, batch.id, batch.fault))
        text = _opening(_taken(captions, chosen), judge.length)
        row = self._row(text)
        row = Tokens(row.x, bidirectional(row.places))
        matching = Matching(self._fit, same=judge.same, alike=judge.alike, hardness=judge.hardness, name="matching")
        pairs = Batch(labels=labels, id=ids, fault=fault)
        return matching(_taken(memory, chosen), row, outputs | known, pairs, train=train)

    def _fit(self, pictures: Tokens, captions: Tokens, *, train: bool) -> Float[Array, "R D"]:
        """What speaks for or against each caption being that of the picture beside it."""
        seen = captions.with_x(self.decoder.through(captions, pictures, train=train))
        return self.read(seen, 1)[:, 0]

    def _spoken(self, text: Text, memory: Tokens | None, speaks: Bool[Array, " B"], train: bool) -> dict[str, Array]:
        rows = speaks.shape[0]
        chosen = _first(speaks, self.spoken if self.spoken and train else rows)
        part = _taken(text, chosen)
        x = self.decoder.through(self._row(part), _taken(memory, chosen), train=train)
        told = self.decoder.head(x, part, self.decoder.table())
        whole = {key: jnp.zeros((rows, *x.shape[1:]), x.dtype).at[chosen].set(x) for key, x in told.items()}
        return whole | {"nll": jnp.where(jnp.sum(speaks) > len(chosen), jnp.nan, whole["nll"])}


def _first(wanted: Bool[Array, " B"], count: int) -> Int[Array, " K"]:
    """Rows, those that are wanted before the others; as many as `count` or as there are."""
    return jax.lax.top_k(wanted.astype(jnp.float32), min(count, wanted.shape[0]))[1]


def _taken(tree: Any, rows: Int[Array, " K"]) -> Any:
    return jax.tree.map(lambda x: x[rows], tree)


def _opening(text: Text, length: int) -> Text:
    """The first sample of each row, as far as its first `length` places [B n]."""
    mine = text.segment == 1
    where = jax.lax.top_k(mine.astype(jnp.float32), min(length, mine.shape[1]))[1]
    taken = jax.tree.map(lambda x: jnp.take_along_axis(x, where, axis=1), text)
    return dataclasses.replace(taken, segment=jnp.where(taken.segment == 1, 1, 0))
