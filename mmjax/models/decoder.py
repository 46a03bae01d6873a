"""Decoder language models over text and media: GPT, Llama, Gemma, Qwen; Frozen, LLaVA, PaliGemma, Flamingo.

B rows   T text slots   N items of a kind   n tokens of an item   D width   V vocabulary
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mmjax.core.batch import MEDIA, MODALITIES, Batch, Text
from mmjax.core.dtypes import Dtypes
from mmjax.core.errors import UserError
from mmjax.core.parameters import slot, unbox
from mmjax.core.tokens import Fused, Live, Places, Tokens
from mmjax.fusion.early import TextOnly
from mmjax.heads.language import Language
from mmjax.nn.decoder_sizes import decoder_size
from mmjax.nn.embeddings import NoPositions
from mmjax.nn.norms import RMSNorm


class Sense(nn.Module):
    """An encoder of one kind of media (modality slot -> Tokens [B N*t D']) and the connector to the decoder's width,
    called with those tokens and N: n tokens for each item [B N*n D]."""

    encoder: nn.Module
    connector: nn.Module

    def __call__(self, media: Any, *, train: bool = False) -> Tokens:
        return self.connector(self.encoder(media, train=train), media.valid.shape[1])


class Decoder(nn.Module):
    """A row of text and media, and what comes next at each of its places.

    Slots: `embedding` (ids -> vectors; its parameter `table` [V D] is handed to the head when `tied`), `media` {kind:
    `Sense`, or any module from the kind's slot to Tokens}, `fusion` (row, text, media -> Fused), `positions` (added to
    the fused row), `stack`, `norm`, `head` (`mmjax.heads.language`). Outputs are what the head says of each place. A
    kind that the batch has no slots for is skipped.

    For decoding (`mmjax.decoding`): `fuse` once, `prefill` once, `step` for each token.
    """

    embedding: nn.Module
    stack: nn.Module
    head: nn.Module
    norm: nn.Module = slot(RMSNorm)
    positions: nn.Module = slot(NoPositions)
    media: Mapping[str, nn.Module] = dataclasses.field(default_factory=dict)
    fusion: nn.Module = slot(TextOnly)
    tied: bool = True
    dtypes: Dtypes = Dtypes()

    @classmethod
    def of(cls, size: str, vocab: int, **slots: Any) -> Decoder:
        """A published decoder, `"gpt2"` (see `mmjax.nn.decoder_sizes`), for `vocab` ids; `slots` replace parts."""
        shape = decoder_size(size)
        parts = {
            "embedding": shape.embedding(vocab, shape.width),
            "stack": shape.stack(),
            "head": Language(vocab, cap=shape.logit_softcap),
            "norm": shape.norm(),
            "positions": shape.positions(),
            "tied": shape.tied,
        }
        return cls(**(parts | slots))

    @property
    def longest(self) -> int | None:
        """How long a row may become; None: as long as you like."""
        return getattr(self.positions, "length", None)

    def __call__(self, batch: Batch, *, train: bool = False) -> dict[str, Any]:
        fused = self.fuse(batch, train=train)
        x = self.through(fused.row, fused.memory, train=train)
        return self.head(x[:, -batch.text.ids.shape[1] :], batch.text, self.table())  # media may stand before the text

    def fuse(self, batch: Batch, *, train: bool = False) -> Fused:
        """The row with its media in it, and what it may look at beside. Raises UserError when the batch has no text. A
        fusion that has a method `check_sizes` is asked whether it can take tokens of these sizes (see `Interleave`)."""
        if batch.text is None:
            has = ", ".join(batch.modalities()) or "nothing"
            raise UserError(f"a decoder reads the row of text; the batch has {has}")
        used = [kind for kind in MEDIA if kind in self.media and getattr(batch, kind) is not None]
        media = {kind: self.media[kind](getattr(batch, kind), train=train) for kind in used}
        if hasattr(self.fusion, "check_sizes"):
            items = {kind: getattr(batch, kind).valid.shape[1] for kind in used}
            self.fusion.check_sizes(batch.text, {kind: media[kind].x.shape[1] // items[kind] for kind in used})
        x = self.dtypes.enter(self.embedding(batch.text.ids))
        return self.fusion(Tokens(x, _places(batch.text)), batch.text, media)

    def prefill(self, fused: Fused) -> Float[Array, "B V"]:
        """What comes after the last place of each row."""
        return self.logits(self.through(fused.row, fused.memory)[:, -1:])[:, 0]

    def step(self, ids: Int[Array, "B n"], places: Live, memory: Tokens | None = None) -> Float[Array, "B n V"]:
        """What comes after each of `ids`, which stand at `places` of a row that the cache holds (`nn.cache`)."""
        none = jnp.full_like(ids, -1)
        text = Text(ids, none, places.segment, places.block, places.position, jnp.zeros(ids.shape))
        row = self.fusion(Tokens(self.dtypes.enter(self.embedding(ids)), places), text, {}).row
        return self.logits(self.through(row, memory))

    def through(self, row: Tokens, memory: Tokens | None, *, train: bool = False) -> Float[Array, "B T D"]:
        """The row after positions, stack and norm."""
        x = self.positions(row.x, row.places.position)
        return self.norm(self.stack(x, row.places, memory, train=train))

    def logits(self, x: Float[Array, "B n D"]) -> Float[Array, "B n V"]:
        """What the head says after each place of what came `through`."""
        return self.head.logits(x, self.table())

    def table(self) -> Float[Array, "V D"] | None:
        """What the embedding lends to the head."""
        return unbox(self.embedding.get_variable("params", "table")) if self.tied else None


def _places(text: Text) -> Places:
    kind = jnp.full_like(text.ids, MODALITIES.index("text"))
    return Places(text.segment > 0, text.block, text.segment, text.position, kind)
