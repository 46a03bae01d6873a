"""Pictures to patches, and position tables for another grid.

H, W height and width in pixels   h, w grid of patches   P pixels of a patch   C channels   D width
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mmjax.core.errors import UserError


def grid(height: int, width: int, patch: int) -> tuple[int, int]:
    """(h, w) patches of a picture. Raises UserError when the patch does not divide it."""
    if height % patch or width % patch:
        raise UserError(
            f"patches of {patch} pixels do not tile a picture of {height} x {width}; resize it to multiples of {patch}"
        )
    return height // patch, width // patch


def patchify(pixels: Float[Array, "*b H W C"], patch: int) -> Float[Array, "*b hw PPC"]:
    """Non-overlapping patches in row-major order, pixels of a patch row-major, channel last.

    A reshape and a transpose: the matrix product that follows is what a strided convolution would compute."""
    *lead, height, width, channels = pixels.shape
    h, w = grid(height, width, patch)
    cells = pixels.reshape(*lead, h, patch, w, patch, channels)
    cells = jnp.swapaxes(cells, -4, -3)
    return cells.reshape(*lead, h * w, patch * patch * channels)


def unpatchify(patches: Float[Array, "*b hw PPC"], height: int, width: int, patch: int) -> Float[Array, "*b H W C"]:
    """The inverse of `patchify`."""
    *lead, _, size = patches.shape
    h, w = grid(height, width, patch)
    cells = patches.reshape(*lead, h, w, patch, patch, size // patch**2)
    return jnp.swapaxes(cells, -4, -3).reshape(*lead, height, width, -1)


def resample_table(table: Float[Array, "h w D"], shape: tuple[int, int]) -> Float[Array, "h2 w2 D"]:
    """A learned position table for another grid, by antialiased bicubic interpolation (ViT, arXiv 2010.11929, 3.2)."""
    if table.shape[:2] == shape:
        return table
    return jax.image.resize(table, (*shape, table.shape[-1]), method="cubic", antialias=True)
