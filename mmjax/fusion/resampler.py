"""Resamplers: learned queries read an item and stand for it, however many tokens it had.

B rows   N items of a kind in a row   t tokens of an item   n queries   D, D2 width of tokens and of queries
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mmjax.core.errors import UserError
from mmjax.core.parameters import declare, slot
from mmjax.core.tokens import Places, Tokens
from mmjax.fusion.connectors import item_places, per_item
from mmjax.nn.attention import Attention
from mmjax.nn.block import Block, Chain
from mmjax.nn.feedforward import FeedForward
from mmjax.nn.linear import Linear, Normal
from mmjax.nn.norms import LayerNorm
from mmjax.nn.stack import Stack
from mmjax.ops.masks import bidirectional


class PerceiverBlock(nn.Module):
    """Queries look at the item and at each other in one attention, then a feed-forward (Flamingo, arXiv 2204.14198,
    appendix A.1.1, figure 5). Queries and memory have one width."""

    attention: nn.Module
    feedforward: nn.Module = slot(FeedForward)
    norm: nn.Module = slot(LayerNorm)

    @nn.compact
    def __call__(
        self, x: Float[Array, "B n D"], places: Places, memory: Tokens, *, train: bool = False
    ) -> Float[Array, "B n D"]:
        def norm(of: str, x: Array) -> Array:
            return self.norm.clone(parent=self, name=f"{of}_norm")(x)

        asks = norm("query", x)
        told = Tokens.concat([Tokens(norm("memory", memory.x), memory.places), Tokens(asks, places)])
        x = x + self.attention(asks, places, told.x, told.places)
        return x + self.feedforward(norm("feedforward", x), train=train)


class Resampler(nn.Module):
    """`queries` learned vectors per item go through a `stack` whose blocks look at the item's tokens (the memory).

    A connector (see `mmjax.fusion.connectors`). `width` is that of the queries; None takes the tokens', others are
    mapped first. The two that the field knows are `Resampler.perceiver` and `Resampler.qformer`.
    """

    queries: int
    stack: nn.Module
    width: int | None = None
    norm: nn.Module = slot(LayerNorm)

    @classmethod
    def perceiver(cls, queries: int = 64, depth: int = 6, heads: int = 8, **fields: object) -> Resampler:
        """The Perceiver resampler of Flamingo (arXiv 2204.14198, section 2.1)."""
        block = PerceiverBlock(Attention(heads, bias=False), FeedForward(bias=False))
        return cls(queries, Stack(block, depth), **fields)

    @classmethod
    def qformer(
        cls, queries: int = 32, depth: int = 12, heads: int = 12, every: int = 2, width: int | None = 768
    ) -> Resampler:
        """The Q-Former of BLIP-2 (arXiv 2301.12597, section 3.1) with its norms before the branches: self-attention of
        the queries in each block, cross-attention to the item in every `every`-th, from the first on."""
        if every < 1 or depth % every:
            raise UserError(
                f"Q-Former: cross-attention in every {every}-th of {depth} blocks does not come out even; choose a "
                f"divisor of {depth}"
            )
        first = Block(Attention(heads), cross=Attention(heads))
        rest = tuple(Block(Attention(heads)) for _ in range(every - 1))
        return cls(queries, Stack(Chain((first, *rest)), depth // every), width)

    @nn.compact
    def __call__(self, tokens: Tokens, items: int) -> Tokens:
        size, batch = per_item(tokens, items), tokens.x.shape[0]
        tokens = tokens.clean()
        each = jax.tree.map(lambda x: x.reshape(batch * items, size, *x.shape[2:]), tokens)
        width = self.width or each.x.shape[-1]
        if width != each.x.shape[-1]:
            each = each.with_x(Linear("btd,dD->btD", (width,), name="memory")(each.x))
        probe = declare(self, "queries", Normal(0.02), latents=self.queries, width=width)
        x = jnp.broadcast_to(probe.astype(each.x.dtype), (batch * items, *probe.shape))
        places = _asking(each.places, self.queries)
        x = self.norm(self.stack(x, places, Tokens(each.x, bidirectional(each.places))))
        valid, segment, modality = (part.reshape(batch, -1) for part in (places.valid, places.segment, places.modality))
        return Tokens(x.reshape(batch, -1, width), item_places(valid, segment, modality, items))


def _asking(item: Places, queries: int) -> Places:
    """Places of an item's queries: its sample and modality, real where any of its tokens is."""

    def most(x: Array) -> Array:
        return jnp.broadcast_to(jnp.max(x, axis=1, keepdims=True), (x.shape[0], queries))

    return item_places(most(item.valid), most(item.segment), most(item.modality), 1)
