"""Normalisation, in float32.  B batch   H, W height and width   C channels   D width"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mmjax.core.errors import UserError
from mmjax.core.parameters import declare


class LayerNorm(nn.Module):
    """Zero mean, unit variance, learned scale and offset (arXiv 1607.06450). [... D] -> [... D]."""

    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: Array) -> Array:
        wide = x.astype(jnp.float32)
        mean = jnp.mean(wide, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(wide - mean), axis=-1, keepdims=True)
        scale = declare(self, "scale", nn.initializers.ones, width=x.shape[-1])
        bias = declare(self, "bias", nn.initializers.zeros, width=x.shape[-1])
        return ((wide - mean) * jax.lax.rsqrt(variance + self.epsilon) * scale + bias).astype(x.dtype)


class RMSNorm(nn.Module):
    """Unit root mean square, learned scale (arXiv 1910.07467). [... D] -> [... D]."""

    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: Array) -> Array:
        wide = x.astype(jnp.float32)
        power = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
        scale = declare(self, "scale", nn.initializers.ones, width=x.shape[-1])
        return (wide * jax.lax.rsqrt(power + self.epsilon) * scale).astype(x.dtype)


class CentredRMSNorm(nn.Module):
    """RMSNorm whose learned scale is 1 + a parameter that starts at, and decays to, zero (Gemma, arXiv 2403.08295)."""

    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: Array) -> Array:
        wide = x.astype(jnp.float32)
        power = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
        scale = 1 + declare(self, "scale", nn.initializers.zeros, width=x.shape[-1])
        return (wide * jax.lax.rsqrt(power + self.epsilon) * scale).astype(x.dtype)


class PictureNorm(nn.Module):
    """Zero mean, unit variance over a whole picture, learned scale and offset per channel: group normalisation with one
    group (arXiv 1803.08494). [B H W D] -> [B H W D]. Unlike LayerNorm it keeps what differs between places."""

    epsilon: float = 1e-4

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return _normed(self, x, x.shape[-1])


class GroupNorm(nn.Module):
    """Zero mean, unit variance over the places of a picture and a group of `size` neighbouring channels, learned scale
    and offset per channel (arXiv 1803.08494). [B H W C] -> [B H W C].

    A picture's outputs do not depend on its batch, and there are no running statistics. size=1 is instance
    normalisation; PictureNorm is one group of all. Raises UserError when groups do not come out even."""

    size: int = 16
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        if x.shape[-1] % self.size:
            channels = x.shape[-1]
            raise UserError(f"GroupNorm: groups of {self.size} channels do not divide {channels}; take another size")
        return _normed(self, x, self.size)


def _normed(norm: PictureNorm | GroupNorm, x: Float[Array, "B H W C"], size: int) -> Float[Array, "B H W C"]:
    """Over places and groups of `size` channels.

    Places are summed first, each channel by itself: all that follows, and all of its gradient, is small or is one map
    of [B H W C]. The variance is that about a mean held still, which has the same derivatives and no other path to x.
    On two cores (Ice Lake) the step of the demo's towers takes 6 to 9 % less than with sums over groups."""
    batch, height, width, channels = x.shape
    wide = x.astype(jnp.float32)

    def mean(values: Float[Array, "B H W C"]) -> Float[Array, "B 1 1 C"]:
        """Of each channel's group."""
        sums = jnp.sum(values, axis=(1, 2)).reshape(batch, -1, size)
        means = jnp.sum(sums, axis=-1, keepdims=True) / (height * width * size)
        return jnp.broadcast_to(means, sums.shape).reshape(batch, 1, 1, channels)

    centre = mean(wide)
    still = jax.lax.stop_gradient(centre)
    variance = mean(jnp.square(wide - still)) - jnp.square(centre - still)
    scale = declare(norm, "scale", nn.initializers.ones, width=channels)
    bias = declare(norm, "bias", nn.initializers.zeros, width=channels)
    factor = jax.lax.rsqrt(variance + norm.epsilon) * scale
    return (wide * factor + (bias - centre * factor)).astype(x.dtype)


class Identity(nn.Module):
    """No normalisation: the no-op that stands in a norm's place."""

    def __call__(self, x: Array) -> Array:
        return x
