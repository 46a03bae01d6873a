"""One vector per sample from many tokens.  B rows   S samples of a row   T tokens   D width

Every pool is called with tokens and S, and is blind to invalid tokens and to the row's other samples.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mmjax.core.batch import MODALITIES
from mmjax.core.parameters import declare, slot
from mmjax.core.tokens import Places, Tokens
from mmjax.nn.attention import Attention
from mmjax.nn.feedforward import FeedForward
from mmjax.nn.linear import Linear, Normal
from mmjax.nn.norms import Identity, LayerNorm


def owned(tokens: Tokens, samples: int) -> Bool[Array, "B S T"]:
    """Which tokens are real and belong to which sample."""
    numbers = jnp.arange(1, samples + 1)[:, None]
    return tokens.valid[:, None] & (tokens.places.segment[:, None] == numbers)


def _pick(tokens: Tokens, index: Array) -> Float[Array, "B S D"]:
    return jnp.take_along_axis(tokens.x, index[..., None], axis=1)


class First(nn.Module):
    """The first valid token (a class token)."""

    def __call__(self, tokens: Tokens, samples: int = 1) -> Float[Array, "B S D"]:
        return _pick(tokens, jnp.argmax(owned(tokens, samples), axis=-1))


class Last(nn.Module):
    """The last valid token (CLIP's text tower)."""

    def __call__(self, tokens: Tokens, samples: int = 1) -> Float[Array, "B S D"]:
        return _pick(tokens, tokens.x.shape[1] - 1 - jnp.argmax(owned(tokens, samples)[..., ::-1], axis=-1))


class Mean(nn.Module):
    """The mean of the valid tokens, zero when there are none."""

    def __call__(self, tokens: Tokens, samples: int = 1) -> Float[Array, "B S D"]:
        mine = owned(tokens, samples)
        share = mine / jnp.maximum(jnp.sum(mine, axis=-1, keepdims=True), 1)
        clean = jnp.where(tokens.valid[..., None], tokens.x, 0)
        return jnp.einsum("bst,btd->bsd", share.astype(tokens.x.dtype), clean)


class WeightedMean(nn.Module):
    """A mean with learned weights: each of `heads` parts of the width has its own softmax of a linear score over the
    tokens (the attention of arXiv 1703.03130, equation 2, with one layer). `value` maps the tokens first."""

    heads: int = 1
    value: nn.Module = slot(Identity)

    @nn.compact
    def __call__(self, tokens: Tokens, samples: int = 1) -> Float[Array, "B S D"]:
        score = Linear("btd,dh->bth", (self.heads,), bias=False, name="score")(tokens.x).astype(jnp.float32)
        mine = owned(tokens, samples)[..., None]
        weight = nn.softmax(jnp.where(mine, score[:, None], jnp.finfo(jnp.float32).min), axis=2)
        weight = jnp.where(mine, weight, 0.0).astype(tokens.x.dtype)
        x = self.value(jnp.where(tokens.valid[..., None], tokens.x, 0))
        mixed = jnp.einsum("bsth,bthk->bshk", weight, x.reshape(*x.shape[:2], self.heads, -1))
        return mixed.reshape(*mixed.shape[:2], -1)


class AttentionPool(nn.Module):
    """A learned query per sample attends to its tokens, then a feed-forward (arXiv 1810.00825, section 3.2)."""

    heads: int
    mlp: int | None = None

    @nn.compact
    def __call__(self, tokens: Tokens, samples: int = 1) -> Float[Array, "B S D"]:
        batch, _, width = tokens.x.shape
        probe = declare(self, "probe", Normal(width**-0.5), latents=1, width=width).astype(tokens.x.dtype)
        query = jnp.broadcast_to(probe, (batch, samples, width))
        asks = Places.all_of(MODALITIES[0], batch, samples)
        asks = asks.replace(segment=asks.position + 1)
        told = tokens.places.replace(block=jnp.zeros_like(tokens.places.block))
        x = Attention(self.heads, name="attention")(query, asks, tokens.x, told)
        return x + FeedForward(self.mlp, name="feedforward")(LayerNorm(name="norm")(x))
