"""Rotary positions (RoFormer, arXiv 2104.09864, equation 34), along one axis or over a grid.

B batch   H heads   T tokens   K head width (even; a multiple of 4 over a grid)
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mmjax.core.errors import UserError
from mmjax.core.tokens import Places


def _angles(position: Int[Array, "B T"], pairs: int, base: float) -> Float[Array, "B T pairs"]:
    speeds = base ** (-jnp.arange(pairs, dtype=jnp.float32) / pairs)
    return position[..., None].astype(jnp.float32) * speeds


def rotate(x: Float[Array, "B H T K"], angles: Float[Array, "B T half"]) -> Float[Array, "B H T K"]:
    """Turns the pairs (x[i], x[i + K/2]) by `angles`, in float32."""
    cos, sin = jnp.cos(angles)[:, None], jnp.sin(angles)[:, None]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


@dataclasses.dataclass(frozen=True)
class Rotary:
    """Positions along the row."""

    base: float = 10_000.0

    def __call__(self, x: Float[Array, "B H T K"], places: Places) -> Float[Array, "B H T K"]:
        if x.shape[-1] % 2:
            raise UserError(f"rotary positions turn pairs: the head width must be even; got {x.shape[-1]}")
        return rotate(x, _angles(places.position, x.shape[-1] // 2, self.base))


@dataclasses.dataclass(frozen=True)
class GridRotary:
    """Positions over a grid of `columns` columns in row-major order: half of the pairs turn with the row, half with
    the column (as in Pixtral, arXiv 2410.07073, section 2.1)."""

    columns: int
    base: float = 10_000.0

    def __call__(self, x: Float[Array, "B H T K"], places: Places) -> Float[Array, "B H T K"]:
        if x.shape[-1] % 4:
            raise UserError(f"grid rotary positions need a head width that is a multiple of 4; got {x.shape[-1]}")
        rows, columns = places.position // self.columns, places.position % self.columns
        quarter = x.shape[-1] // 4
        angles = [_angles(rows, quarter, self.base), _angles(columns, quarter, self.base)]
        return rotate(x, jnp.concatenate(angles, axis=-1))
