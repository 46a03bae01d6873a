"""Every source gives back what was written, in the same order, from any position, and knows when it changed."""

from __future__ import annotations

import csv
import io
import json
import pathlib
import pickle
import tarfile

import pytest
from record_samples import png, records

from data_pipelines.protocols import BadRecord, Locates, Source
from data_pipelines.schema import Schema
from data_pipelines.sources import (
    ArrayRecords,
    ImageFolder,
    JsonLines,
    ParquetTable,
    TarShards,
    TfdsSource,
    write_array_records,
)
from data_pipelines.sources.detect import open_source
from mmjax.core.config import from_json, to_json
from mmjax.core.errors import DataError, UserError

FULL = Schema.parse("image:image, caption:text, label:class, age:int[0..]")
COUNT = 23


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("MMJAX_CACHE", str(tmp_path_factory.mktemp("cache")))


def image_folder(folder: pathlib.Path, rows: list[dict]) -> ImageFolder:
    (folder / "pictures").mkdir()
    with (folder / "captions.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["file_name", "text", "label", "age"])
        writer.writeheader()
        for i, row in enumerate(rows):
            (folder / "pictures" / f"{i:02}.png").write_bytes(row["image"])
            line = {"text": row["caption"], "label": row["label"], "age": row["age"]}
            writer.writerow({"file_name": f"pictures/{i:02}.png", **line})
    return ImageFolder(str(folder), schema=FULL)


def json_lines(folder: pathlib.Path, rows: list[dict]) -> JsonLines:
    with (folder / "pairs.jsonl").open("w", encoding="utf-8") as file:
        for i, row in enumerate(rows):
            (folder / f"{i}.png").write_bytes(row["image"])
            file.write(json.dumps({**row, "image": f"{i}.png"}, ensure_ascii=i % 2 == 0) + "\n" * (1 + i % 2))
    return JsonLines(str(folder / "pairs.jsonl"), FULL)


def parquet(folder: pathlib.Path, rows: list[dict]) -> ParquetTable:
    import pyarrow as pa
    import pyarrow.parquet

    for name, part in (("a", rows[:9]), ("b", rows[9:])):
        table = pa.Table.from_pylist([{**row, "image": {"bytes": row["image"], "path": None}} for row in part])
        pa.parquet.write_table(table, folder / f"{name}.parquet", row_group_size=4)
    return ParquetTable(str(folder), FULL)


def array_records(folder: pathlib.Path, rows: list[dict]) -> ArrayRecords:
    write_array_records(rows[:9], str(folder / "a.array_record"))
    write_array_records(rows[9:], str(folder / "b.array_record"))
    return ArrayRecords(str(folder), FULL)


def tar_shards(folder: pathlib.Path, rows: list[dict]) -> TarShards:
    for name, part in (("0", rows[:9]), ("1", rows[9:])):
        with tarfile.open(folder / f"{name}.tar", "w") as archive:
            for row in part:
                stem = f"set/{row['age']:04}"
                rest = json.dumps({"label": row["label"], "age": row["age"]}).encode()
                for suffix, data in (("PNG", row["image"]), ("txt", row["caption"].encode()), ("json", rest)):
                    member = tarfile.TarInfo(f"{stem}.{suffix}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
    return TarShards(str(folder), FULL)


MAKERS = [image_folder, json_lines, parquet, array_records, tar_shards]


@pytest.fixture(params=MAKERS, ids=lambda make: make.__name__)
def made(request, tmp_path):
    folder = tmp_path / "dätä with 'space' 图"
    folder.mkdir()
    rows = records(COUNT)
    return request.param(folder, rows), rows, folder


def expected(rows: list[dict]) -> list[dict]:
    return [{**row, "label": ("bird", "cat", "dog").index(row["label"])} for row in rows]


def test_reads_what_was_written_from_any_position(made):
    source, rows, _ = made
    assert isinstance(source, Source)
    assert isinstance(source, Locates)
    assert len(source) == COUNT
    assert source.names() == {"label": ("bird", "cat", "dog")}
    order = [22, 0, 9, 8, 1, 21, *range(COUNT)]
    assert [source[i] for i in order] == [expected(rows)[i] for i in order]
    assert len({source.locate(i) for i in range(COUNT)}) == COUNT
    with pytest.raises(IndexError):
        source[COUNT]


def test_survives_json_and_travel_to_another_process(made):
    source, rows, _ = made
    assert source[3] == expected(rows)[3]  # everything is open now
    assert pickle.loads(pickle.dumps(source))[4] == expected(rows)[4]
    again = from_json(json.loads(json.dumps(to_json(source))))
    assert again == source
    assert again.fingerprint() == source.fingerprint()


def test_fingerprint_changes_with_the_records(made, tmp_path):
    source, rows, _ = made
    folder = tmp_path / "other"
    folder.mkdir()
    make = next(make for make in MAKERS if make.__annotations__["return"] == type(source).__name__)
    changed = make(folder, [*rows[:-1], {**rows[-1], "caption": "something else entirely"}])
    assert changed.fingerprint() != source.fingerprint()
    fewer = (tmp_path / "fewer").resolve()
    fewer.mkdir()
    assert make(fewer, rows[:-1]).fingerprint() != source.fingerprint()


def test_is_recognised_without_being_told(made):
    source, rows, folder = made
    path = folder / "pairs.jsonl" if isinstance(source, JsonLines) else folder
    found = open_source(str(path))
    assert type(found) is type(source)
    assert len(found) == COUNT
    assert {name: found[5][name] for name in ("image", "caption")} == {n: rows[5][n] for n in ("image", "caption")}


def test_class_folders_are_labels(tmp_path):
    for i, kind in enumerate(["zebra", "ape", "ape"]):
        (tmp_path / kind / "deeper").mkdir(parents=True, exist_ok=True)
        (tmp_path / kind / "deeper" / f"{i}.png").write_bytes(png(i))
    (tmp_path / ".hidden.png").write_bytes(b"no")
    source = ImageFolder(str(tmp_path))
    assert source.names() == {"label": ("ape", "zebra")}
    assert [source[i] for i in range(3)] == [{"image": png(i), "label": label} for i, label in ((1, 0), (2, 0), (0, 1))]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("captions.txt", "a.png\tone, two\nb.png\tthree\n"),
        ("captions.tsv", "text\timage\none, two\ta.png\nthree\tb.png\n"),
        ("captions.csv", '\ufefffile_name,caption\na.png,"one, two"\nb.png,three\n'),
        ("captions.csv", 'a.png,"one, two"\nb.png,three\n'),
        ("metadata.jsonl", '{"file_name": "a.png", "text": "one, two"}\n\n{"file_name": "b.png", "text": "three"}'),
    ],
)
def test_caption_files_in_all_their_forms(tmp_path, name, text):
    for i, picture in enumerate(("a.png", "b.png", "c.png")):
        (tmp_path / picture).write_bytes(png(i))
    (tmp_path / name).write_text(text, encoding="utf-8")
    source = ImageFolder(str(tmp_path))
    assert [source[i] for i in range(len(source))] == [
        {"image": png(0), "caption": "one, two"},
        {"image": png(1), "caption": "three"},
    ]
    assert source.unlisted == ("c.png",)


