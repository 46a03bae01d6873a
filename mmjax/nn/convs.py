"""Convolutions over pictures and series.

B batch   H, W height and width   T steps   C, O channels in and out
"""

from __future__ import annotations

import flax.linen as nn
import jax
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
