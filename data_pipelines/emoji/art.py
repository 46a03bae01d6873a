"""Pictures of all emoji in one array, drawn once.

Noto and Twemoji come as 72-pixel bitmaps, OpenMoji as vectors; everything is brought to 72 pixels on white, and from
there to the size that is asked for.   S styles, E emoji, R pixels
"""

from __future__ import annotations

import functools
import hashlib
import io
from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from data_pipelines.cache import cached
from data_pipelines.emoji.catalogue import STYLES, catalogue, drawings, package, versions

MASTER = 72  # pixels
PROPRIETARY = ("apple", "windows", "samsung", "facebook", "joypixels")
Progress = Callable[[int, int], None]  # (drawn, of)


def pictures(resolution: int, progress: Progress | None = None) -> UInt8[np.ndarray, "S E R R 3"]:
    """[0, 255], in the order of STYLES and of `catalogue()`; white where a style lacks an emoji. Memory-mapped."""
    if resolution == MASTER:
        path = cached("emoji-art.npy", _made_from(MASTER), lambda file: _save(file, _draw(progress or _quiet)))
    else:
        path = cached("emoji-art.npy", _made_from(resolution), lambda file: _save(file, _resized(resolution, progress)))
    return np.load(path, mmap_mode="r")


@functools.cache
def digests() -> np.ndarray:
    """[S, E] text: equal where pictures are equal to the last bit at the master size; empty where there is none."""
    master, codes = pictures(MASTER), [emoji.code for emoji in catalogue()]

    def digest(number: int, place: int) -> str:
        drawn = codes[place] in drawings(STYLES[number])
        return hashlib.sha256(master[number, place].tobytes()).hexdigest()[:32] if drawn else ""

    return np.array([[digest(number, place) for place in range(len(codes))] for number in range(len(STYLES))])


def _made_from(resolution: int) -> dict[str, object]:
    codes = [emoji.code for emoji in catalogue()]
    return {"packages": versions(), "codes": codes, "resolution": resolution, "master": MASTER, "drawing": 1}


def _save(path, array: np.ndarray) -> None:
    with open(path, "wb") as file:
        np.save(file, array)


def _quiet(drawn: int, of: int) -> None:
    pass


def _draw(progress: Progress) -> np.ndarray:
    codes = [emoji.code for emoji in catalogue()]
    art = np.full((len(STYLES), len(codes), MASTER, MASTER, 3), 255, np.uint8)
    for number, style in enumerate(STYLES):
        files = drawings(style)
        read = _vector if style == "openmoji" else _bitmap
        for place, code in enumerate(codes):
            if code in files:
                art[number, place] = read(files[code])
            if place % 100 == 0:
                progress(number * len(codes) + place, len(STYLES) * len(codes))
    progress(len(STYLES) * len(codes), len(STYLES) * len(codes))
    return art


def _vector(file) -> Image.Image:
    png = package("resvg_py").svg_to_bytes(svg_path=str(file), width=MASTER, height=MASTER, skip_system_fonts=True)
    return on_white(Image.open(io.BytesIO(bytes(png))))


def _bitmap(file) -> Image.Image:
    with Image.open(file) as picture:
        return on_white(picture).resize((MASTER, MASTER), Image.Resampling.BOX)


def on_white(picture: Image.Image) -> Image.Image:
    """Centred on a white square."""
    picture = picture.convert("RGBA")
    side = max(picture.size)
    square = Image.new("RGBA", (side, side), "white")
    square.alpha_composite(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return square.convert("RGB")


def _resized(resolution: int, progress: Progress | None) -> np.ndarray:
    master = pictures(MASTER, progress)
    small = np.empty((*master.shape[:2], resolution, resolution, 3), np.uint8)
    for index in np.ndindex(master.shape[:2]):
        small[index] = Image.fromarray(master[index]).resize((resolution, resolution), Image.Resampling.LANCZOS)
    return small
