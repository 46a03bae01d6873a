"""The sub-commands on a user's own experiment, outside of the repository."""

from __future__ import annotations

import json
import pathlib

import jax
import pytest
from PIL import Image

from mmjax.cli.main import main
from mmjax.core.parameters import unbox
from mmjax.core.pytrees import element_count
from mmjax.training.writers import read_metrics


def printed(capsys, *words: str):
    """The JSON document that a command prints; nothing else may stand on standard output."""
    assert main(list(words)) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys, *words: str) -> str:
    assert main(list(words)) not in (0, 1)
    found = capsys.readouterr().err
    assert found.startswith("error: ") and "Traceback" not in found
    return found


# ------------------------------------------------------------------------------------------------------------- train


def test_a_run_leaves_its_record(trained):
    there = {path.name for path in trained.iterdir()}
    assert {
        "experiment.json",
        "command.txt",
        "environment.json",
        "metrics.jsonl",
        "checkpoints",
        "evals",
        "DONE",
    } <= there
    record = json.loads((trained / "experiment.json").read_text())
    assert record["source"] == {"file": "colours.py", "settings": {"steps": "12"}} and record["format"] == 1
    losses = [line["loss"] for line in read_metrics(trained / "metrics.jsonl") if line["kind"] == "train"]
    assert len(losses) == 6 and losses[-1] < losses[0]


def test_the_same_command_goes_on_where_the_run_stopped(file, tmp_path, capsys):
    run = str(tmp_path / "run")
    first = printed(capsys, "train", file, "steps=4", "--run", run, "--json")
    longer = printed(capsys, "train", file, "steps=8", "--run", run, "--json")
    whole = printed(capsys, "train", file, "steps=8", "--run", str(tmp_path / "whole"), "--json")
    assert (first["step"], longer["step"]) == (4, 8)
    assert longer["loss"] == whole["loss"]
    steps = [line["step"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if line["kind"] == "train"]
    assert steps == [2, 4, 6, 8]


def test_another_seed_in_the_same_folder_is_refused_unless_allowed(file, tmp_path, capsys):
    run = str(tmp_path / "run")
    assert main(["train", file, "steps=2", "--run", run]) == 0
    capsys.readouterr()
    assert "--allow seed" in refused(capsys, "train", file, "steps=4", "seed=1", "--run", run)
    assert main(["train", file, "steps=4", "seed=1", "--run", run, "--allow", "seed"]) == 0


def test_fresh_keeps_the_earlier_run_aside(file, tmp_path, capsys):
    run = tmp_path / "run"
    for expected in ([], ["run.1"], ["run.1", "run.2"]):
        assert main(["train", file, "steps=2", "--run", str(run), "--fresh"]) == 0
        assert sorted(path.name for path in tmp_path.iterdir()) == ["run", *expected]
        assert "going on" not in capsys.readouterr().out
    assert (tmp_path / "run.1" / "DONE").exists()


def test_fresh_never_moves_what_is_no_run(file, tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("years of work")
    assert "holds no mmjax run" in refused(capsys, "train", file, "--run", str(tmp_path), "--fresh")
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_dry_run_describes_and_leaves_nothing(file, tmp_path, capsys):
    assert main(["train", file, "--dry-run", "--run", str(tmp_path / "run")]) == 0
    text = capsys.readouterr().out
    assert "image/encoder/kernel" in text and "nothing was trained" in text and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("wdith=3", "did you mean width"),
        ("layout.tensor=3", "does not divide 8 devices"),
        ("batch=12", "a batch of 12 rows cannot be split"),
        ("steps=0", "steps=0: expected a whole number from 1 on"),
        ("optimizer.clip=-1", "clip must be above 0"),
        ("data.side", "settings are name=value"),
    ],
)
def test_a_wrong_setting_stops_before_any_work(setting, said, file, tmp_path, capsys):
    assert said in refused(capsys, "train", file, setting, "--run", str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------------------------------------------- eval and search


def test_eval_finds_what_the_run_found(trained, capsys):
    path = trained / "evals" / "retrieval" / "12.json"
    before = json.loads(path.read_text())
    path.unlink()
    found = printed(capsys, "eval", str(trained), "--json")
    assert found["step"] == 12 and found["evals"]["retrieval"] == before == json.loads(path.read_text())


def test_eval_of_an_earlier_step(trained, capsys):
    assert printed(capsys, "eval", str(trained), "--step", "8", "--json")["step"] == 8
    assert "there are: 4, 8, 12" in refused(capsys, "eval", str(trained), "--step", "7")


def test_eval_prints_every_number_with_its_interval_and_chance(trained, capsys):
    assert main(["eval", str(trained)]) == 0
    text = capsys.readouterr().out
    row = next(line.split() for line in text.splitlines() if line.strip().startswith("text_to_image/all/r1 "))
    assert len(row) == 6 and float(row[2]) <= float(row[1]) <= float(row[3]) and float(row[4]) == 0.125


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["eval", "{run}", "--evals", "retrival"], "did you mean retrieval"),
        (["eval", "{run}/nowhere"], "is not a run folder"),
        (["search", "{run}", "red", "--among", "retreival"], "did you mean retrieval"),
        (["search", "{run}", " "], "the search text is empty"),
        (["report", "{run}/nowhere"], "is not a run folder"),
        (["describe", "{run}", "width=3"], "is a run folder, whose settings are what they are"),
    ],
)
def test_wrong_questions_to_a_run(words, said, trained, capsys):
    assert said in refused(capsys, *(word.replace("{run}", str(trained)) for word in words))


