"""Decoding and resizing by the packages of `mmjax[fast]` where they are installed; Pillow decides where they cannot.

Both ways accept and refuse the same files. Decoded, a JPEG is the same to the last bit (both run libjpeg-turbo in its
exact mode); resized, a picture is the same to a grey level or two (each rounds in its way), but for edges so hard that
bicubic overshoots black or white (rows and columns are clipped in another order). So the packages are part of a data
set's fingerprint.   H, W height and width
"""

from __future__ import annotations

import importlib.metadata

import numpy as np
from jaxtyping import UInt8
from PIL import Image

try:
    import simplejpeg
except ImportError:
    simplejpeg = None
try:
    import cykooz_resizer
except ImportError:
    cykooz_resizer = None

Box = tuple[float, float, float, float]
"""left, top, right, bottom in pixels, 0 at the edge of the first."""


def packages() -> str:
    """Who makes pixels here, with versions."""
    found = {"pillow": Image, "simplejpeg": simplejpeg, "cykooz.resizer": cykooz_resizer}
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name, module in found.items() if module)


def jpeg(data: bytes, header: Image.Image) -> UInt8[np.ndarray, "H W 3"] | None:
    """The pixels of a JPEG whose checked `header` Pillow has read (and may have asked for 1/2, 1/4 or 1/8 of its size).

    None where Pillow has to decide: the package is missing, the file is of a rare kind (four inks, turned, several
    pictures), or libjpeg finds something to remark, be it the missing end of a truncated file."""
    if simplejpeg is None or header.format != "JPEG" or header.mode not in ("RGB", "L"):
        return None
    if header.getexif().get(_ORIENTATION, 1) != 1:
        return None
    width, height = header.size
    scale, *_ = header.decoderconfig or (1,)
    shrunk = {"min_height": height, "min_width": width} if scale > 1 else {}
    try:
        if simplejpeg.decode_jpeg_header(data, **shrunk)[:2] != (height, width):
            return None
        return simplejpeg.decode_jpeg(data, "RGB", **shrunk)
    except ValueError:
        return None


_ORIENTATION = 0x0112


def resized(picture: UInt8[np.ndarray, "H W 3"], height: int, width: int, box: Box) -> UInt8[np.ndarray, "H W 3"]:
    """The part `box` of a picture, height x width pixels, bicubic (a = -1/2) and as smooth as the change asks for."""
    tall, wide, _ = picture.shape
    left, top, right, bottom = max(0.0, box[0]), max(0.0, box[1]), min(wide, box[2]), min(tall, box[3])
    if (left, top, right, bottom) == (0, 0, width, height) and (tall, wide) == (height, width):
        return picture
    if cykooz_resizer is None:
        part = Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC, (left, top, right, bottom))
        return np.asarray(part)
    kind = cykooz_resizer.PixelType.U8x3
    source = cykooz_resizer.ImageData(wide, tall, kind, picture.tobytes())
    result = cykooz_resizer.ImageData(width, height, kind)
    way = cykooz_resizer.ResizeAlg.convolution(cykooz_resizer.FilterType.catmull_rom)
    part = cykooz_resizer.CropBox(left, top, right - left, bottom - top)
    options = cykooz_resizer.ResizeOptions(way, crop_box=part)
    cykooz_resizer.Resizer().resize(source, result, options)  # one per call: it is not for several threads
    return np.frombuffer(result.get_buffer(), np.uint8).reshape(height, width, 3)
