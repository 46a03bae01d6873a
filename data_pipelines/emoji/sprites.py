"""The pictures of things cut out along their own outline, to be put on any ground.   S styles, N things, R pixels"""

from __future__ import annotations

import functools
import io

import numpy as np
from jaxtyping import Bool, Int, UInt8
from PIL import Image

from data_pipelines.cache import cached
from data_pipelines.emoji.art import MASTER
from data_pipelines.emoji.catalogue import STYLES, catalogue, drawings, package, versions
from data_pipelines.emoji.inventory import things

VISIBLE = 48  # alpha of 255 from which on a pixel counts as drawn


@functools.cache
def sprites(size: int) -> UInt8[np.ndarray, "S N R R 4"]:
    """RGB and opacity, in the order of STYLES and `things()`: each as large as fits, its longer side `size` pixels."""
    master = _master()
    small = np.empty((*master.shape[:2], size, size, 4), np.uint8)
    for index in np.ndindex(master.shape[:2]):
        picture = Image.fromarray(master[index]).convert("RGBa")  # premultiplied: no dark rims
        small[index] = picture.resize((size, size), Image.Resampling.LANCZOS).convert("RGBA")
    return small


@functools.cache
def extents(size: int) -> Int[np.ndarray, "S N 4"]:
    """Left, top, right and bottom of what is drawn, in pixels; right and bottom are the first beyond."""
    drawn = sprites(size)[..., 3] >= VISIBLE
    columns, rows = drawn.any(-2), drawn.any(-1)
    return np.stack(
        [_first(columns), _first(rows), size - _first(columns[..., ::-1]), size - _first(rows[..., ::-1])], -1
    )


@functools.cache
def bulky() -> Bool[np.ndarray, " N"]:
    """Whether a thing's box is at least half as wide as high, and as high as wide, in every style."""
    left, top, right, bottom = np.moveaxis(extents(MASTER), -1, 0)
    short, long = np.minimum(right - left, bottom - top), np.maximum(right - left, bottom - top)
    return (2 * short >= long).all(0)


def _first(drawn: np.ndarray) -> np.ndarray:
    return drawn.argmax(-1)


def _master() -> np.ndarray:
    codes = [catalogue()[place].code for place in things()]
    made_from = {"packages": versions(), "codes": codes, "master": MASTER, "cutting": 1}
    return np.load(cached("emoji-sprites.npy", made_from, _save), mmap_mode="r")


def _save(path) -> None:
    art = np.zeros((len(STYLES), len(things()), MASTER, MASTER, 4), np.uint8)
    for number, style in enumerate(STYLES):
        files = drawings(style)
        for thing, place in enumerate(things()):
            art[number, thing] = _cut(_read(files[catalogue()[place].code], style))
    with open(path, "wb") as file:
        np.save(file, art)


def _read(path, style: str) -> Image.Image:
    if style != "openmoji":
        with Image.open(path) as picture:
            return picture.convert("RGBA")
    side = 2 * MASTER  # OpenMoji leaves a wide margin, which is cut off
    png = package("resvg_py").svg_to_bytes(svg_path=str(path), width=side, height=side, skip_system_fonts=True)
    return Image.open(io.BytesIO(bytes(png))).convert("RGBA")


def _cut(picture: Image.Image) -> Image.Image:
    """What is drawn, its longer side MASTER pixels, in the middle of a clear square."""
    picture = picture.crop(picture.getchannel("A").point(lambda alpha: 255 * (alpha >= VISIBLE)).getbbox())
    scale = MASTER / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    picture = picture.convert("RGBa").resize((width, height), Image.Resampling.LANCZOS).convert("RGBA")
    square = Image.new("RGBA", (MASTER, MASTER))
    square.paste(picture, ((MASTER - width) // 2, (MASTER - height) // 2))
    return square
