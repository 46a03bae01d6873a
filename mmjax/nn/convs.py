"""Convolutions over pictures and series, and a norm for them that knows no batch.

B batch   H, W height and width   T steps   C, O channels in and out
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mmjax.core.errors import UserError
from mmjax.core.parameters import declare
from mmjax.nn.linear import Normal

RECTIFIED = 2**0.5  # keeps the variance through a rectifier (He et al. 2015, arXiv 1502.01852)


class Conv(nn.Module):
    """A `size` x `size` convolution with zero padding, `stride` apart.

    groups: the channels are cut into as many parts, each of which makes its own share of the features (ResNeXt, arXiv
    1611.05431). Raises UserError when the parts do not come out even."""

    features: int
    size: int = 3
    stride: int = 1
    bias: bool = True
    gain: float = RECTIFIED
    groups: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H2 W2 O"]:
        if x.shape[-1] % self.groups or self.features % self.groups:
            raise UserError(
                f"convolution: {self.groups} groups must divide the {x.shape[-1]} channels in and {self.features} out"
            )
        channels, size = x.shape[-1] // self.groups, self.size
        init = Normal(self.gain * (size * size * channels) ** -0.5)
        kernel = declare(self, "kernel", init, patch=size, patch_=size, channel=channels, width=self.features)
        y = jax.lax.conv_general_dilated(
            x,
            kernel.astype(x.dtype),
            (self.stride,) * 2,
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=self.groups,
        )
        if not self.bias:
            return y
        return y + declare(self, "bias", nn.initializers.zeros, width=self.features).astype(x.dtype)


class DepthwiseConv(nn.Module):
    """A `size` x `size` convolution of each channel by itself (arXiv 1704.04861, section 3.1)."""

    size: int = 3
    stride: int = 1
    bias: bool = True
    gain: float = RECTIFIED

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H2 W2 C"]:
        channels = x.shape[-1]
        return Conv(channels, self.size, self.stride, self.bias, self.gain, channels, name="each")(x)


class SeriesConv(nn.Module):
    """A convolution over time. Padding is zeros, as many before as after (one more after when `size` is even), so that
    a longer series of zeros changes nothing at the steps before: T2 is T / stride, rounded up."""

    features: int
    size: int = 3
    stride: int = 1
    bias: bool = True
    gain: float = RECTIFIED

    @nn.compact
    def __call__(self, x: Float[Array, "B T C"]) -> Float[Array, "B T2 O"]:
        channels, size = x.shape[-1], self.size
        init = Normal(self.gain * (size * channels) ** -0.5)
        kernel = declare(self, "kernel", init, patch=size, channel=channels, width=self.features)
        around = [((size - 1) // 2, size // 2)]
        y = jax.lax.conv_general_dilated(
            x, kernel.astype(x.dtype), (self.stride,), around, dimension_numbers=("NWC", "WIO", "NWC")
        )
        if not self.bias:
            return y
        return y + declare(self, "bias", nn.initializers.zeros, width=self.features).astype(x.dtype)


class GroupNorm(nn.Module):
    """Zero mean, unit variance over the places of a picture and a group of `size` neighbouring channels, learned scale
    and offset per channel, in float32 (arXiv 1803.08494). [B H W C] -> [B H W C].

    A picture's outputs do not depend on its batch, and there are no running statistics. size=1 is instance
    normalisation; `nn.norms.PictureNorm` is one group of all. Raises UserError when groups do not come out even."""

    size: int = 16
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        batch, height, width, channels = x.shape
        if channels % self.size:
            raise UserError(f"GroupNorm: groups of {self.size} channels do not divide {channels}; take another size")
        wide = x.astype(jnp.float32).reshape(batch, height, width, -1, self.size)
        mean = jnp.mean(wide, axis=(1, 2, 4), keepdims=True)
        variance = jnp.mean(jnp.square(wide - mean), axis=(1, 2, 4), keepdims=True)
        scale = declare(self, "scale", nn.initializers.ones, width=channels)
        bias = declare(self, "bias", nn.initializers.zeros, width=channels)
        normed = ((wide - mean) * jax.lax.rsqrt(variance + self.epsilon)).reshape(x.shape)
        return (normed * scale + bias).astype(x.dtype)
