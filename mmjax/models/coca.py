"""CoCa: one model that matches pictures with texts and captions them (arXiv 2205.01917).

B rows   S samples of a row   T places of the row   N pictures   n queries   D width
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from mmjax.core.batch import MODALITIES, Batch
from mmjax.core.errors import look_up
from mmjax.core.parameters import declare, slot
from mmjax.core.tokens import Fused, Places, Tokens
from mmjax.encoders.image import PatchStem, ViT
from mmjax.fusion.resampler import Resampler
from mmjax.heads.contrastive import Contrastive
from mmjax.heads.language import Language
from mmjax.models.decoder import Decoder
from mmjax.models.seq2seq import Writes
from mmjax.models.towers import met
from mmjax.nn.attention import Attention
from mmjax.nn.block import Block, Chain
from mmjax.nn.embeddings import LearnedGrid, LearnedPositions, TokenEmbedding
from mmjax.nn.feedforward import FeedForward
from mmjax.nn.linear import Normal
from mmjax.nn.norms import LayerNorm
from mmjax.nn.pooling import Mean, owned
from mmjax.nn.sizes import Size
from mmjax.nn.stack import Stack


class Look(nn.Module):
    """What learned queries see of an item in one attention, in place of a `Resampler`'s stack (section 3.2: attentional
    pooling)."""

    attention: nn.Module

    def __call__(
        self, x: Float[Array, "B n D"], places: Places, memory: Tokens, *, train: bool = False
    ) -> Float[Array, "B n D"]:
        return self.attention(x, places, memory.x, memory.places)


def pooler(queries: int, heads: int) -> Resampler:
    """`queries` tokens for each picture."""
    return Resampler(queries, Look(Attention(heads)))


@dataclasses.dataclass(frozen=True)
class CoCaSize:
    """Shape of the picture encoder, and how many layers of text see text alone and pictures, too; all of one width."""

    image: Size
    alone: int
    seeing: int


COCAS = {
    "mu": CoCaSize(Size(32, 2, 64, 2), 1, 1),
    "base": CoCaSize(Size(768, 12, 3072, 12), 12, 12),
    "large": CoCaSize(Size(1024, 24, 4096, 16), 12, 12),
    "2b": CoCaSize(Size(1408, 40, 6144, 16), 18, 18),
}
"""CoCa-Base, CoCa-Large and CoCa (table 1; with 64 000 ids they come to 0.389, 0.798 and 2.264 billion parameters here,
where the paper says 0.383, 0.787 and 2.1)."""


class CoCa(Writes):
    """Contrastive and captioning outputs of one forward pass: those of `heads.language` and those of `models.towers`.

    image: encodes pictures once. generative, contrastive: connectors that make of its tokens the decoder's memory, and
    vectors whose mean per sample meets the text's. decoder: text only; its stack is a `Chain` of two, blocks that see
    text alone and blocks that look at the memory. The text's vector is what a learned token behind each sample sees of
    it through the first of the two. A batch without slots for pictures has no picture's embedding."""

    image: nn.Module
    generative: nn.Module
    contrastive: nn.Module
    head: nn.Module
    text_norm: nn.Module = slot(LayerNorm)
    pool: nn.Module = slot(Mean)

    @classmethod
    def of(cls, size: str, vocab: int, length: int = 64, resolution: int = 288, patch: int = 18, **slots: Any) -> CoCa:
        """A published shape, `"base"` (see `COCAS`), for rows of up to `length` ids; `slots` replace parts."""
        shape = look_up("CoCa", size, COCAS)
        image = shape.image

        def stack(depth: int, **cross: Any) -> Stack:
            return Stack(Block(Attention(image.heads), FeedForward(image.mlp), **cross), depth)

        parts = {
            "decoder": Decoder(
                TokenEmbedding(vocab, image.width),
                Chain((stack(shape.alone), stack(shape.seeing, cross=Attention(image.heads)))),
                Language(vocab),
                norm=LayerNorm(),
                positions=LearnedPositions(length),
                tied=False,
            ),
            "image": ViT(PatchStem(patch, image.width), stack(image.depth), LearnedGrid((resolution // patch,) * 2)),
            "generative": pooler(256, image.heads),
            "contrastive": pooler(1, image.heads),
            "head": Contrastive(image.width),
        }
        return cls(**(parts | slots))

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool = False) -> dict[str, Any]:
        pictures = self._pictures(batch, train)
        row, memory = self._fused(batch, pictures)
        decoder, length, samples = self.decoder, row.x.shape[1], batch.fault.shape[1]
        alone, seeing = decoder.stack.blocks
        row = row.with_x(decoder.positions(row.x, row.places.position))
        whole = Tokens.concat([row, self._classes(row, samples)])
        x = alone(whole.x, whole.places, train=train)
        told = decoder.norm(seeing(x[:, :length], row.places, memory, train=train))
        pooled = {"text": self.text_norm(x[:, length:])}
        if pictures is not None:
            pooled["image"] = self.pool(self.contrastive(pictures, batch.image.valid.shape[1]), samples)
        present = {name: batch.present(name) for name in pooled}
        return decoder.head(told, batch.text, decoder.table()) | met(self.head, pooled, present)

    def fuse(self, batch: Batch, *, train: bool = False) -> Fused:
        """See `Writes.fuse`."""
        row, memory = self._fused(batch, self._pictures(batch, train))
        return Fused(row, memory)

    def _pictures(self, batch: Batch, train: bool) -> Tokens | None:
        return None if batch.image is None else self.image(batch.image, train=train)

    def _fused(self, batch: Batch, pictures: Tokens | None) -> tuple[Tokens, Tokens | None]:
        row = self.decoder.fuse(batch.replace(image=None)).row
        return row, None if pictures is None else self.generative(pictures, batch.image.valid.shape[1])

    def _classes(self, row: Tokens, samples: int) -> Tokens:
        """A token for each sample that sees all of its text, and that the text does not see."""
        token = declare(self, "class_token", Normal(0.02), latents=1, width=row.x.shape[-1])
        x = jnp.broadcast_to(token.astype(row.x.dtype), (row.x.shape[0], samples, row.x.shape[-1]))
        mine = owned(row, samples)
        number = jnp.broadcast_to(jnp.arange(1, samples + 1), mine.shape[:2])
        after = jnp.max(jnp.where(mine, row.places.position[:, None], -1), axis=-1) + 1
        block = jnp.full_like(number, jnp.iinfo(jnp.int32).max)
        kind = jnp.full_like(number, MODALITIES.index("text"))
        return Tokens(x, Places(jnp.any(mine, axis=-1), block, number, after, kind))
