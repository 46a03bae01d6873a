"""Damaged and hostile files: never silent, never obeyed, always named."""

from __future__ import annotations

import io
import json
import os
import pathlib
import random
import tarfile

import pytest
from record_samples import png, records

from data_pipelines.protocols import BadRecord
from data_pipelines.schema import Schema
from data_pipelines.sources import ArrayRecords, ImageFolder, JsonLines, ParquetTable, TarShards, write_array_records
from mmjax.core.errors import DataError

PAIR = Schema.parse("image:image, caption:text")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("MMJAX_CACHE", str(tmp_path_factory.mktemp("cache")))


def everything(folder: pathlib.Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# -------------------------------------------------------------------------------------------------------- array records


@pytest.mark.slow
def test_no_damage_to_an_array_record_shard_is_silent(tmp_path):
    """200 random damages: bits flipped, stretches overwritten, tails cut off. Each either changes nothing that is read,
    or is an error that names the shard; never another value."""
    shard = tmp_path / "s.array_record"
    truth = [{**row, "image": png(row["age"], (64, 40))} for row in records(24)]
    write_array_records(truth, str(shard))
    intact, rng, told = shard.read_bytes(), random.Random(7), 0
    used = len(intact.rstrip(b"\0"))  # damage where there is data, not in the padding
    for trial in range(200):
        data = bytearray(intact)
        place = rng.randrange(used)
        if trial % 4 == 0:
            data = data[:place]
        elif trial % 4 == 1:
            data[place : place + 40] = rng.randbytes(len(data[place : place + 40]))
        else:
            data[place] ^= 1 << rng.randrange(8)
        shard.write_bytes(data)
        source, faults = (
            ArrayRecords(str(shard), Schema.parse("image:image, caption:text, label:class[cat|dog|bird]")),
            [],
        )
        try:
            count = len(source)
        except DataError as error:
            faults, count = [error], 0
        for index in range(count):
            try:
                assert source.row(index) == truth[index], "a damaged record was read as another one"
            except DataError as error:
                faults.append(error)
        assert faults or count == len(truth), "records vanished without a word"
        assert all("s.array_record" in str(error) and "again from its origin" in str(error) for error in faults)
        told += bool(faults)
    assert told > 100


def test_a_damaged_record_spoils_no_other(tmp_path):
    shard = tmp_path / "s.array_record"
    truth = [{"image": random.Random(i).randbytes(70_000), "caption": str(i)} for i in range(8)]
    write_array_records(truth, str(shard))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    source, damaged = ArrayRecords(str(shard), PAIR), []
    for index in range(8):
        try:
            assert source[index] == truth[index]
        except DataError as error:
            damaged.append(index)
            assert f"s.array_record: record {index} is damaged" in str(error)
    assert len(damaged) == 1


def test_a_record_of_another_writer_is_told(tmp_path):
    from array_record.python import array_record_module

    writer = array_record_module.ArrayRecordWriter(str(tmp_path / "x.array_record"), "group_size:1")
    writer.write(b"\xc1 not msgpack")
    writer.close()
    with pytest.raises(BadRecord, match="write shards with write_array_records"):
        ArrayRecords(str(tmp_path / "x.array_record"), PAIR).row(0)


# -------------------------------------------------------------------------------------------------------------- parquet


def test_damaged_parquet_names_the_file(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet

    path = tmp_path / "t.parquet"
    rows = [{"image": random.Random(i).randbytes(3000), "caption": str(i)} for i in range(50)]
    pa.parquet.write_table(pa.Table.from_pylist(rows), path, write_page_checksum=True)
    intact, told = path.read_bytes(), 0
    for cut in (0, 3, 50, len(intact) // 2, len(intact) - 3):
        path.write_bytes(intact[:cut])
        with pytest.raises(DataError, match=r"t\.parquet.*cannot be read"):
            ParquetTable(str(path), PAIR)[0]
    for place in range(100, len(intact) - 2000, len(intact) // 20):
        path.write_bytes(intact[:place] + bytes([intact[place] ^ 4]) + intact[place + 1 :])
        source = ParquetTable(str(path), PAIR)
        try:
            assert [source[i] for i in range(50)] == rows
        except DataError as error:
            told += "t.parquet" in str(error)
    assert told >= 15


# ------------------------------------------------------------------------------------------------------------------ tar


def member(name: str, data: bytes = b"x", **changes) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in changes.items():
        setattr(info, field, value)
    return info, data


def archive(*members: tuple[tarfile.TarInfo, bytes], fmt: int = tarfile.PAX_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=fmt) as tar:
        tar.addfile(member("0.png")[0], io.BytesIO(b"x"))
        for info, data in members:
            tar.addfile(info, io.BytesIO(data) if info.isreg() else None)
    return file.getvalue()


def link(name: str, to: str, kind: bytes) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, b"", type=kind, linkname=to)


def gzipped(data: bytes) -> bytes:
    import gzip

    return gzip.compress(data)


def damaged_header(data: bytes) -> bytes:
    return data[:1024] + b"\xff" * 100 + data[1124:]


PLAIN = archive(member("1.png", bytes(3000)), member("1.txt", b"one"))

HOSTILE = {
    "parent": (archive(member("../evil.png")), "'../evil.png', which points out of the archive"),
    "parent inside": (archive(member("a/../../evil.png")), "which points out of the archive"),
    "parent with backslashes": (archive(member("a\\..\\..\\evil.png")), "which points out of the archive"),
    "drive letter": (archive(member("C:evil.png")), "which points out of the archive"),
    "symbolic link": (archive(link("1.png", "/etc/passwd", tarfile.SYMTYPE)), "holds a link, '1.png'"),
    "hard link": (archive(link("1.png", "0.png", tarfile.LNKTYPE)), "holds a link, '1.png'"),
    "character device": (archive(member("1.png", b"", type=tarfile.CHRTYPE)), "holds a device or pipe, '1.png'"),
    "block device": (archive(member("1.png", b"", type=tarfile.BLKTYPE)), "holds a device or pipe, '1.png'"),
    "pipe": (archive(member("1.png", b"", type=tarfile.FIFOTYPE)), "holds a device or pipe, '1.png'"),
    "NUL in a name": (archive(member("1.png", pax_headers={"path": "evil\0.png"})), "a name with a NUL character"),
    "one name twice": (archive(member("0.png")), "holds '0.png' twice"),
    "many members": (archive(*(member(f"{i}.txt") for i in range(1, 60))), "holds more than 50 members"),
    "compressed": (gzipped(PLAIN), "is compressed with gzip"),
    "cut inside a member": (PLAIN[:2500], "is cut off inside '1.png'"),
    "cut between members": (PLAIN[:1024], "ends without its end marker"),
    "damaged header": (damaged_header(PLAIN), "is damaged at byte 1,024"),
    "two joined": (PLAIN + PLAIN, "goes on after its end marker"),
    "negative size": (archive(member("1.txt", b"")).replace(b"00000000000\0", b"\xff" * 12, 1), "s.tar"),
    "no archive": (b"\x7fELF" * 500, "is not a readable tar archive"),
}


def assert_refused(data, told, tmp_path, monkeypatch):
    """A tar of these bytes is refused with these words, and no file appears."""
    (tmp_path / "inside").mkdir()
    shard = tmp_path / "inside" / "s.tar"
    shard.write_bytes(data)
    monkeypatch.chdir(tmp_path / "inside")
    before = everything(tmp_path)
    with pytest.raises(DataError) as caught:
        len(TarShards(str(shard), Schema.parse("image:image"), max_members=50))
    assert told in str(caught.value)
    assert str(shard) in str(caught.value)
    assert caught.value.code == 65
    assert everything(tmp_path) == before


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_or_damaged_tar_is_refused_and_nothing_appears(case, tmp_path, monkeypatch):
    assert_refused(*HOSTILE[case], tmp_path, monkeypatch)


def test_a_tar_with_an_absolute_name_is_refused_and_nothing_appears(tmp_path, monkeypatch):
    evil = str(tmp_path / "evil.png")
    assert_refused(archive(member(evil)), f"{evil!r}, which points out of the archive", tmp_path, monkeypatch)


def test_an_honest_tar_of_every_format_is_read(tmp_path):
    long = "folder/" * 20 + "ünïcode 图" * 12
    for fmt in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        name = "a/ü" if fmt == tarfile.USTAR_FORMAT else long
        (tmp_path / "s.tar").write_bytes(
            archive(member(f"{name}.png", b"picture"), member(f"{name}.txt", b"words"), fmt=fmt)
        )
        source = TarShards(str(tmp_path / "s.tar"), Schema.parse("image:image, caption:text?"))
        assert [source[i] for i in range(len(source))] == [{"image": b"x"}, {"image": b"picture", "caption": "words"}]


# ----------------------------------------------------------------------------------------------------------- references

REFERENCES = {
    "../secret.png": "leads out of the data's folder",
    "a/../../secret.png": "leads out of the data's folder",
    "/etc/passwd": "leads out of the data's folder",
    "link.png": "leads out of the data's folder",
    "folder/secret.png": "leads out of the data's folder",
    "a\0b.png": "a character that no file name can have",
    "\ud800.png": "a character that no file name can have",
    "http://127.0.0.1/x.png": "an address on a network",
    "x" * 5000 + ".png": "names no file",
    "gone.png": "there is no file",
    "inner": "there is no file",
}


@pytest.mark.parametrize("reference", REFERENCES, ids=lambda text: ascii(text)[:24])
def test_json_lines_cannot_read_outside_their_folder(reference, tmp_path):
    data = tmp_path / "data"
    (data / "inner").mkdir(parents=True)
    (tmp_path / "secret.png").write_bytes(png())
    os.symlink(tmp_path / "secret.png", data / "link.png")
    os.symlink(tmp_path, data / "folder")
    (data / "p.jsonl").write_text(json.dumps({"image": reference, "caption": "x"}))
    with pytest.raises(BadRecord) as caught:
        JsonLines(str(data / "p.jsonl"), PAIR)[0]
    assert REFERENCES[reference] in caught.value.reason


def test_a_file_that_shrinks_while_in_use_is_told(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"caption": "one"}\n{"caption": "two"}\n')
    source = JsonLines(str(path), Schema.parse("caption:text"))
    assert source[1] == {"caption": "two"}
    path.write_text('{"caption": "one"}\n')
    with pytest.raises(DataError, match=r"p\.jsonl is \d+ bytes short"):
        source[1]


def test_storage_that_stumbles_is_not_a_bad_record(tmp_path, monkeypatch):
    """An OSError that may pass reaches the pipeline as such (it asks again, then stops): it must not look like a record
    that can be skipped, or two runs would see different data."""
    (tmp_path / "a.png").write_bytes(png())
    source = ImageFolder(str(tmp_path))
    assert len(source) == 1

    def stale(*args, **kwargs):
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr("builtins.open", stale)
    with pytest.raises(OSError, match="Stale"):
        source[0]


@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        ("captions.csv", b"file_name,text\na.png,x,y\n", "row 2: expected 2 columns (file_name, text), found 3"),
        ("captions.csv", b"\xff\xfea\0", "is not UTF-8"),
        ("captions.tsv", b"picture\twords\ttext\n", "no column names the pictures; found picture, words, text"),
        ("captions.jsonl", b'{"file": "a.png"\n', "line 1 is not JSON"),
        ("captions.jsonl", b'{"text": "a"}\n', "no column names the pictures"),
        ("captions.txt", b"\n\n", "holds no caption"),
    ],
)
def test_a_broken_captions_file_names_its_line(tmp_path, name, data, told):
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError) as caught:
        len(ImageFolder(str(tmp_path)))
    assert told in str(caught.value)
    assert name in str(caught.value)
