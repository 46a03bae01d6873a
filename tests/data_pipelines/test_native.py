"""The packages of `mmjax[fast]` against Pillow alone: the same files, the same pixels."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from data_pipelines import native
from data_pipelines.features import ImageFeature
from data_pipelines.images import decode
from data_pipelines.protocols import BadRecord

pytest.importorskip("simplejpeg")
pytest.importorskip("cykooz_resizer")


def both_ways(monkeypatch, make):
    """What `make()` gives with the packages, and without."""
    found = make()
    with monkeypatch.context() as patch:
        patch.setattr(native, "simplejpeg", None)
        patch.setattr(native, "cykooz_resizer", None)
        return found, make()


def scene(height: int, width: int) -> np.ndarray:
    """Smooth colours with edges and noise in them, [height width 3]."""
    rng = np.random.default_rng(height * width)
    small = rng.integers(0, 256, (5, 6, 3), np.uint8)
    picture = np.array(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))
    picture[height // 4 : height // 2, width // 3 : width // 2] = rng.integers(0, 256, 3)
    return np.clip(picture + rng.normal(0, 6, picture.shape), 0, 255).astype(np.uint8)


def encoded(picture: Image.Image, **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, "JPEG", **options)
    return file.getvalue()


@pytest.mark.parametrize("at_least", [None, (50, 40), (20, 20)])
@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("RGB", {}),
        ("RGB", {"subsampling": 0}),
        ("RGB", {"subsampling": 1, "progressive": True}),
        ("RGB", {"quality": 30, "restart_marker_blocks": 3}),
        ("RGB", {"keep_rgb": True}),
        ("L", {}),
        ("CMYK", {}),
    ],
)
def test_a_jpeg_is_the_same_to_the_last_bit_with_and_without_the_packages(monkeypatch, mode, options, at_least):
    data = encoded(Image.fromarray(scene(133, 171)).convert(mode), **options)
    fast, plain = both_ways(monkeypatch, lambda: decode(data, at_least=at_least))
    assert np.array_equal(fast, plain)
    assert at_least is None or fast.shape < (133, 171)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_jpeg_is_turned_the_same_way(monkeypatch, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(scene(40, 60)), exif=exif)
    fast, plain = both_ways(monkeypatch, lambda: decode(data))
    assert np.array_equal(fast, plain) and fast.shape == ((40, 60, 3) if orientation < 5 else (60, 40, 3))


@pytest.mark.parametrize("box", [(0, 0, 171, 133), (20.5, 0, 153.5, 133), (3.3, 7.9, 40.1, 31.7)])
@pytest.mark.parametrize("size", [(56, 56), (133, 90), (300, 400), (1, 1)])
def test_a_resized_picture_without_black_and_white_is_the_same_to_two_grey_levels(monkeypatch, size, box):
    picture = scene(133, 171) // 2 + 64
    fast, plain = both_ways(monkeypatch, lambda: native.resized(picture, *size, box).astype(int))
    assert fast.shape == (*size, 3)
    assert np.abs(fast - plain).max() <= 2 and np.abs(fast - plain).mean() < 0.5


def test_damaged_jpegs_have_one_verdict(monkeypatch):
    whole = bytearray(encoded(Image.fromarray(scene(64, 64))))
    rng = np.random.default_rng(0)

    def verdict(data):
        try:
            return decode(bytes(data)).tobytes()
        except BadRecord as error:
            return error.fault, error.reason

    found = []
    for _ in range(60):
        data = bytearray(whole)
        for place in rng.integers(2, len(data), 3):
            data[place] = rng.integers(0, 256)
        fast, plain = both_ways(monkeypatch, lambda data=data: verdict(data))
        assert fast == plain
        found.append(type(fast))
    assert {bytes, tuple} == set(found)  # some are readable still, some are not


def test_the_fingerprint_names_who_makes_the_pixels(monkeypatch):
    fast, plain = both_ways(monkeypatch, ImageFeature().fingerprint)
    assert all(name in fast["pixels by"] for name in ("pillow", "simplejpeg", "cykooz.resizer"))
    assert fast["pixels by"].startswith(plain["pixels by"]) and fast != plain
