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

from data_pipelines.protocols import BadRecord

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
"""Formats that are read; each other decoder of Pillow is attack surface (such as CVE-2026-40192, a FITS bomb)."""

MAX_PIXELS = 50_000_000


def decode(data: bytes, max_pixels: int = MAX_PIXELS, at_least: tuple[int, int] | None = None) -> Image.Image:
    """The picture in `data` as RGB: first frame, turned as its EXIF orientation says, transparency on white.

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
            picture.load()
            return on_white(ImageOps.exif_transpose(picture))
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


def from_array(pixels: np.ndarray, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """A picture that is decoded already: uint8 [H W], [H W 1], [H W 3] or [H W 4]. Raises BadRecord."""
    shape = pixels.shape
    if pixels.dtype != np.uint8 or len(shape) not in (2, 3) or (len(shape) == 3 and shape[2] not in (1, 3, 4)):
        raise BadRecord("bad_schema", f"a picture must be uint8 [H W 3]; got {pixels.dtype} {list(shape)}")
    if 0 in shape:
        raise BadRecord("empty", f"the picture has no pixels: {list(shape)}")
    if shape[0] * shape[1] > max_pixels:
        raise BadRecord("too_large", f"the picture has {shape[1]} x {shape[0]} pixels; the limit is {max_pixels:,}")
    return on_white(Image.fromarray(pixels[..., 0] if shape[2:] == (1,) else pixels))


# ------------------------------------------------------------------------------------------------------------ to a size


class Fit(Protocol):
    """Brings a picture of any size to H x W."""

    def __call__(self, picture: Image.Image, height: int, width: int, rng: np.random.Generator) -> Image.Image: ...


@dataclasses.dataclass(frozen=True)
class Squash:
    """Everything is seen, proportions change."""

    def __call__(self, picture: Image.Image, height: int, width: int, rng: np.random.Generator) -> Image.Image:
        """See `Fit`."""
        return _resized(picture, height, width)


@dataclasses.dataclass(frozen=True)
class Crop:
    """The largest centred part with the right proportions; edges are lost."""

    def __call__(self, picture: Image.Image, height: int, width: int, rng: np.random.Generator) -> Image.Image:
        """See `Fit`."""
        scale = min(picture.width / width, picture.height / height)
        left, top = (picture.width - width * scale) / 2, (picture.height - height * scale) / 2
        return _resized(picture, height, width, (left, top, left + width * scale, top + height * scale))


@dataclasses.dataclass(frozen=True)
class Pad:
    """Everything is seen in its proportions, centred on `grey` (0..255) bars."""

    grey: int = 255

    def __call__(self, picture: Image.Image, height: int, width: int, rng: np.random.Generator) -> Image.Image:
        """See `Fit`."""
        scale = min(width / picture.width, height / picture.height)
        inner = max(1, round(picture.height * scale)), max(1, round(picture.width * scale))
        canvas = Image.new("RGB", (width, height), (self.grey,) * 3)
        canvas.paste(_resized(picture, *inner), ((width - inner[1]) // 2, (height - inner[0]) // 2))
        return canvas


@dataclasses.dataclass(frozen=True)
class RandomCrop:
    """A part with `area` (least, most) of the picture and proportions stretched by up to `stretch`, mirrored with
    probability `mirror` (Szegedy et al. 2015, arXiv 1409.4842, section 6). Mirroring makes captions with left and
    right, and pictures of text, wrong: it is off unless asked for."""

    area: tuple[float, float] = (0.5, 1.0)
    stretch: float = 4 / 3
    mirror: float = 0.0

    def __call__(self, picture: Image.Image, height: int, width: int, rng: np.random.Generator) -> Image.Image:
        """See `Fit`."""
        log = np.log(self.stretch)
        ratio = picture.width / picture.height * np.exp(rng.uniform(-log, log))
        area = picture.width * picture.height * rng.uniform(*self.area)
        wide, high = min(picture.width, np.sqrt(area * ratio)), min(picture.height, np.sqrt(area / ratio))
        left, top = rng.uniform(0, picture.width - wide), rng.uniform(0, picture.height - high)
        part = _resized(picture, height, width, (left, top, left + wide, top + high))
        return ImageOps.mirror(part) if rng.random() < self.mirror else part


def _resized(picture: Image.Image, height: int, width: int, box: tuple[float, ...] | None = None) -> Image.Image:
    """Hamming to shrink (as smooth as bicubic there, 1.6 times as fast), bicubic to enlarge."""
    left, top, right, bottom = box or (0, 0, *picture.size)
    shrinks = right - left >= width and bottom - top >= height
    way = Image.Resampling.HAMMING if shrinks else Image.Resampling.BICUBIC
    return picture.resize((width, height), way, box=box)


def pixels(picture: Image.Image) -> UInt8[np.ndarray, "H W 3"]:
    """[0, 255]."""
    return np.asarray(picture, np.uint8)
