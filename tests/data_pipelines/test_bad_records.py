"""A bad record becomes a null example with its reason, and moves no other one; a bad shard stops the run."""

from __future__ import annotations

import csv
import pathlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from record_samples import png, records

from data_pipelines.features import ImageFeature
from data_pipelines.pipeline import Pipeline
from data_pipelines.schema import Schema
from data_pipelines.sources import ArrayRecords, ImageFolder, write_array_records
from mmjax.core.batch import FAULTS
from mmjax.core.errors import DataError, ExitCode

COUNT = 64
BAD = {
    5: ("unreadable", "truncated"),
    11: ("unreadable", "not one of"),
    23: ("missing_file", "there is no file"),
    24: ("empty", "has no bytes"),
    40: ("empty", "the text is empty"),
    63: ("unreadable", ""),
}


def folder(path: pathlib.Path, damaged: bool) -> ImageFolder:
    path.mkdir()
    with (path / "captions.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "caption"])
        for i, row in enumerate(records(COUNT)):
            (path / f"{i:02}.png").write_bytes(row["image"])
            writer.writerow([f"{i:02}.png", " " if damaged and i == 40 else row["caption"]])
    if damaged:
        (path / "05.png").write_bytes(png(5)[:-60])
        (path / "11.png").write_bytes(b"<svg onload=alert(1)>")
        (path / "23.png").unlink()
        (path / "24.png").write_bytes(b"")
        (path / "63.png").write_bytes(png(63)[:40] + b"\xff" * 40)
    return ImageFolder(str(path))


def pipeline(source, **changes) -> Pipeline:
    return Pipeline(source, (ImageFeature(height=8, width=8),), **{"batch": 8, "shuffle": 3, "epochs": 1} | changes)


def test_bad_records_are_null_and_the_others_stay_where_they_are(tmp_path):
    good, damaged = pipeline(folder(tmp_path / "good", False)), pipeline(folder(tmp_path / "bad", True))
    seen = {}
    for left, right in zip(good.batches(), damaged.batches(), strict=True):
        assert np.array_equal(left.id, right.id)
        real = right.valid[:, 0]
        assert np.array_equal(left.image.pixels[real], right.image.pixels[real])
        assert not right.image.valid[~real].any()
        seen |= {entry["id"]: entry for entry in damaged.faults(right)}
        assert {FAULTS[code] for code in right.fault[~real, 0]} == {e["fault"] for e in damaged.faults(right)}
    assert sorted(seen) == sorted(BAD)
    for index, (fault, told) in BAD.items():
        assert seen[index]["fault"] == fault
        assert told in seen[index]["reason"]
        assert f"{index:02}.png" in seen[index]["where"]


def test_a_damaged_shard_stops_the_run_with_its_name(tmp_path):
    shard = tmp_path / "s.array_record"
    write_array_records([{"image": png(i, (90, 70)), "caption": str(i)} for i in range(16)], str(shard))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 16
    shard.write_bytes(data)
    with pytest.raises(DataError, match=r"s\.array_record: record \d+ is damaged") as caught:
        list(pipeline(ArrayRecords(str(shard), Schema.parse("image:image"))).batches())
    assert caught.value.code == ExitCode.DATA


def test_threads_read_one_source_at_once(tmp_path):
    rows = [{"image": png(i), "caption": f"number {i}"} for i in range(200)]
    write_array_records(rows, str(tmp_path / "s.array_record"))
    source = ArrayRecords(str(tmp_path / "s.array_record"), Schema.parse("image:image, caption:text"))
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(source.__getitem__, list(range(200)) * 5)) == rows * 5


def test_a_folder_that_may_not_be_read_is_one_clear_error(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("os.scandir", refuse)
    with pytest.raises(DataError, match="may not be read; check its owner and mode") as caught:
        len(ImageFolder(str(tmp_path)))
    assert caught.value.code == ExitCode.PERMISSION
