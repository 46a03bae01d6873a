"""`mmjax sample`: a run's own model answers about pictures."""

from __future__ import annotations

import io
import json
import pathlib
import shutil

import pytest
from PIL import Image

from mmjax.cli.main import main
from tests.cli.colour_chat import SHADES


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> pathlib.Path:
    """A trained run."""
    folder = tmp_path_factory.mktemp("chat")
    shutil.copy(pathlib.Path(__file__).parent / "colour_chat.py", folder / "colour_chat.py")
    assert main(["train", str(folder / "colour_chat.py"), "--run", str(folder / "run")]) == 0
    return folder / "run"


def picture(folder: pathlib.Path, name: str) -> str:
    """A file that shows a colour."""
    path = folder / f"{name}.png"
    Image.new("RGB", (9, 7), SHADES[name]).save(path)
    return str(path)


def test_the_evaluation_knows_what_the_picture_adds(run):
    """Four colours: without the picture the best one can do is to always say the same."""
    (found,) = (run / "evals" / "answers").glob("*.json")
    exact = json.loads(found.read_text())["all"]["exact_match"]
    assert exact["value"] == 1.0 and exact["image_absent"] <= 0.25


@pytest.mark.parametrize("name", SHADES)
def test_it_says_what_the_picture_shows(name, run, tmp_path, capsys):
    assert main(["sample", str(run), "colour?", "--image", picture(tmp_path, name), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"question": "colour?", "answer": name}


def test_it_streams_and_takes_questions_from_standard_input(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("colour?\n\ncolour?\n"))
    assert (
        main(["sample", str(run), "--image", picture(tmp_path, "blue"), "--temperature", "0.01", "--top-k", "3"]) == 0
    )
    assert capsys.readouterr().out == "blue\nblue\n"


def test_a_model_of_single_questions_refuses_a_conversation(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("and now?\n"))
    assert main(["sample", str(run), "colour?", "--chat", "--image", picture(tmp_path, "red")]) == 2
    assert "cannot take 3 turns of a conversation" in capsys.readouterr().err


def test_a_run_that_reads_no_dialogues_says_so(trained, capsys):
    assert main(["sample", str(trained), "what?"]) == 2
    assert "no part that turns a dialogue into a prompt" in capsys.readouterr().err
