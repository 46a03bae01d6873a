"""Cheap augmentations of pictures on the device, inside the train step; exact identity where a batch has no pictures.

B rows   N pictures   H, W pixels
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from mmjax.core.batch import Batch


@dataclasses.dataclass(frozen=True)
class Jitter:
    """Random shift, zoom, stretch and colour of each picture; outside of the picture is `fill`.

    shift: at most this part of the side, each way. zoom: smallest and largest factor. stretch: largest relative
    difference of the two axes. brightness, contrast: largest relative change. Bilinear, separable: two small matrix
    products per picture instead of a gather, which is what makes it cheap.
    """

    shift: float = 0.1
    zoom: tuple[float, float] = (0.8, 1.1)
    stretch: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    fill: float = 255.0

    def __call__(self, rng: jax.Array, batch: Batch) -> Batch:
        if batch.image is None:
            return batch
        pixels = batch.image.pixels
        flat = pixels.reshape(-1, *pixels.shape[2:])
        moved = self._move(rng, flat).reshape(pixels.shape)
        return batch.replace(image=dataclasses.replace(batch.image, pixels=moved))

    def _move(self, rng: jax.Array, pixels: UInt8[Array, "B H W 3"]) -> UInt8[Array, "B H W 3"]:
        count, height, width, _ = pixels.shape
        keys = jax.random.split(rng, 5)
        zoom = jax.random.uniform(keys[0], (count, 1), minval=self.zoom[0], maxval=self.zoom[1])
        aspect = jnp.exp(jax.random.uniform(keys[1], (count, 1), minval=-self.stretch, maxval=self.stretch) / 2)
        offset = jax.random.uniform(keys[2], (count, 2), minval=-self.shift, maxval=self.shift)
        rows = _resample(height, zoom * aspect, offset[:, :1])
        columns = _resample(width, zoom / aspect, offset[:, 1:])
        centred = pixels.astype(jnp.float32) - self.fill  # so that what falls outside becomes `fill`
        centred = jnp.einsum("byh,bhwc->bywc", rows, centred)
        shown = jnp.einsum("bxw,bywc->byxc", columns, centred) + self.fill
        light = jax.random.uniform(keys[3], (count, 1, 1, 1), minval=-self.brightness, maxval=self.brightness)
        power = jax.random.uniform(keys[4], (count, 1, 1, 1), minval=-self.contrast, maxval=self.contrast)
        shown = (shown - 128) * (1 + power) + 128 + 255 * light
        return jnp.clip(jnp.round(shown), 0, 255).astype(jnp.uint8)


def _resample(size: int, zoom: Float[Array, "B 1"], offset: Float[Array, "B 1"]) -> Float[Array, "B out in"]:
    """Bilinear weights of each output place over input places for a centred zoom and a shift (part of the side)."""
    centre = (size - 1) / 2
    places = jnp.arange(size, dtype=jnp.float32)
    source = (places - centre) / zoom + centre - offset * size
    return jnp.maximum(0.0, 1.0 - jnp.abs(source[:, :, None] - places))
