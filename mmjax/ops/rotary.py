"""Rotary positions (RoFormer, arXiv 2104.09864, equation 34): along one axis, over a grid, or over text and media.

B batch   H heads   T tokens   K head width (even; a multiple of 4 over a grid)
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mmjax.core.batch import MODALITIES
from mmjax.core.errors import UserError, unknown_name
from mmjax.core.tokens import Live, Places


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
    the column (as in Pixtral, arXiv 2410.07073)."""

    columns: int
    base: float = 10_000.0

    def __call__(self, x: Float[Array, "B H T K"], places: Places) -> Float[Array, "B H T K"]:
        if x.shape[-1] % 4:
            raise UserError(f"grid rotary positions need a head width that is a multiple of 4; got {x.shape[-1]}")
        rows, columns = places.position // self.columns, places.position % self.columns
        quarter = x.shape[-1] // 4
        angles = [_angles(rows, quarter, self.base), _angles(columns, quarter, self.base)]
        return rotate(x, jnp.concatenate(angles, axis=-1))


@dataclasses.dataclass(frozen=True)
class MultimodalRotary:
    """Positions in time, height and width: M-RoPE (Qwen2-VL, arXiv 2409.12191, section 2.1).

    sections: how many of the K/2 pairs turn with each of the three.   grids: kind -> (frames, rows, columns) of the
    tokens of one item; kinds that are not named count on like text.

    The three positions of a text token are equal. The tokens of an item start together where the item starts and go on
    by frame, row and column; what follows starts one after the largest of them.
    """

    sections: tuple[int, int, int]
    grids: tuple[tuple[str, tuple[int, int, int]], ...] = ()
    base: float = 10_000.0

    def __post_init__(self):
        for kind, _ in self.grids:
            if kind not in MODALITIES:
                raise UserError(unknown_name("modality", kind, MODALITIES))

    def __call__(self, x: Float[Array, "B H T K"], places: Places) -> Float[Array, "B H T K"]:
        pairs = x.shape[-1] // 2
        if sum(self.sections) != pairs:
            raise UserError(
                f"multimodal rotary positions: the sections {self.sections} must add up to half the head width, {pairs}"
            )
        axes = self.axes(places.slots if isinstance(places, Live) else places)
        if isinstance(places, Live):
            axes = jax.lax.dynamic_slice_in_dim(axes, places.cursor, x.shape[2], axis=2)
        owner = jnp.repeat(jnp.arange(3), jnp.array(self.sections), total_repeat_length=pairs)
        speeds = self.base ** (-jnp.arange(pairs, dtype=jnp.float32) / pairs)
        return rotate(x, jnp.moveaxis(axes[owner], 0, -1).astype(jnp.float32) * speeds)

    def axes(self, places: Places) -> Int[Array, "3 B T"]:
        """Time, height and width of each place of whole rows."""
        time = height = width = places.position
        for kind, (frames, rows, columns) in self.grids:
            count = frames * rows * columns
            here = (places.modality == MODALITIES.index(kind)) & (places.segment > 0)
            before = _counted_before(here, places.segment)
            cell, saved = before % count, before // count * (count - max(frames, rows, columns))
            start = jnp.where(here, -cell, 0) - saved  # items that are over took fewer positions than tokens
            time = time + start + jnp.where(here, cell // (rows * columns), 0)
            height = height + start + jnp.where(here, cell // columns % rows, 0)
            width = width + start + jnp.where(here, cell % columns, 0)
        return jnp.stack([time, height, width])


def _counted_before(here: Bool[Array, "B T"], segment: Int[Array, "B T"]) -> Int[Array, "B T"]:
    """How many places of the same sample that are `here` stand before each place."""
    total = jnp.cumsum(here, axis=1) - here
    starts = segment != jnp.pad(segment, [(0, 0), (1, 0)])[:, :-1]
    return total - jax.lax.cummax(jnp.where(starts, total, 0), axis=1)
