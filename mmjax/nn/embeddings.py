"""Ids and positions as vectors.  B batch   T tokens   D width   V vocabulary"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mmjax.core.errors import UserError
from mmjax.core.parameters import Initializer, declare
from mmjax.nn.linear import Normal
from mmjax.ops.patches import resample_table


class TokenEmbedding(nn.Module):
    """A table of V vectors, which start as `init` (rng, shape, format) -> array makes them."""

    vocab: int
    width: int
    init: Initializer = Normal(0.02)

    @nn.compact
    def __call__(self, ids: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        table = declare(self, "table", self.init, vocab=self.vocab, width=self.width)
        return jnp.take(table, ids, axis=0, mode="clip")


class ScaledEmbedding(nn.Module):
    """A table of V vectors, multiplied by sqrt(D) where they enter but not where they judge (Vaswani et al. 2017,
    section 3.4; Gemma, arXiv 2403.08295)."""

    vocab: int
    width: int
    init: Initializer = Normal(0.02)

    @nn.compact
    def __call__(self, ids: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        table = declare(self, "table", self.init, vocab=self.vocab, width=self.width)
        return jnp.take(table, ids, axis=0, mode="clip") * self.width**0.5


class LearnedPositions(nn.Module):
    """A learned vector per position, added. Rows longer than the table are refused."""

    length: int
    deviation: float = 0.01

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], position: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        if x.shape[1] > self.length:
            raise UserError(f"the position table has {self.length} entries; the row has {x.shape[1]} tokens")
        table = declare(self, "table", Normal(self.deviation), position=self.length, width=x.shape[-1])
        return x + jnp.take(table, position, axis=0, mode="clip").astype(x.dtype)


class NoPositions(nn.Module):
    """Nothing added: for rotary attention, bags of words, or convolutional stems."""

    def __call__(self, x: Array, *_: object) -> Array:
        return x


class LearnedGrid(nn.Module):
    """A learned vector per cell of a `grid` of patches, resampled when the picture has another grid."""

    grid: tuple[int, int]
    deviation: float = 0.02

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], shape: tuple[int, int]) -> Float[Array, "B T D"]:
        rows, columns = self.grid
        table = declare(self, "table", Normal(self.deviation), position=rows * columns, width=x.shape[-1])
        table = resample_table(table.reshape(rows, columns, -1), shape)
        return x + table.reshape(1, shape[0] * shape[1], -1).astype(x.dtype)


class SinCosGrid(nn.Module):
    """Fixed sines and cosines of row and column (MoCo v3, arXiv 2104.02057, section 5). D must be a multiple of 4."""

    temperature: float = 10_000.0

    def __call__(self, x: Float[Array, "B T D"], shape: tuple[int, int]) -> Float[Array, "B T D"]:
        width = x.shape[-1]
        if width % 4:
            raise UserError(f"sine-cosine positions over a grid need a width that is a multiple of 4; got {width}")
        speeds = self.temperature ** (-jnp.arange(width // 4) / (width // 4 - 1 or 1))
        rows, columns = jnp.mgrid[: shape[0], : shape[1]]
        angles = [places.reshape(-1, 1) * speeds for places in (columns, rows)]
        return x + jnp.concatenate([f(a) for a in angles for f in (jnp.sin, jnp.cos)], axis=1)[None].astype(x.dtype)
