"""The page on parts of one's own says what works: its code is written into a folder and trained there."""

from __future__ import annotations

import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

import jax
import numpy as np
import pytest

from mmjax.cli.arguments import parser_of
from mmjax.cli.main import main

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
TINY = ("width=16", "depth=1", "resolution=24", "batch=8", "steps=2", "optimizer.lr.warmup=1")
"""What makes the first experiment of the page small."""


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.S | re.M)


def commands() -> list[list[str]]:
    lines = [line for block in blocks("console") for line in block.splitlines()]
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> pathlib.Path:
    """The user's folder: each block of code stands in the file that its first line names, one after the other."""
    folder = tmp_path_factory.mktemp("home")
    for block in blocks("python"):
        name, code = re.match(r"# (\w+\.py)\n(.*)", block, re.S).groups()
        with open(folder / name, "a", encoding="utf-8") as file:
            file.write(code + "\n\n")
    return folder


@pytest.fixture
def at_home(home, monkeypatch) -> pathlib.Path:
    monkeypatch.chdir(home)
    return home


@pytest.fixture(scope="module")
def trained(home) -> pathlib.Path:
    """A run of the page's own command, made small, in a process that knows nothing of this repository's tests."""
    (words,) = [words for words in commands() if words == ["mmjax", "train", "asking.py"]]
    done = subprocess.run(
        [sys.executable, "-m", *words, *TINY],
        cwd=home,
        env=os.environ
        | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": "", "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "jax")},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return home / "runs" / "asking"


def test_the_page_has_the_files_that_it_talks_of(home):
    assert {path.name for path in home.glob("*.py")} == {"film.py", "asking.py", "shades.py"}


def test_its_commands_are_understood(home):
    assert len(commands()) >= 5
    for door, command, *rest in commands():
        assert door == "mmjax"
        arguments = parser_of(command).read(rest)
        for name in ("file", "what", "experiment"):
            file = getattr(arguments, name, None)
            assert file is None or (home / file).is_file()


def test_a_fusion_of_ones_own_is_trained_and_judged_by_the_command_line(trained):
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "train"][-1] == 2
    (found,) = (trained / "evals" / "answers").glob("*.json")
    exact = json.loads(found.read_text())["all"]["exact_match"]
    assert 0 <= exact["value"] <= 1 and "image_absent" in exact
    record = json.loads((trained / "experiment.json").read_text())["experiment"]["model"]
    assert record["fusion"]["$type"] == "film:Beside"


def test_a_run_with_parts_of_ones_own_is_described_where_they_are_told(trained, at_home, capsys):
    assert main(["describe", "runs/asking", "--experiment", "asking.py", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    film = {name: part["shape"] for name, part in told["parameters"]["all"].items() if "/cross/" in name}
    assert film["stack/block/cross/gamma/kernel"] == [1, 16, 16] and len(film) == 4
    assert main(["describe", "asking.py", *TINY]) == 0
    assert "FiLM" in capsys.readouterr().out


def test_what_film_does_to_a_text_is_what_its_paper_says(at_home):
    """gamma * x + beta of the mean of one's own picture; nothing where there is none, or where it comes later."""
    sys.path.insert(0, str(at_home))
    from film import FiLM

    sys.path.remove(str(at_home))
    from mmjax.core.parameters import unbox
    from mmjax.core.tokens import Places

    rng = np.random.default_rng(0)
    x, memory = rng.normal(size=(1, 5, 4)).astype(np.float32), rng.normal(size=(1, 3, 4)).astype(np.float32)
    places = Places.all_of("text", 1, 5).replace(segment=np.array([[1, 1, 2, 2, 3]]), block=np.array([[0, 1, 0, 1, 0]]))
    beside = Places.all_of("image", 1, 3).replace(
        segment=np.array([[1, 1, 2]]), block=np.array([[0, 0, 1]]), valid=np.array([[True, True, True]])
    )
    params = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(np.float32),
        unbox(FiLM().init(jax.random.key(0), x, places, memory, beside)),
    )
    made = FiLM().apply(params, x, places, memory, beside)
    both, one = memory[0, :2].mean(0), memory[0, 2]
    gamma, beta = (params["params"][name] for name in ("gamma", "beta"))
    for place, mean in ((0, both), (1, both), (3, one)):
        scale, shift = (mean @ part["kernel"] + part["bias"] for part in (gamma, beta))
        np.testing.assert_allclose(made[0, place], scale * x[0, place] + shift, rtol=1e-5, atol=1e-5)
    assert not made[0, 2].any() and not made[0, 4].any()


def test_five_other_parts_of_ones_own_learn_what_they_are_for(at_home, capsys):
    """A blank look would be off by a half at least."""
    assert main(["train", "shades.py", "--json"]) == 0
    capsys.readouterr()
    (found,) = (at_home / "runs" / "shades" / "evals" / "worst").glob("*.json")
    error = json.loads(found.read_text())["error"]
    assert error["n"] == 256 and error["value"] < 0.05
