"""Small pictures and records for the data tests."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def png(seed: int = 0, size: tuple[int, int] = (12, 8)) -> bytes:
    """A PNG of random pixels, (width, height)."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def records(count: int) -> list[dict]:
    """Records with a picture, a caption, a class and a number; all different."""
    kinds = ("cat", "dog", "bird")
    return [
        {"image": png(i), "caption": f"a {kinds[i % 3]} número {i} 🐈", "label": kinds[i % 3], "age": i}
        for i in range(count)
    ]
