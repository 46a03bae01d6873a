"""Pictures from strangers: what decodes, what is refused before it costs memory, and what comes out."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from data_pipelines import native
from data_pipelines.chunks import Chunk
from data_pipelines.features import ImageFeature
from data_pipelines.images import Crop, Pad, RandomCrop, Squash, decode, from_array
from data_pipelines.protocols import BadRecord
from data_pipelines.randomness import fold


@pytest.fixture(autouse=True, params=["fast", "Pillow"])
def tools(request, monkeypatch):
    """Each test holds with the packages of `mmjax[fast]` and without."""
    if request.param == "Pillow":
        monkeypatch.setattr(native, "simplejpeg", None)
        monkeypatch.setattr(native, "cykooz_resizer", None)


def encoded(picture: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def halves(width: int = 40, height: int = 20) -> Image.Image:
    """Left half red, right half blue."""
    picture = Image.new("RGB", (width, height), "red")
    picture.paste("blue", (width // 2, 0, width, height))
    return picture


def bomb(width: int, height: int) -> bytes:
    """A PNG whose header promises `width` x `height` pixels and whose data are all zeros."""

    def part(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(min(height * (width // 8 + 1), 1 << 22)), 9)
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", header) + part(b"IDAT", rows) + part(b"IEND", b"")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_each_allowed_format_decodes_to_its_colours(kind):
    found = decode(encoded(halves(), kind))
    assert found.shape == (20, 40, 3)
    assert np.abs(found[:, :18].astype(int) - (255, 0, 0)).max() < 12
    assert np.abs(found[:, 22:].astype(int) - (0, 0, 255)).max() < 12


@pytest.mark.parametrize("size", [(8_000, 8_000), (12_000, 12_000), (40_000, 40_000)])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_decompression_bomb_is_refused_by_its_header(size):
    data = bomb(*size)
    assert len(data) < 30_000
    with pytest.raises(BadRecord, match="pixels") as caught:
        decode(data)
    assert caught.value.fault == "too_large"


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_jpeg_whose_header_promises_too_much_is_refused_before_it_is_decoded():
    data = bytearray(encoded(halves(64, 64), "JPEG"))
    start = data.index(b"\xff\xc0") + 5
    data[start : start + 4] = struct.pack(">HH", 60_000, 60_000)
    with pytest.raises(BadRecord) as caught:
        decode(bytes(data))
    assert caught.value.fault == "too_large"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_truncated_pictures_are_refused(kind):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8))
    data = encoded(noise, kind)
    for share in (0.1, 0.5, 0.9):
        with pytest.raises(BadRecord) as caught:
            decode(data[: int(len(data) * share)])
        assert caught.value.fault == "unreadable"


@pytest.mark.parametrize("data", [b"<svg/>", b"hello", encoded(halves(), "TIFF"), encoded(halves(), "PPM")])
def test_other_formats_are_refused_with_the_list(data):
    with pytest.raises(BadRecord, match="not one of JPEG, PNG, WEBP, GIF, BMP"):
        decode(data)


def test_no_bytes_are_an_empty_picture():
    with pytest.raises(BadRecord) as caught:
        decode(b"")
    assert caught.value.fault == "empty"


def test_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter to the right
    found = decode(encoded(halves(), "PNG", exif=exif))
    assert found.shape == (40, 20, 3)
    assert found[0, 0].tolist() == [255, 0, 0] and found[-1, 0].tolist() == [0, 0, 255]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_becomes_white(mode):
    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0)).convert(mode if mode != "P" else "RGBA")
    data = encoded(clear, "GIF", transparency=0) if mode == "P" else encoded(clear)
    assert (decode(data) == 255).all()


def test_sixteen_bit_greys_keep_their_brightness():
    grey = Image.fromarray(np.full((4, 4), 0x8000, np.uint16))
    assert (decode(encoded(grey)) == 0x80).all()


def test_a_large_jpeg_decoded_small_looks_like_one_decoded_whole():
    ramp = np.linspace(0, 255, 1600 * 1200).reshape(1200, 1600).astype(np.uint8)
    data = encoded(Image.fromarray(np.stack([ramp, ramp.T.reshape(1200, 1600), 255 - ramp], -1)), "JPEG", quality=95)
    small, whole = decode(data, at_least=(60, 60)), decode(data)
    assert small.shape < whole.shape and min(small.shape[:2]) >= 60
    rng = np.random.default_rng(0)
    difference = np.abs(Squash()(small, 60, 60, rng).astype(int) - Squash()(whole, 60, 60, rng))
    assert difference.mean() < 4


def test_fits_keep_what_they_promise():
    rng, picture = np.random.default_rng(0), np.asarray(halves(80, 20))
    red, blue = [255, 0, 0], [0, 0, 255]
    squashed = Squash()(picture, 20, 20, rng)
    assert squashed[10, 2].tolist() == red and squashed[10, -3].tolist() == blue
    columns = np.broadcast_to(np.arange(80, dtype=np.uint8)[None, :, None], (20, 80, 3))
    assert (Crop()(columns, 20, 20, rng)[:, :, 0] == np.arange(30, 50)).all()
    padded = Pad(grey=7)(picture, 20, 20, rng)
    assert (padded[:7] == 7).all() and (padded[-7:] == 7).all() and padded[10, 2].tolist() == red


def test_random_crops_are_a_function_of_the_key_and_never_mirror_unless_asked():
    feature = ImageFeature(height=16, width=16, fit=RandomCrop(area=(0.5, 1.0)))
    data = encoded(halves(200, 200))

    def built(keys):
        return feature.build(Chunk({"image": [data] * len(keys)}, keys))["image"].pixels[:, 0]

    keys = fold(3, np.arange(30))
    first = built(keys)
    assert np.array_equal(first, built(keys)) and np.array_equal(first[5:7], built(keys[5:7]))
    assert len({picture.tobytes() for picture in first}) > 10
    assert (first[:, 8, 0, 0] >= first[:, 8, -1, 0]).all()  # red is never right of blue
    mirrored = ImageFeature(height=16, width=16, fit=RandomCrop(mirror=1.0))
    found = mirrored.build(Chunk({"image": [data] * 30}, keys))["image"].pixels[:, 0]
    assert (found[:, 8, 0, 0] <= found[:, 8, -1, 0]).all()


def test_arrays_are_checked_like_files():
    assert from_array(np.full((2, 3), 9, np.uint8)).tolist() == np.full((2, 3, 3), 9).tolist()
    for wrong in (np.zeros((2, 3, 3), np.float32), np.zeros((2, 3, 2), np.uint8), np.zeros((1, 2, 3, 3), np.uint8)):
        with pytest.raises(BadRecord, match="must be uint8"):
            from_array(wrong)
    with pytest.raises(BadRecord, match="no pixels"):
        from_array(np.zeros((0, 3, 3), np.uint8))


def test_a_value_of_another_kind_makes_its_row_null_and_says_so():
    chunk = Chunk({"image": [encoded(halves()), "a/path.png", None]}, np.arange(3))
    built = ImageFeature(height=4, width=4).build(chunk)["image"]
    assert built.valid[:, 0].tolist() == [True, False, False]
    assert list(chunk.errors) == [1] and "must hold encoded bytes" in chunk.errors[1].reason


def test_a_stack_of_the_right_size_passes_unchanged():
    stack = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)
    built = ImageFeature(height=8, width=8).build(Chunk({"image": stack}, np.arange(5)))["image"]
    assert np.array_equal(built.pixels[:, 0], stack) and built.valid.all()
