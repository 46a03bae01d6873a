"""`mmjax data`: a newcomer learns in one page whether their data will train, and what is wrong with which record."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from record_samples import png, records

from data_pipelines.contact_sheet import Card, draw
from data_pipelines.door import main, next_step
from data_pipelines.inspection import script
from data_pipelines.lettering import wrapped
from data_pipelines.sources import write_array_records
from mmjax.core.errors import DataError, UserError


def pairs(folder: pathlib.Path, count: int = 40, name: str = "captions.csv") -> pathlib.Path:
    folder.mkdir()
    lines = ["file_name,text"]
    for i, row in enumerate(records(count)):
        (folder / f"{i:03}.png").write_bytes(row["image"])
        lines.append(f"{i:03}.png,{row['caption']}")
    (folder / name).write_text("\n".join(lines), encoding="utf-8")
    return folder


@pytest.fixture
def good(tmp_path):
    return pairs(tmp_path / "my pairs")


@pytest.fixture
def broken(tmp_path):
    folder = pairs(tmp_path / "broken pairs")
    (folder / "003.png").write_bytes(png(3)[:60])
    (folder / "004.png").write_bytes(b"<html>not found</html>")
    (folder / "005.png").unlink()
    text = (folder / "captions.csv").read_text(encoding="utf-8")
    (folder / "captions.csv").write_text(text.replace("a cat número 6 🐈", " "), encoding="utf-8")
    return folder


def run(capsys, *words: str) -> tuple[int, str]:
    code = main([str(word) for word in words])
    return code, capsys.readouterr().out


def test_good_data_passes_with_the_next_command(good, capsys):
    code, page = run(capsys, "check", good)
    assert code == 0
    for told in (
        "ImageFolder",
        "image:image, caption:text",
        "40 of 40 (100.0%)",
        "40 distinct",
        "12  x  8 pixels",
        "PNG RGB 40",
    ):
        assert told in page
    assert "this data will train" in page
    assert f"mmjax train experiments/own_data.py 'data={good}'" in page


def test_the_same_facts_as_json(good, capsys):
    code, text = run(capsys, "check", good, "--json")
    facts = json.loads(text)
    assert code == 0
    assert facts["trains"] is True
    assert (facts["records"], facts["looked_at"], facts["good"], facts["bad"]) == (40, 40, 40, [])
    assert facts["fields"]["image"]["sizes"]["under 32"] == 40
    captions = [row["caption"] for row in records(40)]
    words = facts["fields"]["caption"]
    assert words["characters"]["high"] == max(map(len, captions))
    assert words["words"]["median"] == 5
    assert words["scripts"] == {"Latin": 40}


def test_broken_data_names_each_record_and_reason(broken, capsys):
    code, text = run(capsys, "check", broken, "--json")
    facts = json.loads(text)
    assert code == 65
    assert facts["trains"] is False
    assert facts["good"] == 36
    assert [(bad["index"], bad["fault"]) for bad in facts["bad"]] == [
        (3, "unreadable"), (4, "unreadable"), (5, "missing_file"), (6, "empty"),
    ]  # fmt: skip
    assert "005.png" in facts["bad"][2]["where"]
    assert facts["faults"] == {"unreadable": 2, "missing_file": 1, "empty": 1}
    code, page = run(capsys, "check", broken)
    assert code == 65
    for told in (
        "003.png (captions.csv, caption 4)",
        "missing file",
        "this data will not train",
        "4 of 40 records are bad (10.0%)",
    ):
        assert told in page


def test_a_schema_that_does_not_fit_is_told_before_anything_is_read(tmp_path, capsys):
    write_array_records(records(3), str(tmp_path / "r.array_record"))
    words = ["check", str(tmp_path / "r.array_record"), "--schema", "image:image,title:text=captoin"]
    with pytest.raises(DataError, match=r"did you mean 'caption'\? \(title:text=caption\)"):
        main(words)
    code = main([*words, "--json"])
    facts = json.loads(capsys.readouterr().out)
    assert code == 65
    assert facts["trains"] is False
    assert "did you mean 'caption'" in facts["problems"][0]


def test_labels_and_copies_are_counted(tmp_path, capsys):
    for i in range(60):
        kind = "rare" if i == 0 else "common"
        (tmp_path / "set" / kind).mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / kind / f"{i}.png").write_bytes(png(0 if i < 3 else i))
    code, text = run(capsys, "check", tmp_path / "set", "--json")
    facts = json.loads(text)
    assert code == 0
    assert facts["fields"]["label"]["occurrences"] == {"common": 59, "rare": 1}
    assert facts["fields"]["image"]["distinct"] == 58
    assert len(facts["fields"]["image"]["repeated"]) == 2
    assert any("unbalanced, 59 records of common and 1 of rare" in remark for remark in facts["remarks"])


@pytest.mark.parametrize(
    ("captions", "told"),
    [
        (None, "there is nothing but pictures: add captions"),
        (["same"] * 8, "caption: every record says the same"),
    ],
)
def test_data_with_nothing_to_learn_will_not_train(tmp_path, capsys, captions, told):
    folder = tmp_path / "set"
    folder.mkdir()
    for i in range(8):
        (folder / f"{i}.png").write_bytes(png(i))
        if captions:
            (folder / f"{i}.txt").write_text(captions[i])
    code, text = run(capsys, "check", folder, "--json")
    assert code == 65
    assert any(told in problem for problem in json.loads(text)["problems"])


def test_a_limit_spreads_over_all_records_and_a_huge_caption_is_a_remark(tmp_path, capsys):
    rows = records(50)
    rows[49]["caption"] = "x" * 1_000_000
    write_array_records(rows, str(tmp_path / "r.array_record"))
    code, text = run(capsys, "check", tmp_path, "--limit", "7", "--json")
    facts = json.loads(text)
    assert (code, facts["records"], facts["looked_at"]) == (0, 50, 7)
    assert any("1 texts are longer than 16 kB" in remark for remark in facts["remarks"])


def test_a_damaged_shard_is_a_page_not_a_trace(tmp_path, capsys):
    shard = tmp_path / "r.array_record"
    write_array_records([{"image": png(i, (200, 150)), "caption": f"number {i}"} for i in range(6)], str(shard))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    code, page = run(capsys, "check", shard)
    assert code == 65
    assert "r.array_record, record" in page
    assert "damaged" in page


def test_show_draws_good_and_bad_records(broken, tmp_path, capsys):
    code, text = run(capsys, "show", broken, "--out", tmp_path / "sheet.png", "--count", 40, "--json")
    assert code == 0
    assert json.loads(text) == {"file": str((tmp_path / "sheet.png").resolve()), "records": 40, "bad": 4}
    with Image.open(tmp_path / "sheet.png") as sheet:
        pixels = np.asarray(sheet.convert("RGB"))
    assert (pixels == (0xB3, 0x26, 0x1E)).all(-1).any(), "bad records are told in red"


def test_cards_show_pictures_unchanged_and_captions_in_any_script():
    red = Image.new("RGB", (10, 20), (255, 0, 0))
    captions = ["plain", "Фудзияма", "冲浪", "صنارة صيد", "emoji 🐈‍⬛", "x" * 500, "", "line\nbreak\0and\ud800"]
    sheet = np.asarray(draw([Card(red, caption, ["note"]) for caption in captions], "title <b>"))
    assert (sheet == (255, 0, 0)).all(-1).sum() == len(captions) * 100 * 200
    assert draw([Card(red, caption) for caption in captions], "t").width < 2000
    assert len(wrapped("word " * 200, 14, 200, 3)) == 3
    assert "".join(wrapped("多" * 10, 14, 60, 9)) == "多" * 10


def test_show_draws_the_batch_of_an_experiment(good, tmp_path, capsys):
    (tmp_path / "mine.py").write_text(
        f"""
