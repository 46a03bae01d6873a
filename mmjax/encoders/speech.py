"""Sound or other series to tokens: a convolutional stem and a transformer.

B rows   N items of a row   P = B N   K steps   F frames   C channels   D width   t tokens of an item
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mmjax.core.batch import MODALITIES, Audio, Sensor
from mmjax.core.dtypes import Dtypes
from mmjax.core.errors import UserError, look_up
from mmjax.core.parameters import slot
from mmjax.core.tokens import Places, Tokens
from mmjax.nn.activations import gelu_exact
from mmjax.nn.attention import Attention
from mmjax.nn.block import Block
from mmjax.nn.convs import SeriesConv
from mmjax.nn.feedforward import FeedForward
from mmjax.nn.norms import LayerNorm
from mmjax.nn.sizes import Size
from mmjax.nn.stack import Stack

WHISPERS = {
    "mu": Size(32, 2, 64, 2),
    "tiny": Size(384, 4, 1536, 6),
    "base": Size(512, 6, 2048, 8),
    "small": Size(768, 12, 3072, 12),
    "medium": Size(1024, 24, 4096, 16),
    "large": Size(1280, 32, 5120, 20),
}
"""Shape of encoder and decoder (arXiv 2212.04356, table 1)."""


def whisper_size(name: str) -> Size:
    """The shape called `name`. Raises UserError with the nearest names."""
    return look_up("Whisper", name, WHISPERS)


def whisper_block(size: Size, **slots: Any) -> Block:
    """A block with Whisper's parts. (Its keys have no bias; a bias of keys changes nothing.)"""
    return Block(Attention(size.heads), FeedForward(size.mlp, gelu_exact), LayerNorm(1e-5), **slots)


@dataclasses.dataclass(frozen=True)
class AsFeatures:
    """The steps of a `Sensor` slot are the frames: log-mel spectra that the data pipeline made, for example. Channels
    that an item lacks are zero."""

    def __call__(self, media: Sensor) -> tuple[Float[Array, "P F C"], Int[Array, " P"]]:
        values = jnp.where(media.channel[:, :, None], media.values, 0)
        return values.reshape(-1, *values.shape[2:]), media.length.reshape(-1)


@dataclasses.dataclass(frozen=True)
class Frames:
    """A waveform (`Audio`) cut into frames of `size` samples, one after the other: plain framing, no spectrum. What is
    left over at the end makes one more frame."""

    size: int = 160

    def __call__(self, media: Audio) -> tuple[Float[Array, "P F C"], Int[Array, " P"]]:
        samples = media.samples.reshape(-1, media.samples.shape[-1])
        samples = jnp.where(jnp.arange(samples.shape[1]) < media.length.reshape(-1, 1), samples, 0)
        samples = jnp.pad(samples, ((0, 0), (0, -samples.shape[1] % self.size)))
        return samples.reshape(samples.shape[0], -1, self.size), -(-media.length.reshape(-1) // self.size)


class Sinusoids(nn.Module):
    """Sines and cosines of the position, added (Vaswani et al. 2017, section 3.5; laid out as in Whisper: all sines,
    then all cosines)."""

    longest: float = 10_000.0

    def __call__(self, x: Float[Array, "B T D"], position: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        half = x.shape[-1] // 2
        if x.shape[-1] % 2:
            raise UserError(f"sine-cosine positions need an even width; got {x.shape[-1]}")
        speeds = self.longest ** (-jnp.arange(half) / max(half - 1, 1))
        angles = position[..., None] * speeds
        return x + jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1).astype(x.dtype)


class SpeechEncoder(nn.Module):
    """The encoder of Whisper (arXiv 2212.04356, section 2.2): two convolutions over time, of which the second halves
    the frames, sinusoidal positions and a transformer. t is F / 2, rounded up.

    front: media slot -> (features [P F C], how many frames are real [P]); `AsFeatures` for features in a `Sensor` slot,
    `Frames` for waveforms. Frames that are not real are invisible (Whisper itself pads to 30 s and looks at the
    padding): a longer slot changes nothing. Each item sees only itself."""

    stack: nn.Module
    width: int
    front: AsFeatures | Frames = AsFeatures()
    positions: nn.Module = slot(Sinusoids)
    norm: nn.Module = dataclasses.field(default_factory=lambda: LayerNorm(1e-5))
    dtypes: Dtypes = Dtypes()

    @classmethod
    def of(cls, size: str, **fields: Any) -> SpeechEncoder:
        """A published shape, `"base"` (see `WHISPERS`)."""
        shape = whisper_size(size)
        return cls(**({"stack": Stack(whisper_block(shape), shape.depth), "width": shape.width} | fields))

    @nn.compact
    def __call__(self, media: Audio | Sensor, *, train: bool = False) -> Tokens:
        features, length = self.front(media)
        length = jnp.where(media.valid.reshape(-1), length, 0)

        def real(x: Array) -> Array:
            return jnp.where((jnp.arange(x.shape[1]) < length[:, None])[..., None], x, 0)

        x = real(gelu_exact(SeriesConv(self.width, name="conv_0")(real(self.dtypes.enter(features)))))
        x = gelu_exact(SeriesConv(self.width, stride=2, name="conv_1")(x))
        places = self._places(media, (length + 1) // 2, x.shape[1])
        each = places.replace(segment=jnp.ones_like(places.segment))
        x = self.norm(self.stack(self.positions(x, places.position), each, train=train))
        rows = media.valid.shape[0]
        return Tokens(x.reshape(rows, -1, self.width), jax.tree.map(lambda part: part.reshape(rows, -1), places))

    def _places(self, media: Audio | Sensor, real: Int[Array, " P"], tokens: int) -> Places:
        """Places [P t] of all items."""
        kind = "audio" if isinstance(media, Audio) else "sensor"
        position = jnp.broadcast_to(jnp.arange(tokens), (real.shape[0], tokens))
        valid = position < real[:, None]
        segment = jnp.where(valid, media.segment.reshape(-1, 1), 0)
        return Places(valid, jnp.zeros_like(segment), segment, position, jnp.full_like(segment, MODALITIES.index(kind)))
