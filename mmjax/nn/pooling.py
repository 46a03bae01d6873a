"""One vector from many tokens.  B batch   T tokens   D width.  Every pool is blind to invalid tokens."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from mmjax.core.parameters import declare
from mmjax.core.tokens import Places, Tokens
from mmjax.nn.attention import Attention
from mmjax.nn.feedforward import FeedForward
from mmjax.nn.linear import normal
from mmjax.nn.norms import LayerNorm


def _pick(tokens: Tokens, index: Array) -> Float[Array, "B D"]:
    return jnp.take_along_axis(tokens.x, index[:, None, None], axis=1)[:, 0]


class First(nn.Module):
    """The first valid token (a class token)."""

    def __call__(self, tokens: Tokens) -> Float[Array, "B D"]:
        return _pick(tokens, jnp.argmax(tokens.valid, axis=1))


class Last(nn.Module):
    """The last valid token (CLIP's text tower)."""

    def __call__(self, tokens: Tokens) -> Float[Array, "B D"]:
        length = tokens.x.shape[1]
        return _pick(tokens, length - 1 - jnp.argmax(tokens.valid[:, ::-1], axis=1))


class Mean(nn.Module):
    """The mean of the valid tokens, zero when there are none."""

    def __call__(self, tokens: Tokens) -> Float[Array, "B D"]:
        valid = tokens.valid[..., None]
        total = jnp.sum(jnp.where(valid, tokens.x, 0), axis=1, dtype=jnp.float32)
        return (total / jnp.maximum(jnp.sum(valid, axis=1), 1)).astype(tokens.x.dtype)


class AttentionPool(nn.Module):
    """A learned query attends to all tokens, then a feed-forward (Set Transformer, arXiv 1810.00825, section 3.2)."""

    heads: int
    mlp: int | None = None

    @nn.compact
    def __call__(self, tokens: Tokens) -> Float[Array, "B D"]:
        batch, _, width = tokens.x.shape
        probe = declare(self, "probe", normal(width**-0.5), latents=1, width=width).astype(tokens.x.dtype)
        query = jnp.broadcast_to(probe, (batch, 1, width))
        place = Places.all_of("text", batch, 1)  # one query that sees every valid token of the row
        seen = Places(tokens.valid, *(jnp.zeros_like(tokens.places.block) + i for i in (0, 1, 0, 0)))
        x = Attention(self.heads, name="attention")(query, place, tokens.x, seen)
        x = x + FeedForward(self.mlp, name="feedforward")(LayerNorm(name="norm")(x))
        return x[:, 0]
