"""Parts of a source are disjoint, complete and steady, and no picture is in two of them."""

from __future__ import annotations

import pathlib

import pytest
from record_samples import png

from data_pipelines.features import ImageFeature
from data_pipelines.pipeline import Pipeline
from data_pipelines.sameness import SameFeature
from data_pipelines.sources import Captioned, ImageFolder, Part
from mmjax.core.errors import DataError, UserError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("MMJAX_CACHE", str(tmp_path_factory.mktemp("cache")))


def pictures(folder: pathlib.Path, count: int) -> ImageFolder:
    """Two files of each picture, under different names and captions."""
    folder.mkdir(exist_ok=True)
    for i in range(count):
        for copy in "ab":
            (folder / f"{i:03}{copy}.png").write_bytes(png(i))
            (folder / f"{i:03}{copy}.txt").write_text(f"picture {i}, {copy}", encoding="utf-8")
    return ImageFolder(str(folder))


def test_parts_share_no_picture_and_miss_none(tmp_path):
    source = pictures(tmp_path / "p", 150)
    parts = [Part(source, 0, 0.1), Part(source, 0.1, 0.5), Part(source, 0.5, 1)]
    bytes_of = [{part[i]["image"] for i in range(len(part))} for part in parts]
    assert sum(map(len, parts)) == 300
    assert sum(map(len, bytes_of)) == len(set().union(*bytes_of)) == 150
    assert [round(len(part) / 300, 1) for part in parts] == [0.1, 0.4, 0.5]
    captions = [set(part.texts("caption")) for part in parts]
    assert captions[0] == {parts[0][i]["caption"] for i in range(len(parts[0]))}
    assert not captions[0] & captions[1]
    assert len({str(part.fingerprint()) for part in parts}) == 3


def test_new_records_move_no_old_one(tmp_path):
    def held(source) -> set[str]:
        part = Part(source, 0, 0.3)
        return {part.locate(i) for i in range(len(part))}

    before = held(pictures(tmp_path / "p", 40))
    after = held(pictures(tmp_path / "p", 80))
    assert before == {name for name in after if int(name[:3]) < 40}


def test_a_bad_record_has_its_place_and_raises_there_alone(tmp_path):
    source = pictures(tmp_path / "p", 5)
    (tmp_path / "p" / "001a.png").write_bytes(b"")
    (tmp_path / "p" / "001b.txt").write_bytes(b"\xff")
    part = Part(ImageFolder(source.folder), 0, 1)
    assert len(part) == 10
    assert len(list(part.texts("caption"))) == 9


def test_impossible_and_empty_parts_are_told(tmp_path):
    source = pictures(tmp_path / "p", 2)
    with pytest.raises(UserError, match=r"a share of 0\.\.1 with low < high; got 0\.5\.\.0\.5"):
        Part(source, 0.5, 0.5)
    with pytest.raises(DataError, match="of 4 records is empty"):
        len(Part(source, 0.0, 1e-9))


def test_class_names_become_captions(tmp_path):
    for i, kind in enumerate(["red_fox", "owl"]):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "0.png").write_bytes(png(i))
    source = Captioned(ImageFolder(str(tmp_path)), template="a picture of a {}")
    assert [source[i]["caption"] for i in range(2)] == ["a picture of a owl", "a picture of a red fox"]
    assert list(source.texts("caption")) == ["a picture of a owl", "a picture of a red fox"]
    assert source.names() == {"label": ("owl", "red_fox")}


def test_copies_are_known_by_their_bytes(tmp_path):
    folder = pictures(tmp_path / "p", 3).folder
    (tmp_path / "p" / "000b.txt").write_text(" picture  0, a\n", encoding="utf-8")  # white space is no difference
    (tmp_path / "p" / "002b.txt").unlink()
    features = (ImageFeature(height=8, width=8), SameFeature("image", "picture"), SameFeature("caption", "words"))
    batch = next(iter(Pipeline(ImageFolder(folder), features, batch=6, epochs=1).batches()))
    picture, words = (batch.labels[name][:, 0].tolist() for name in ("picture", "words"))
    assert [picture.index(number) for number in picture] == [0, 0, 2, 2, 4, 4]
    assert [words.index(number) for number in words] == [0, 0, 2, 3, 4, 5]
    assert [number >= 0 for number in words] == [True] * 5 + [False]
    assert batch.valid.all()
