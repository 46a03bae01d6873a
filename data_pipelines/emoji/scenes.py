"""Scenes: things side by side on a plain ground, each in a cell of its own, and where each one lies.

CLEVR's idea (Johnson et al. 2017, arXiv 1612.06890: what is in a picture is known because it was composed) with drawn
things in place of solids.   n scenes, P places (cells), R pixels
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8, UInt64

from data_pipelines.emoji.sprites import extents, sprites
from data_pipelines.randomness import fold, named, uniform
from mmjax.core.errors import UserError

SIDE = 3  # cells along each side
PLACES = SIDE * SIDE
GROUNDS = np.array([(255, 255, 255), (244, 238, 222), (222, 236, 246), (228, 242, 224), (246, 226, 232),
                    (232, 228, 246), (226, 226, 226), (252, 246, 206)], np.uint8)  # fmt: skip
LARGE, SMALL = 0.9, 0.55  # of a cell
NOTHING = -1


def check_size(resolution: int, count: int) -> None:
    """Raises UserError for pictures that are too small or too large to paint, and for no scenes."""
    if not 48 <= resolution <= 288:
        raise UserError(f"resolution must lie in 48..288 pixels; got {resolution}")
    if count < 1:
        raise UserError(f"scenes must be at least 1; got {count}")


@dataclasses.dataclass(frozen=True)
class Scenes:
    """What lies where. `thing` counts `inventory.things()` and is NOTHING in unused places; `cell` counts by rows."""

    thing: Int[np.ndarray, "n P"]
    cell: Int[np.ndarray, "n P"]
    large: Bool[np.ndarray, "n P"]
    shift: Float[np.ndarray, "n P 2"]  # x, y in [0, 1) of the room that a cell leaves
    style: Int[np.ndarray, " n"]
    ground: Int[np.ndarray, " n"]

    @property
    def row(self) -> Int[np.ndarray, "n P"]:
        """Counted from above."""
        return self.cell // SIDE

    @property
    def column(self) -> Int[np.ndarray, "n P"]:
        """Counted from the left."""
        return self.cell % SIDE


def scattered(
    thing: Int[np.ndarray, "n P"],
    styles: tuple[int, ...],
    keys: UInt64[np.ndarray, " n"],
    first: Int[np.ndarray, "n 2"],
) -> Scenes:
    """Things in cells drawn by `keys`, but the first two in the cells `first` where these are not NOTHING."""
    places = np.arange(PLACES)
    draw = uniform(fold(named(keys, "cell")[:, None], places))
    pinned = np.flatnonzero(first[:, 0] != NOTHING)
    draw[pinned, first[pinned, 0]], draw[pinned, first[pinned, 1]] = -2, -1
    each = fold(named(keys, "place")[:, None], places)
    shift = np.stack([uniform(fold(each, 0)), uniform(fold(each, 1))], axis=2)
    style = np.array(styles)[(uniform(named(keys, "style")) * len(styles)).astype(np.int64)]
    ground = (uniform(named(keys, "ground")) * len(GROUNDS)).astype(np.int64)
    return Scenes(thing, np.argsort(draw, axis=1), uniform(fold(each, 2)) < 0.5, shift, style, ground)


def paint(scenes: Scenes, resolution: int) -> tuple[UInt8[np.ndarray, "n R R 3"], Float[np.ndarray, "n P 4"]]:
    """Pictures, and the box around each thing: left, top, right, bottom as shares of the picture; nan for no thing."""
    shape = (len(scenes.style), resolution, resolution, 3)
    pixels = np.broadcast_to(GROUNDS[scenes.ground][:, None, None], shape).copy()
    boxes = np.full((*scenes.thing.shape, 4), np.nan, np.float32)
    cell = resolution // SIDE
    margin = (resolution - SIDE * cell) // 2
    for share, chosen in ((LARGE, scenes.large), (SMALL, ~scenes.large)):
        size = round(share * cell)
        scene, place = np.nonzero(chosen & (scenes.thing != NOTHING))
        room = (scenes.shift[scene, place] * (cell - size + 1)).astype(np.int64)
        corner = np.stack([scenes.column[scene, place], scenes.row[scene, place]], axis=1) * cell + room + margin
        drawn = scenes.style[scene], scenes.thing[scene, place]
        columns, rows = (corner[:, axis, None] + np.arange(size) for axis in (0, 1))
        ground = GROUNDS[scenes.ground[scene]][:, None, None]
        pixels[scene[:, None, None], rows[:, :, None], columns[:, None, :]] = _over(sprites(size)[drawn], ground)
        boxes[scene, place] = (extents(size)[drawn] + np.tile(corner, 2)) / resolution
    return pixels, boxes


def _over(sprite: UInt8[np.ndarray, "k r r 4"], ground: UInt8[np.ndarray, "k 1 1 3"]) -> UInt8[np.ndarray, "k r r 3"]:
    opacity = sprite[..., 3:].astype(np.uint16)
    return ((sprite[..., :3] * opacity + ground * (255 - opacity) + 127) // 255).astype(np.uint8)