def test_a_text_beside_each_picture_is_its_caption(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.jpg").write_bytes(png(i))
    (tmp_path / "0.txt").write_text("nought", encoding="utf-8")
    (tmp_path / "2.txt").write_text("due ü", encoding="utf-8")
    source = ImageFolder(str(tmp_path))
    assert [source[i].get("caption") for i in range(3)] == ["nought", None, "due ü"]


def test_parquet_rows_are_found_across_row_groups_and_batches(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet

    table = pa.table({"text": [f"row {i}" for i in range(1000)], "other": list(range(1000))})
    pa.parquet.write_table(table, tmp_path / "t.parquet", row_group_size=77)
    source = ParquetTable(str(tmp_path / "t.parquet"), Schema.parse("caption:text=text"))
    assert [source[i]["caption"] for i in (0, 76, 77, 255, 256, 999)] == [
        f"row {i}" for i in (0, 76, 77, 255, 256, 999)
    ]


def test_tfds_reads_array_records_without_tensorflow(tmp_path):
    import sys

    import tensorflow_datasets as tfds

    class Tiny(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            kinds = tfds.features.ClassLabel(names=["zebra", "ape"])
            features = {"image": tfds.features.Image(), "label": kinds, "title": tfds.features.Text()}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i in range(7):
                yield i, {"image": io.BytesIO(png(i)), "label": i % 2, "title": f"title {i}"}

    Tiny(data_dir=str(tmp_path), file_format="array_record").download_and_prepare()
    source = TfdsSource(
        str(tmp_path / "tiny" / "1.0.0"), schema=Schema.parse("image:image, caption:text=title, label:class")
    )
    assert source.names() == {"label": ("zebra", "ape")}  # the order of the data set, not of the alphabet
    by_number = {int(record["caption"].split()[1]): record for record in (source[i] for i in range(len(source)))}
    assert sorted(by_number) == list(range(7))
    assert all(record == {"image": png(i), "caption": f"title {i}", "label": i % 2} for i, record in by_number.items())
    assert len(TfdsSource(source.name, split="train[:3]")) == 3
    assert "image" in TfdsSource(source.name)[0]
    assert "tensorflow" not in sys.modules
    with pytest.raises(DataError, match=r"no split 'test': it has train"):
        len(TfdsSource(source.name, split="test"))


@pytest.mark.parametrize(
    "source",
    [
        ImageFolder("{}"),
        JsonLines("{}/pairs.jsonl", FULL),
        ParquetTable("{}", FULL),
        ArrayRecords("{}", FULL),
        TarShards("{}", FULL),
    ],
    ids=lambda source: type(source).__name__,
)
def test_missing_and_empty_places_are_one_clear_error(source, tmp_path):
    import dataclasses

    field = "folder" if isinstance(source, ImageFolder) else "path"
    template = getattr(source, field)
    with pytest.raises(DataError, match="there is no file or folder"):
        len(dataclasses.replace(source, **{field: template.format(tmp_path / "absent")}))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds no|there is no file") as caught:
        len(dataclasses.replace(source, **{field: template.format(tmp_path / "empty")}))
    assert caught.value.code == 66
    assert str(tmp_path / "empty") in str(caught.value)


def test_an_empty_file_is_an_error_with_its_name(tmp_path):
    (tmp_path / "e.jsonl").write_text("\n \n")
    with pytest.raises(DataError, match=r"e\.jsonl.*no record"):
        len(JsonLines(str(tmp_path / "e.jsonl"), FULL))
    write_array_records([], str(tmp_path / "e.array_record"))
    with pytest.raises(DataError, match=r"e\.array_record holds no record"):
        len(ArrayRecords(str(tmp_path / "e.array_record"), FULL))
    tarfile.open(tmp_path / "e.tar", "w").close()
    with pytest.raises(DataError, match=r"e\.tar.*no record"):
        len(TarShards(str(tmp_path / "e.tar"), FULL))


def test_a_near_name_is_offered(tmp_path):
    (tmp_path / "pictures").mkdir()
    with pytest.raises(DataError, match="did you mean .*pictures"):
        len(ImageFolder(str(tmp_path / "picturs")))


def test_a_missing_package_says_what_to_install(tmp_path, monkeypatch):
    import sys

    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"pip install 'mmjax\[parquet\]'"):
        len(ParquetTable(str(tmp_path / "t.parquet"), FULL))


def test_huge_captions_arrive_whole_in_every_kind(tmp_path):
    """Cutting is the tokenizer's to do and to count; a source neither cuts nor chokes."""
    caption = "wörd " * 200_000
    for make in (image_folder, json_lines, tar_shards):
        folder = tmp_path / make.__name__
        folder.mkdir()
        assert make(folder, [{**row, "caption": caption} for row in records(3)])[1]["caption"] == caption


def test_array_record_writer_leaves_no_half_file(tmp_path):
    def broken():
        yield {"caption": "one"}
        yield {"caption": object()}

    with pytest.raises(UserError, match="record 1 cannot be stored: a object has no msgpack form"):
        write_array_records(broken(), str(tmp_path / "x.array_record"))
    assert list(tmp_path.iterdir()) == []


def test_record_faults_name_the_reason(tmp_path):
    lines = ['{"image": "a.png", "caption": "fine"}', "{not json", "[1]", '{"image": "gone.png", "caption": "x"}']
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "p.jsonl").write_text("\n".join(lines))
    source = JsonLines(str(tmp_path / "p.jsonl"), Schema.parse("image:image, caption:text"))
    assert source[0]["caption"] == "fine"
    for index, fault, told in ((1, "unreadable", "JSON"), (2, "bad_schema", "list"), (3, "missing_file", "gone.png")):
        with pytest.raises(BadRecord) as caught:
            source[index]
        assert caught.value.fault == fault
        assert told in caught.value.reason
    assert source.locate(3) == "p.jsonl, line 4"
