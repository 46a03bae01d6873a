"""Search by words: order, one row per picture, and a sheet that can be opened."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from PIL import Image

from mmjax.core.batch import Batch
from mmjax.core.errors import UserError
from mmjax.evals.search import contact_sheet, picture_of, search


@dataclasses.dataclass(frozen=True)
class Reader:
    def texts(self, texts):
        return Batch.fake(Batch.spec(len(texts), text=4))


def test_best_first_each_picture_once(table, answers, reads, tmp_path):
    picture = np.arange(20) // 2
    data = table(20, {"picture": picture})
    angle = picture * 0.1  # the query lies at angle 0
    pictures = answers({"image": np.stack([np.cos(angle), np.sin(angle)], 1)})
    context = reads(data, pictures, lambda batch: np.tile(np.float32([1, 0]), (batch.rows, 1)))
    hits = search(context, data, Reader(), "a red fruit", count=4, same="picture")
    assert [hit.id for hit in hits] == [0, 2, 4, 6]
    assert [hit.rank for hit in hits] == [1, 2, 3, 4]
    assert [hit.cosine for hit in hits] == pytest.approx(np.cos([0, 0.1, 0.2, 0.3]), abs=1e-4)
    assert hits[1].caption == "picture 2"
    path = contact_sheet(data, hits, "a red fruit", tmp_path / "new" / "sheet.png")
    with Image.open(path) as sheet:
        assert sheet.format == "PNG" and sheet.width > sheet.height
    with pytest.raises(UserError, match="search text is empty"):
        search(context, data, Reader(), "  ")


def test_sheet_of_nothing_and_of_scripts_pillow_cannot_draw(table, tmp_path):
    data = table(1, {})
    assert contact_sheet(data, [], "苹果 🍎", tmp_path / "empty.png").exists()


def test_pictures_in_any_form():
    pixels = np.zeros((4, 6, 3), np.uint8)
    assert picture_of({"image": pixels}).size == (6, 4)
    assert picture_of({"image": pixels[None]}).size == (6, 4)
    assert picture_of({}) is None
