"""Pictures to tokens.  B rows   N pictures in a row   H, W pixels   T tokens of a picture   D width"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from mmjax.core.batch import MODALITIES, Images
from mmjax.core.dtypes import Dtypes
from mmjax.core.parameters import declare, slot
from mmjax.core.tokens import Places, Tokens
from mmjax.nn.activations import gelu
from mmjax.nn.attention import Attention
from mmjax.nn.block import Block
from mmjax.nn.convs import Conv
from mmjax.nn.embeddings import LearnedGrid, NoPositions
from mmjax.nn.feedforward import FeedForward
from mmjax.nn.linear import Linear, Normal
from mmjax.nn.norms import Identity, LayerNorm
from mmjax.nn.sizes import with_patch
from mmjax.nn.stack import Stack
from mmjax.ops.patches import grid, patchify


class PatchStem(nn.Module):
    """Non-overlapping patches, linearly mapped (ViT, arXiv 2010.11929, equation 1)."""

    patch: int
    width: int
    bias: bool = True

    @nn.compact
    def __call__(self, pixels: Float[Array, "B H W 3"]) -> Float[Array, "B h w D"]:
        h, w = grid(*pixels.shape[1:3], self.patch)
        x = Linear("btp,pd->btd", (self.width,), self.bias, name="patches")(patchify(pixels, self.patch))
        return x.reshape(x.shape[0], h, w, self.width)


class ConvStem(nn.Module):
    """Convolutions before the tokens: trains faster and from less data than patches (arXiv 2106.14881).

    The picture is cut into `patch` x `patch` cells (a reshape), then each stage (width, kernel, stride) is a
    convolution, a norm and a GELU; a stage that keeps the shape is residual. The last width is that of the tokens."""

    stages: tuple[tuple[int, int, int], ...]
    patch: int = 1
    norm: nn.Module = slot(LayerNorm)

    @nn.compact
    def __call__(self, pixels: Float[Array, "B H W 3"]) -> Float[Array, "B h w D"]:
        h, w = grid(*pixels.shape[1:3], self.patch)
        x = patchify(pixels, self.patch).reshape(pixels.shape[0], h, w, -1)
        for i, (width, size, stride) in enumerate(self.stages):
            y = Conv(width, size, stride, name=f"conv_{i}")(x)
            y = gelu(self.norm.clone(parent=self, name=f"norm_{i}")(y))
            x = x + y if y.shape == x.shape else y
        return x


class NoClassToken(nn.Module):
    """Patches only."""

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        return x


class ClassToken(nn.Module):
    """A learned token before the patches."""

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T1 D"]:
        token = declare(self, "token", Normal(0.02), latents=1, width=x.shape[-1])
        # Its position is part of itself: adding another learned vector would be the same function.
        return jnp.concatenate([jnp.broadcast_to(token.astype(x.dtype), (x.shape[0], 1, x.shape[-1])), x], axis=1)


class ViT(nn.Module):
    """A transformer over the cells of a picture.

    Slots: `stem` (pixels -> grid of vectors), `positions` (added to the grid), `class_token`, `before` and `norm`
    (norms before and after the stack). Each picture sees only itself; a picture that is not valid yields invalid
    tokens. Pixels become (x / 255 - mean) / std.
    """

    stem: nn.Module
    stack: nn.Module
    positions: nn.Module = slot(NoPositions)
    class_token: nn.Module = slot(NoClassToken)
    before: nn.Module = slot(Identity)
    norm: nn.Module = slot(LayerNorm)
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    dtypes: Dtypes = Dtypes()

    @classmethod
    def of(cls, size: str, resolution: int = 224, **slots: object) -> ViT:
        """A published shape, `"B/16"` (see `mmjax.nn.sizes`), for `resolution` pixels; `slots` replace parts."""
        shape, patch = with_patch(size)
        block = Block(Attention(shape.heads), FeedForward(shape.mlp))
        side = resolution // patch
        parts = {
            "stem": PatchStem(patch, shape.width),
            "stack": Stack(block, shape.depth),
            "positions": LearnedGrid((side, side)),
        }
        return cls(**(parts | slots))

    def patches(self, images: Images) -> tuple[Float[Array, "P T D"], tuple[int, int]]:
        """The cells of all P = B N pictures as vectors, before positions, and how many rows and columns there are."""
        pixels = images.pixels.reshape(-1, *images.pixels.shape[2:])
        scale, shift = 1 / (255 * jnp.array(self.std)), jnp.array(self.mean) / jnp.array(self.std)
        x = self.stem(self.dtypes.enter(pixels.astype(jnp.float32) * scale - shift))
        return x.reshape(x.shape[0], -1, x.shape[-1]), x.shape[1:3]

    def __call__(self, images: Images, *, train: bool = False) -> Tokens:
        x = self.positions(*self.patches(images))
        x = self.before(self.class_token(x))
        x = self.norm(self.stack(x, train=train))
        return Tokens(x.reshape(images.pixels.shape[0], -1, x.shape[-1]), picture_places(images, x.shape[1]))


def picture_places(images: Images, tokens: int) -> Places:
    """Places of `tokens` tokens for each of a row's pictures."""

    def each(flag: Array) -> Array:
        return jnp.repeat(flag, tokens, axis=1)

    segment = each(jnp.where(images.valid, images.segment, 0))
    position = jnp.broadcast_to(jnp.tile(jnp.arange(tokens), images.valid.shape[1]), segment.shape)
    kind = jnp.full_like(segment, MODALITIES.index("image"))
    return Places(each(images.valid), jnp.zeros_like(segment), segment, position, kind)
