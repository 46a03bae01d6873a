"""Boxes in a picture, as numbers and as tokens.

A box is (x0, y0, x1, y1), corners relative to the picture's width and height, in [0, 1].
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mmjax.core.errors import UserError


def from_centre(box: Float[Array, "*n 4"]) -> Float[Array, "*n 4"]:
    """(centre x, centre y, width, height) -> corners."""
    centre, size = box[..., :2], box[..., 2:]
    return jnp.concatenate([centre - size / 2, centre + size / 2], axis=-1)


def to_centre(box: Float[Array, "*n 4"]) -> Float[Array, "*n 4"]:
    """Corners -> (centre x, centre y, width, height)."""
    low, high = box[..., :2], box[..., 2:]
    return jnp.concatenate([(low + high) / 2, high - low], axis=-1)


def area(box: Float[Array, "*n 4"]) -> Float[Array, "*n"]:
    """Width times height; 0 when a corner lies on the wrong side."""
    return jnp.prod(jnp.maximum(box[..., 2:] - box[..., :2], 0), axis=-1)


def _overlap(one: Array, other: Array) -> tuple[Array, Array]:
    """(intersection, union)."""
    low, high = jnp.maximum(one[..., :2], other[..., :2]), jnp.minimum(one[..., 2:], other[..., 2:])
    shared = area(jnp.concatenate([low, high], axis=-1))
    return shared, area(one) + area(other) - shared


def iou(one: Float[Array, "*n 4"], other: Float[Array, "*n 4"]) -> Float[Array, "*n"]:
    """Intersection over union, 0 where both are empty."""
    shared, union = _overlap(one, other)
    return shared / jnp.where(union > 0, union, 1.0)


def giou(one: Float[Array, "*n 4"], other: Float[Array, "*n 4"]) -> Float[Array, "*n"]:
    """Generalised intersection over union in (-1, 1] (arXiv 1902.09630, algorithm 1): also tells how far apart boxes
    are that do not meet."""
    shared, union = _overlap(one, other)
    low, high = jnp.minimum(one[..., :2], other[..., :2]), jnp.maximum(one[..., 2:], other[..., 2:])
    hull = area(jnp.concatenate([low, high], axis=-1))
    return shared / jnp.where(union > 0, union, 1.0) - (hull - union) / jnp.where(hull > 0, hull, 1.0)


@dataclasses.dataclass(frozen=True)
class BoxTokens:
    """Boxes as four ids of a vocabulary, in the order y0 x0 y1 x1 (Pix2Seq, arXiv 2109.10852, section 2.1): coordinates
    rounded to `bins` values, which are the ids first .. first + bins - 1."""

    first: int
    bins: int = 1000

    def __post_init__(self):
        if self.bins < 2 or self.first < 0:
            raise UserError(f"box tokens need 2 bins or more, ids from 0 on; got bins={self.bins}, first={self.first}")

    def encode(self, box: Float[Array, "*n 4"]) -> Int[Array, "*n 4"]:
        """Boxes -> ids; coordinates outside of the picture move to its border."""
        bins = jnp.round(jnp.clip(box, 0, 1) * (self.bins - 1)).astype(jnp.int32)
        return self.first + bins[..., jnp.array([1, 0, 3, 2])]

    def decode(self, ids: Int[Array, "*n 4"]) -> Float[Array, "*n 4"]:
        """Ids -> boxes, off by at most half a bin; NaN for an id that is no coordinate."""
        bins = ids[..., jnp.array([1, 0, 3, 2])] - self.first
        known = (bins >= 0) & (bins < self.bins)
        return jnp.where(known, bins / (self.bins - 1), jnp.nan)