def test_search_ranks_each_picture_once_and_draws_them(trained, tmp_path, capsys):
    sheet = tmp_path / "sheet.png"
    found = printed(capsys, "search", str(trained), "red", "--count", "3", "--out", str(sheet), "--json")
    cosines = [hit["cosine"] for hit in found["hits"]]
    assert cosines == sorted(cosines, reverse=True) and len({hit["id"] for hit in found["hits"]}) == 3
    assert found["sheet"] == str(sheet) and Image.open(sheet).format == "PNG"


@pytest.mark.subprocess
def test_a_run_with_parts_of_its_own_asks_for_their_file(trained, file, alone):
    """In a new process nothing of the user's is imported, until the user says so."""
    without = alone("search", str(trained), "red")
    assert without.returncode == 2 and "Give the file that defines it with --experiment FILE" in without.stderr
    assert "Traceback" not in without.stderr
    assert alone("search", str(trained), "red", "--experiment", file, "--json").returncode == 0


# -------------------------------------------------------------------------------------------------- describe, report


def test_describe_counts_what_there_is(file, capsys):
    found = printed(capsys, "describe", file, "width=16", "--json")
    import colours  # loaded by the command before

    model, spec = colours.experiment(width=16).model, colours.experiment().data.spec()
    params = unbox(jax.eval_shape(lambda b: model.init(jax.random.key(0), b)["params"], spec))
    assert sum(found["parameters"]["by_component"].values()) == element_count(params)
    assert found["parameters"]["all"]["image/encoder/kernel"] == {
        "shape": [3, 16],
        "dims": ["channel", "width"],
        "dtype": "float32",
    }
    forward = found["forward_flops_per_example"]
    assert forward["head"] == 2 * 2 * 16 * 4 and forward["image"] >= 2 * 3 * 16
    assert found["training_flops_per_example"] == 3 * sum(forward.values())
    assert found["memory_bytes_per_device"]["parameters"] == 4 * element_count(params)
    assert found["mesh"]["data"] == 8 and found["batch"]["image/pixels"] == {"shape": [8, 1, 4, 4, 3], "dtype": "uint8"}


def test_describe_tells_what_activations_need_when_compiled(file, capsys):
    found = printed(capsys, "describe", file, "--compile", "--json")
    assert found["memory_bytes_per_device"]["activations and gradients"] > 0


def test_describe_of_a_run_is_that_of_its_file(trained, file, capsys):
    of_run = printed(capsys, "describe", str(trained), "--json")
    assert of_run == printed(capsys, "describe", file, "steps=12", "--json")


@pytest.mark.subprocess
def test_devices_are_virtual(file, alone):
    done = alone("describe", file, "--devices", "4", "layout.fsdp=2", "--json")
    assert done.returncode == 0, done.stderr
    mesh = json.loads(done.stdout)["mesh"]
    assert (mesh["data"], mesh["fsdp"]) == (2, 2)


def test_report_says_where_the_page_lies(trained, file, tmp_path, capsys):
    found = printed(
        capsys, "report", str(trained), "--experiment", file, "--out", str(tmp_path / "page.html"), "--json"
    )
    assert pathlib.Path(found["report"]).read_text().lstrip().lower().startswith("<!doctype html")