from types import SimpleNamespace
from data_pipelines.features import ImageFeature
from data_pipelines.pipeline import Pipeline
from data_pipelines.sources import ImageFolder

def experiment(batch: int = 4, size: int = 16):
    picture = ImageFeature(height=size, width=size)
    return SimpleNamespace(data=Pipeline(ImageFolder({str(good)!r}), (picture,), batch=batch))
"""
    )
    code, text = run(capsys, "show", tmp_path / "mine.py", "batch=6", "--out", tmp_path / "batch.png", "--json")
    assert code == 0
    assert json.loads(text)["records"] == 6
    with pytest.raises(UserError, match="did you mean batch"):
        main(["show", str(tmp_path / "mine.py"), "bacth=6"])


def test_verify_finds_changed_missing_and_added_files(good, tmp_path, capsys):
    hashes = tmp_path / "hashes.json"
    assert run(capsys, "verify", good, "--write", hashes) == (0, f"{hashes}: hashes of 41 files\n")
    assert run(capsys, "verify", good, "--against", hashes)[0] == 0
    data = bytearray((good / "001.png").read_bytes())
    data[-20] ^= 1
    (good / "001.png").write_bytes(data)
    (good / "002.png").unlink()
    (good / "new.png").write_bytes(b"")
    code, text = run(capsys, "verify", good, "--against", hashes, "--json")
    assert code == 65
    found = json.loads(text)
    assert (found["changed"], found["missing"], found["added"]) == (["001.png"], ["002.png"], ["new.png"])
    with pytest.raises(DataError, match="is no list of hashes"):
        main(["verify", str(good), "--against", str(good / "captions.csv")])


def test_mistakes_are_told_with_the_nearest_word(tmp_path):
    with pytest.raises(UserError, match="no command 'chek'; did you mean check"):
        main(["chek", "x"])
    with pytest.raises(DataError, match="there is no file or folder"):
        main(["check", str(tmp_path / "nowhere")])
    (tmp_path / "x.docx").write_bytes(b"")
    with pytest.raises(DataError, match=r"no kind of data that is known here: expected \.jsonl"):
        main(["check", str(tmp_path / "x.docx")])
    with pytest.raises(UserError, match="belong to an experiment"):
        main(["show", str(tmp_path), "batch=3"])


def test_the_next_command_is_safe_to_paste():
    assert next_step("a b'c", "image:image,caption:text?") == (
        """mmjax train experiments/own_data.py 'data=a b'"'"'c' 'schema=image:image,caption:text?'"""
    )


def test_scripts_are_told_apart():
    texts = {"a cat": "Latin", "кошка": "Cyrillic", "猫": "CJK", "قطة": "Arabic", "고양이": "Hangul", "12 🐈": "none"}
    assert {text: script(text) for text in texts} == texts


def test_help_loads_neither_jax_nor_pillow():
    program = "import sys, data_pipelines.door as d\ntry: d.main(['check', '--help'])\nexcept SystemExit: pass\n"
    program += "print(sorted({'jax', 'PIL', 'numpy', 'rich'} & set(sys.modules)))"
    root = pathlib.Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "--schema" in done.stdout
