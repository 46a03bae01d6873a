"""Bytes -> pixels, from files that nobody has vetted.

The header is read first: what is too large, or of a format that is not on the list, is refused before its pixels are
decoded; what is cut off is refused when they are.   H, W height and width of the result
"""

from __future__ import annotations

import dataclasses
import io
from typing import Protocol

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from data_pipelines import native
from data_pipelines.native import Box
from data_pipelines.protocols import BadRecord

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
"""Formats that are read; each other decoder of Pillow is attack surface (such as CVE-2026-40192, a FITS bomb)."""

MAX_PIXELS = 50_000_000


Picture = UInt8[np.ndarray, "H W 3"]
"""RGB, [0, 255]."""


def decode(data: bytes, max_pixels: int = MAX_PIXELS, at_least: tuple[int, int] | None = None) -> Picture:
    """The picture in `data`: first frame, turned as its EXIF orientation says, transparency on white.

    at_least (H, W): a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size while that is no smaller than this.
    Raises BadRecord: unreadable, too_large, empty."""
    if not data:
        raise BadRecord("empty", "the picture has no bytes")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            if picture.width * picture.height > max_pixels:
                size = f"{picture.width} x {picture.height}"
                raise BadRecord("too_large", f"the picture has {size} pixels; the limit is {max_pixels:,}")
            if at_least is not None:
                picture.draft(None, (at_least[1], at_least[0]))
            found = native.jpeg(data, picture)
            return np.asarray(on_white(ImageOps.exif_transpose(picture))) if found is None else found
    except BadRecord:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning, MemoryError):
        raise BadRecord("too_large", f"the picture has more than {max_pixels:,} pixels") from None
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, EOFError, ...
        unknown = isinstance(error, Image.UnidentifiedImageError)
        why = f"not one of {', '.join(FORMATS)}, or damaged" if unknown else error
        raise BadRecord("unreadable", f"the picture cannot be decoded: {why}") from None


def on_white(picture: Image.Image) -> Image.Image:
    """RGB, with white where the picture is transparent; 16-bit greys are brought to 8 bits."""
    if picture.mode.startswith("I"):
        picture = Image.fromarray((np.clip(np.asarray(picture, np.int64), 0, 65_535) >> 8).astype(np.uint8))
    if picture.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        white.alpha_composite(picture)
        picture = white
    return picture.convert("RGB")


def from_array(pixels: np.ndarray, max_pixels: int = MAX_PIXELS) -> Picture:
    """A picture that is decoded already: uint8 [H W], [H W 1], [H W 3] or [H W 4 (opacity)]. Raises BadRecord."""
    shape = pixels.shape
    if pixels.dtype != np.uint8 or len(shape) not in (2, 3) or (len(shape) == 3 and shape[2] not in (1, 3, 4)):
        raise BadRecord("bad_schema", f"a picture must be uint8 [H W 3]; got {pixels.dtype} {list(shape)}")
    if 0 in shape:
        raise BadRecord("empty", f"the picture has no pixels: {list(shape)}")
    if shape[0] * shape[1] > max_pixels:
        raise BadRecord("too_large", f"the picture has {shape[1]} x {shape[0]} pixels; the limit is {max_pixels:,}")
    if shape[2:] == (3,):
        return pixels
    return np.asarray(on_white(Image.fromarray(pixels[..., 0] if shape[2:] == (1,) else pixels)))


# ------------------------------------------------------------------------------------------------------------ to a size


class Fit(Protocol):
    """Brings a picture of any size to `height` x `width`."""

    def __call__(self, picture: Picture, height: int, width: int, rng: np.random.Generator) -> Picture: ...


@dataclasses.dataclass(frozen=True)
class Squash:
    """Everything is seen, proportions change."""

    def __call__(self, picture: Picture, height: int, width: int, rng: np.random.Generator) -> Picture:
        """See `Fit`."""
        return native.resized(picture, height, width, whole(picture))


@dataclasses.dataclass(frozen=True)
class Crop:
    """The largest centred part with the right proportions; edges are lost."""

    def __call__(self, picture: Picture, height: int, width: int, rng: np.random.Generator) -> Picture:
        """See `Fit`."""
        tall, wide, _ = picture.shape
        scale = min(wide / width, tall / height)
        left, top = (wide - width * scale) / 2, (tall - height * scale) / 2
        return native.resized(picture, height, width, (left, top, left + width * scale, top + height * scale))


@dataclasses.dataclass(frozen=True)
class Pad:
    """Everything is seen in its proportions, centred on `grey` (0..255) bars."""

    grey: int = 255

    def __call__(self, picture: Picture, height: int, width: int, rng: np.random.Generator) -> Picture:
        """See `Fit`."""
        scale = min(width / picture.shape[1], height / picture.shape[0])
        inner_height, inner_width = (max(1, round(side * scale)) for side in picture.shape[:2])
        top, left = (height - inner_height) // 2, (width - inner_width) // 2
        canvas = np.full((height, width, 3), self.grey, np.uint8)
        inner = native.resized(picture, inner_height, inner_width, whole(picture))
        canvas[top : top + inner_height, left : left + inner_width] = inner
        return canvas


@dataclasses.dataclass(frozen=True)
class RandomCrop:
    """A part with `area` (least, most) of the picture and proportions stretched by up to `stretch`, mirrored with
    probability `mirror` (Szegedy et al. 2015, arXiv 1409.4842, section 6). Mirroring makes captions with left and
    right, and pictures of text, wrong: it is off unless asked for."""

    area: tuple[float, float] = (0.5, 1.0)
    stretch: float = 4 / 3
    mirror: float = 0.0

    def __call__(self, picture: Picture, height: int, width: int, rng: np.random.Generator) -> Picture:
        """See `Fit`."""
        log, (tall, wide, _) = np.log(self.stretch), picture.shape
        ratio = wide / tall * np.exp(rng.uniform(-log, log))
        area = wide * tall * rng.uniform(*self.area)
        breadth, length = min(wide, np.sqrt(area * ratio)), min(tall, np.sqrt(area / ratio))
        left, top = rng.uniform(0, wide - breadth), rng.uniform(0, tall - length)
        part = native.resized(picture, height, width, (left, top, left + breadth, top + length))
        return part[:, ::-1] if rng.random() < self.mirror else part


def whole(picture: Picture) -> Box:
    """All of it."""
    return (0, 0, picture.shape[1], picture.shape[0])
