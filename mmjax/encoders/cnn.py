"""Convolutional networks over pictures: a grid of vectors, as a ViT gives.

B rows   N pictures of a row   P = B N   H, W pixels   h, w cells of the grid   C, D channels
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from mmjax.core.batch import Images
from mmjax.core.dtypes import Dtypes
from mmjax.core.errors import look_up
from mmjax.core.parameters import slot
from mmjax.core.tokens import Tokens
from mmjax.encoders.image import picture_places
from mmjax.nn.activations import relu, silu
from mmjax.nn.block import Chain
from mmjax.nn.convs import Conv, DepthwiseConv
from mmjax.nn.linear import Linear
from mmjax.nn.norms import GroupNorm
from mmjax.nn.stack import KeepAll, Stack

Convs = tuple[tuple[int, int, int], ...]
"""(features, size, stride) of convolutions in turn."""


def basic(width: int, stride: int) -> Convs:
    """Two convolutions (arXiv 1512.03385, figure 5, left)."""
    return (width, 3, stride), (width, 3, 1)


def bottleneck(width: int, stride: int) -> Convs:
    """A narrow convolution between two maps (arXiv 1512.03385, figure 5, right), with the stride in the middle."""
    return (width, 1, 1), (width, 3, stride), (4 * width, 1, 1)


class ResidualBlock(nn.Module):
    """x + norm(conv(.. relu(norm(conv(x))))), rectified; where the shape changes, x is mapped, too."""

    convs: Convs
    norm: nn.Module = slot(GroupNorm)

    @nn.compact
    def __call__(self, x: Float[Array, "P H W C"], *_: None, train: bool = False) -> Float[Array, "P h w D"]:
        def normed(name: str, y: Array, conv: tuple[int, int, int]) -> Array:
            y = Conv(*conv, bias=False, name=f"conv_{name}")(y)
            return self.norm.clone(parent=self, name=f"norm_{name}")(y)

        y = x
        for i, conv in enumerate(self.convs):
            y = normed(str(i), relu(y) if i else y, conv)
        if y.shape != x.shape:
            x = normed("short", x, (y.shape[-1], 1, math.prod(stride for _, _, stride in self.convs)))
        return relu(x + y)


RESNETS = {
    "18": (basic, (2, 2, 2, 2)),
    "34": (basic, (3, 4, 6, 3)),
    "50": (bottleneck, (3, 4, 6, 3)),
    "101": (bottleneck, (3, 4, 23, 3)),
    "152": (bottleneck, (3, 8, 36, 3)),
}
"""Kind and number of blocks of each stage (arXiv 1512.03385, table 1)."""


class ResNet(nn.Module):
    """A residual network without its classifier (arXiv 1512.03385). Cells are 32 pixels wide, D is 512 or 2048.

    block: (width, stride) -> convolutions of a block. depths: blocks of each stage; stages double the width and, from
    the second on, halve the grid. norm: one that knows no batch, so that a picture's tokens are its own; parameters
    are as many as with batch normalisation. Pixels become (x / 255 - mean) / std."""

    block: Callable[[int, int], Convs]
    depths: tuple[int, ...]
    width: int = 64
    norm: nn.Module = slot(GroupNorm)
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    dtypes: Dtypes = Dtypes()

    @classmethod
    def of(cls, size: str, **fields: object) -> ResNet:
        """A published depth, `"50"`. Raises UserError for others."""
        return cls(*look_up("ResNet", size, RESNETS), **fields)

    @nn.compact
    def __call__(self, images: Images, *, train: bool = False) -> Tokens:
        x = Conv(self.width, 7, 2, bias=False, name="stem")(_scaled(self, images))
        x = relu(self.norm.clone(parent=self, name="stem_norm")(x))
        x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
        for stage, depth in enumerate(self.depths):
            width, stride = self.width * 2**stage, 2 if stage else 1
            x = _stage(self._block(width, stride), self._block(width, 1), depth, f"stage_{stage}")(x, train=train)
        return _tokens(x, images)

    def _block(self, width: int, stride: int) -> ResidualBlock:
        return ResidualBlock(self.block(width, stride), self.norm.clone(parent=None, name=None), parent=None)


class SqueezeExcite(nn.Module):
    """Channels weighed by what the whole picture holds (arXiv 1709.01507, section 3)."""

    hidden: int

    @nn.compact
    def __call__(self, x: Float[Array, "P H W C"]) -> Float[Array, "P H W C"]:
        y = silu(Linear("bd,de->be", (self.hidden,), name="squeeze")(jnp.mean(x, axis=(1, 2))))
        y = nn.sigmoid(Linear("be,ed->bd", (x.shape[-1],), name="excite")(y))
        return x * y[:, None, None]


class MBConv(nn.Module):
    """Widen, convolve each channel by itself, squeeze and excite, narrow (arXiv 1801.04381, section 3.3, with
    squeeze-excitation as in EfficientNet). drop: how often training leaves the branch out of a picture (arXiv
    1603.09382)."""

    width: int
    size: int = 3
    stride: int = 1
    expand: int = 6
    norm: nn.Module = slot(GroupNorm)
    drop: float = 0.0

    @nn.compact
    def __call__(self, x: Float[Array, "P H W C"], *_: None, train: bool = False) -> Float[Array, "P h w D"]:
        def normed(name: str, y: Array) -> Array:
            return self.norm.clone(parent=self, name=f"{name}_norm")(y)

        channels, y = x.shape[-1], x
        if self.expand > 1:
            y = silu(normed("widen", Conv(channels * self.expand, 1, bias=False, name="widen")(y)))
        y = silu(normed("each", DepthwiseConv(self.size, self.stride, bias=False, name="depthwise")(y)))
        y = SqueezeExcite(max(1, channels // 4), name="excite")(y)
        y = normed("narrow", Conv(self.width, 1, bias=False, gain=1.0, name="narrow")(y))
        if y.shape != x.shape:
            return y
        return x + nn.Dropout(self.drop, broadcast_dims=(1, 2, 3), deterministic=not train)(y)


@dataclasses.dataclass(frozen=True)
class Stage:
    """`depth` blocks of one width; the first has the stride."""

    expand: int
    size: int
    stride: int
    width: int
    depth: int

    def scaled(self, width: float, depth: float) -> Stage:
        """A wider and deeper stage."""
        return dataclasses.replace(self, width=rounded(self.width * width), depth=math.ceil(self.depth * depth))


def rounded(width: float) -> int:
    """The nearest multiple of 8 that is not less than nine tenths of `width`."""
    near = max(8, int(width + 4) // 8 * 8)
    return near + 8 if near < 0.9 * width else near


B0 = (
    Stage(1, 3, 1, 16, 1),
    Stage(6, 3, 2, 24, 2),
    Stage(6, 5, 2, 40, 2),
    Stage(6, 3, 2, 80, 3),
    Stage(6, 5, 1, 112, 3),
    Stage(6, 5, 2, 192, 4),
    Stage(6, 3, 1, 320, 1),
)
"""EfficientNet-B0 (arXiv 1905.11946, table 1)."""

EFFICIENTNETS = {
    "B0": (1.0, 1.0, 224),
    "B1": (1.0, 1.1, 240),
    "B2": (1.1, 1.2, 260),
    "B3": (1.2, 1.4, 300),
    "B4": (1.4, 1.8, 380),
    "B5": (1.6, 2.2, 456),
    "B6": (1.8, 2.6, 528),
    "B7": (2.0, 3.1, 600),
}
"""(width, depth) as multiples of B0, and the pixels each was made for (arXiv 1905.11946, section 4, released code)."""


class EfficientNet(nn.Module):
    """MBConv stages between a stem and a last map, without the classifier (arXiv 1905.11946). Cells are 32 pixels wide.

    norm: as in `ResNet`; groups of 8 channels come out even in all published widths. drop: of every block."""

    stages: tuple[Stage, ...] = B0
    stem: int = 32
    top: int = 1280
    norm: nn.Module = dataclasses.field(default_factory=lambda: GroupNorm(8, 1e-3))
    drop: float = 0.0
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    dtypes: Dtypes = Dtypes()

    @classmethod
    def of(cls, size: str, **fields: object) -> EfficientNet:
        """A published scaling, `"B3"`. Raises UserError for others."""
        width, depth, _ = look_up("EfficientNet", size, EFFICIENTNETS)
        stages = tuple(stage.scaled(width, depth) for stage in B0)
        return cls(stages, rounded(32 * width), rounded(1280 * width), **fields)

    @nn.compact
    def __call__(self, images: Images, *, train: bool = False) -> Tokens:
        def mapped(name: str, x: Array, *conv: int) -> Array:
            x = Conv(*conv, bias=False, name=name)(x)
            return silu(self.norm.clone(parent=self, name=f"{name}_norm")(x))

        x = mapped("stem", _scaled(self, images), self.stem, 3, 2)
        for i, stage in enumerate(self.stages):
            first, rest = (self._block(stage, stride) for stride in (stage.stride, 1))
            x = _stage(first, rest, stage.depth, f"stage_{i}")(x, train=train)
        return _tokens(mapped("top", x, self.top, 1), images)

    def _block(self, stage: Stage, stride: int) -> MBConv:
        norm = self.norm.clone(parent=None, name=None)
        return MBConv(stage.width, stage.size, stride, stage.expand, norm, self.drop, parent=None)


def _stage(first: nn.Module, rest: nn.Module, depth: int, name: str) -> Chain:
    """The block that changes the shape, then equal ones as one scanned stack."""
    return Chain((first, Stack(rest, depth - 1, KeepAll(), parent=None)), name=name)


def _scaled(encoder: ResNet | EfficientNet, images: Images) -> Float[Array, "P H W 3"]:
    """All pictures as the network likes them."""
    pixels = images.pixels.reshape(-1, *images.pixels.shape[2:]).astype(jnp.float32)
    return encoder.dtypes.enter((pixels / 255 - jnp.array(encoder.mean)) / jnp.array(encoder.std))


def _tokens(x: Float[Array, "P h w D"], images: Images) -> Tokens:
    """The cells of the grid, row by row."""
    cells = x.shape[1] * x.shape[2]
    return Tokens(x.reshape(images.pixels.shape[0], -1, x.shape[-1]), picture_places(images, cells))
