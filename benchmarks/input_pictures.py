"""JPEGs to measure with: made on the spot from a seed, in size and compression like photographs from the web."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

WIDTH, HEIGHT, QUALITY = 500, 375, 92  # as in ImageNet, and as its files are on average


def photograph(rng: np.random.Generator) -> Image.Image:
    """Noise of all scales (natural pictures have about 1/f spectra), things with edges in front of it, and grain."""
    picture = np.full((HEIGHT, WIDTH, 3), 128.0)
    for cells in (3, 8, 20, 50, 120):
        coarse = rng.normal(0, 90 * (3 / cells) ** 0.7, (cells, cells, 3)).astype(np.float32)
        layers = [Image.fromarray(np.ascontiguousarray(coarse[..., colour])) for colour in range(3)]
        picture += np.stack([layer.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC) for layer in layers], -1)
    scene = Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(scene)
    for _ in range(12):
        left, top = rng.integers(0, WIDTH - 60), rng.integers(0, HEIGHT - 60)
        wide, tall, *colour = (int(x) for x in (*rng.integers(20, 160, 2), *rng.integers(0, 256, 3)))
        shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
        shape((int(left), int(top), int(left) + wide, int(top) + tall), fill=tuple(colour))
    return Image.fromarray(np.clip(np.asarray(scene) + rng.normal(0, 4, picture.shape), 0, 255).astype(np.uint8))


def write(folder: Path, count: int) -> None:
    """`count` files 00000.jpg, ..."""
    rng = np.random.default_rng(0)
    for number in range(count):
        file = io.BytesIO()
        photograph(rng).save(file, "JPEG", quality=QUALITY)
        (folder / f"{number:05}.jpg").write_bytes(file.getvalue())


def read(folder: Path) -> list[bytes]:
    """All of them, in order."""
    return [path.read_bytes() for path in sorted(folder.glob("*.jpg"))]
