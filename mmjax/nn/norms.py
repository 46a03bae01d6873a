"""Normalisation over the last dimension, in float32."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array

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
        wide = x.astype(jnp.float32)
        mean = jnp.mean(wide, axis=(1, 2, 3), keepdims=True)
        variance = jnp.mean(jnp.square(wide - mean), axis=(1, 2, 3), keepdims=True)
        scale = declare(self, "scale", nn.initializers.ones, width=x.shape[-1])
        bias = declare(self, "bias", nn.initializers.zeros, width=x.shape[-1])
        return ((wide - mean) * jax.lax.rsqrt(variance + self.epsilon) * scale + bias).astype(x.dtype)


class Identity(nn.Module):
    """No normalisation: the no-op that stands in a norm's place."""

    def __call__(self, x: Array) -> Array:
        return x
