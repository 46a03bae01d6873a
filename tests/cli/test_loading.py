"""Experiment files: the user's own, anywhere; what is wrong with one is told by its name and line."""

from __future__ import annotations

import json
import pathlib
import sys

import pytest

from mmjax.cli.loading import from_file, from_run, parts_of, read_record
from mmjax.core import config
from mmjax.core.errors import UserError


def write(folder: pathlib.Path, name: str, text: str) -> pathlib.Path:
    path = folder / name
    path.write_text(text)
    return path


def test_a_file_anywhere_is_called_with_its_settings(file):
    loaded = from_file(pathlib.Path(file), {"width": "16", "layout.fsdp": "2", "objectives.together.weight": "0.5"})
    assert loaded.name == "colours" and loaded.source == {
        "file": "colours.py",
        "settings": {"width": "16", "layout.fsdp": "2", "objectives.together.weight": "0.5"},
    }
    assert loaded.experiment.model.image.encoder.width == 16 and loaded.experiment.layout.fsdp == 2


def test_its_parts_survive_json_without_the_file(file):
    value = from_file(pathlib.Path(file), {}).experiment
    assert "colours" in set(parts_of(config.to_json(value)))
    assert config.from_json(json.loads(json.dumps(config.to_json(value)))) == value


def test_its_neighbours_can_be_imported(tmp_path, file):
    write(tmp_path, "neighbour_of_mine.py", "WIDTH = 4\n")
    from_file(pathlib.Path(file), {})  # from here on, `colours` can be imported, too
    text = "import colours\nfrom neighbour_of_mine import WIDTH\n"
    own = write(tmp_path, "mine.py", text + "def experiment():\n    return colours.experiment(width=WIDTH)\n")
    assert from_file(own, {}).experiment.model.image.encoder.width == 4


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("nothing.py", "x = 1\n", "has no function `experiment`"),
        ("wrong_type.py", "def experiment():\n    return 3\n", "must return an Experiment; it returned a int"),
        ("bad_syntax.py", "x = 1\ndef experiment(:\n", "line 2: SyntaxError"),
        ("bad_import.py", "\n\nimport not_there_at_all\n", "line 3: ModuleNotFoundError: No module named"),
        ("bad_call.py", "def experiment():\n    x = {}\n    return x['key']\n", "line 3: KeyError: 'key'"),
        ("needs.py", "def experiment(data):\n    return data\n", r"data=\.\.\. must be given"),
        ("notes.txt", "hello\n", "is not a Python file"),
        ("json.py", "def experiment(): ...\n", "a module cannot be called 'json' here"),
        ("two words.py", "def experiment(): ...\n", "rename the file"),
    ],
)
def test_what_is_wrong_with_a_file_is_told(tmp_path, name, text, said):
    with pytest.raises(UserError, match=said):
        from_file(write(tmp_path, name, text), {})


def test_a_file_that_is_not_there(tmp_path):
    write(tmp_path, "emoji_towers.py", "")
    with pytest.raises(UserError, match="did you mean .*emoji_towers.py"):
        from_file(tmp_path / "emoji_tower.py", {})


def test_a_file_that_failed_can_be_mended_and_loaded_again(tmp_path, file):
    path = write(tmp_path, "mended.py", "import not_there_at_all\n")
    with pytest.raises(UserError):
        from_file(path, {})
    path.write_text("from colours import experiment\n")
    assert from_file(path, {}).name == "mended"


def test_wrong_settings_are_told_at_once(file):
    with pytest.raises(UserError) as caught:
        from_file(pathlib.Path(file), {"widht": "3", "steps": "many", "layout.fdsp": "2", "style": "fancy"})
    said = str(caught.value)
    assert "did you mean width" in said and "steps=many: expected a whole number" in said
    assert "did you mean layout.fsdp" in said and "style=fancy: expected one of plain" in said


# -------------------------------------------------------------------------------------------------------- run folders


def test_a_run_is_rebuilt_from_its_json(trained, file):
    assert from_run(trained).experiment == from_file(pathlib.Path(file), {"steps": "12"}).experiment


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is damaged"),
        ("[]", "is damaged"),
        ('{"format": 99, "experiment": {}, "source": {}}', "has format 99; this version of mmjax reads format 1"),
        ('{"format": 1}', "has format 1"),
    ],
)
def test_a_record_that_cannot_be_read(tmp_path, text, said):
    write(tmp_path, "experiment.json", text)
    with pytest.raises(UserError, match=said):
        read_record(tmp_path)


def test_a_folder_that_is_no_run(trained):
    with pytest.raises(UserError, match=r"is not a run folder: it has no experiment\.json; did you mean .*trained"):
        read_record(trained.parent / "trainde")


@pytest.mark.parametrize("reference", ["os:system", "subprocess:run", "shutil:rmtree", "mmjax.cli.main:os.execv"])
def test_a_run_from_a_stranger_cannot_name_code(trained, tmp_path, reference):
    record = json.loads((trained / "experiment.json").read_text())
    record["experiment"]["augment"] = {"$ref": reference}
    write(tmp_path, "experiment.json", json.dumps(record))
    with pytest.raises(UserError, match="may be named|do not import code|of that module"):
        from_run(tmp_path)


def test_a_run_from_a_stranger_imports_nothing(trained, tmp_path):
    record = json.loads((trained / "experiment.json").read_text())
    record["experiment"]["model"]["$type"] = "antigravity:Anything"
    write(tmp_path, "experiment.json", json.dumps(record))
    with pytest.raises(UserError, match="do not import code"):
        from_run(tmp_path)
    assert "antigravity" not in sys.modules
