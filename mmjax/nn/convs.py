"""Convolutions over pictures.  B batch   H, W height and width   C, O channels in and out"""

from __future__ import annotations

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from mmjax.core.parameters import declare
from mmjax.nn.linear import Normal


class Conv(nn.Module):
    """A `size` x `size` convolution with zero padding, `stride` apart."""

    features: int
    size: int = 3
    stride: int = 1
    bias: bool = True
    gain: float = 2**0.5  # keeps the variance through a rectifier (He et al. 2015, arXiv 1502.01852)

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H2 W2 O"]:
        channels, size = x.shape[-1], self.size
        init = Normal(self.gain * (size * size * channels) ** -0.5)
        kernel = declare(self, "kernel", init, patch=size, patch_=size, channel=channels, width=self.features)
        y = jax.lax.conv_general_dilated(
            x, kernel.astype(x.dtype), (self.stride,) * 2, "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        if not self.bias:
            return y
        return y + declare(self, "bias", nn.initializers.zeros, width=self.features).astype(x.dtype)
