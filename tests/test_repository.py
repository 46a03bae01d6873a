"""The law of the repository: sizes, safety, documents that are true, and experiments that are what they were."""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib
import json
import math
import pathlib
import re
import shlex
import tomllib
from collections.abc import Iterator

import numpy as np
import pytest

from mmjax.cli.arguments import COMMANDS, parser_of
from mmjax.core import config
from mmjax.core.batch import Batch
from mmjax.training.check import check
from mmjax.training.experiment import Experiment
from tests.experiments.toys import FEW, first_step
from tests.experiments.toys import TOY as FULL_SIZE
from tests.golden.refresh import EXPERIMENTS, FOLDER, resolved

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGES = ("mmjax", "data_pipelines", "experiments", "benchmarks")
CODE = sorted(file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))
FILES = CODE + sorted((ROOT / "tests").rglob("*.py"))
Function = ast.FunctionDef | ast.AsyncFunctionDef


@functools.cache
def tree_of(file: pathlib.Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def functions() -> Iterator[tuple[str, Function]]:
    for file in FILES:
        for node in ast.walk(tree_of(file)):
            if isinstance(node, Function):
                yield f"{file.relative_to(ROOT)}:{node.lineno} {node.name}", node


# ------------------------------------------------------------------------------------------------------------- sizes


def test_files_have_at_most_500_lines():
    sizes = {str(file.relative_to(ROOT)): len(file.read_text(encoding="utf-8").splitlines()) for file in FILES}
    assert {name: size for name, size in sizes.items() if size > 500} == {}


def test_functions_have_at_most_80_lines():
    """`loop.train` tells the story of a run and may take 150."""
    sizes = {where: node.end_lineno - node.lineno + 1 for where, node in functions()}
    limits = {where: 150 if re.search(r"training/loop\.py:\d+ train$", where) else 80 for where in sizes}
    assert {where: size for where, size in sizes.items() if size > limits[where]} == {}


def test_functions_have_at_most_8_parameters():
    def count(node: Function) -> int:
        given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        return len([a for a in given if a.arg not in ("self", "cls")])

    exempt = re.compile(r"^experiments/.* experiment$")  # its arguments are a run's settings
    wide = {where: count(node) for where, node in functions() if count(node) > 8 and not exempt.search(where)}
    assert wide == {}


# ------------------------------------------------------------------------------------------------------------ safety

CODE_RUNNERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}


def dangers(tree: ast.Module) -> Iterator[str]:
    """Everything in a program that could run code out of a file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            yield from (f"import {name}" for name in names if name.split(".")[0] in CODE_RUNNERS)
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in ("eval", "exec", "__import__", "yaml.load", "yaml.unsafe_load", "torch.load", "os.system"):
                yield f"{called}()"
            for keyword in node.keywords:
                if keyword.arg in ("allow_pickle", "shell") and not is_false(keyword.value):
                    yield f"{called}({keyword.arg}=...)"


def is_false(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is False


@pytest.mark.parametrize(
    "code", ["import pickle", "from joblib import load", "eval('1')", "np.load(f, allow_pickle=True)", "yaml.load(f)"]
)
def test_the_lint_sees_danger(code):
    assert list(dangers(ast.parse(code)))


def test_no_file_can_run_code():
    found = {str(file.relative_to(ROOT)): list(dangers(tree_of(file))) for file in CODE}
    assert {name: what for name, what in found.items() if what} == {}


def test_nothing_is_left_over():
    """No notes to self, no stubs."""
    notes = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X|HA" + r"CK)\b|NotImplemented" + "Error")
    lines = {f"{file.relative_to(ROOT)}": notes.findall(file.read_text(encoding="utf-8")) for file in FILES}
    assert {name: found for name, found in lines.items() if found} == {}


# --------------------------------------------------------------------------------------------------------- documents


def public(file: pathlib.Path) -> Iterator[tuple[str, ast.AST]]:
    where = str(file.relative_to(ROOT))
    yield where, tree_of(file)
    for node in tree_of(file).body:
        if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_"):
            yield f"{where}:{node.lineno} {node.name}", node


def test_every_module_class_and_function_says_what_it_is_for():
    silent = [
        where
        for file in CODE
        for where, node in public(file)
        if not ast.get_docstring(node) and not (file.name == "__init__.py" and not file.read_text().strip())
    ]
    assert silent == []


def console_lines(document: str) -> list[str]:
    """Commands of a document's ```console blocks; a `$ ` before them and a comment after them are no part of them."""
    text = (ROOT / document).read_text(encoding="utf-8")
    lines = [line for block in re.findall(r"```console\n(.*?)```", text, re.S) for line in block.splitlines()]
    return [line.removeprefix("$ ").strip() for line in lines if re.match(r"(\$ )?(mmjax|make) ", line)]


@pytest.fixture(scope="module")
def readme() -> list[list[str]]:
    return [shlex.split(line, comments=True) for line in console_lines("README.md")]


def test_commands_of_the_readme_are_understood(readme):
    added = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["mmjax.commands"]
    commands = [words[1:] for words in readme if words[0] == "mmjax"]
    assert len(commands) >= 3
    for command, *rest in commands:
        assert command in COMMANDS or command in added
        if command in COMMANDS:
            parser_of(command).read([word for word in rest if word not in ("--help", "-h")])


def test_experiments_that_the_readme_trains_are_there_and_take_its_settings(readme):
    trained = [words for words in readme if words[:2] in (["mmjax", "train"], ["mmjax", "describe"])]
    for words in trained:
        arguments = parser_of(words[1]).read(words[2:])
        file = getattr(arguments, "file", None) or arguments.what
        if file.parts[0] == "experiments":
            assert (ROOT / file).is_file(), words
            function = importlib.import_module(f"experiments.{file.stem}").experiment
            assert isinstance(config.call(function, config.split_settings(arguments.settings)), Experiment)


def test_make_targets_of_the_readme_exist(readme):
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    assert {"demo", "test", "lint", "bench"} <= targets
    assert {words[1] for words in readme if words[0] == "make"} <= targets


def test_doctor_asks_for_what_the_package_asks_for():
    from mmjax.cli.doctor import OPTIONAL, PACKAGES

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = dict(re.match(r"([\w-]+)>=([\d.]+)", line).groups() for line in project["dependencies"])
    assert {name: ".".join(map(str, oldest)) for name, oldest in PACKAGES.items()}.items() <= asked.items()
    assert all(package in str(project["optional-dependencies"][extra]) for extra, package in OPTIONAL.items())


# ------------------------------------------------------------------------------------------------------- experiments


TOY: dict[str, dict[str, str]] = {
    "emoji_towers": {"width": "32", "batch": "8", "captions": "2"},
    "emoji_stages": {"width": "48", "depth": "1", "batch": "8"},
    "emoji_chat": {"width": "48", "depth": "1", "batch": "10"},
    "fusion_study": {"resolution": "16", "batch": "8"},
    "own_data": {"pixels": "32", "width": "48", "batch": "8"},
    "siglip_b16": {"size": "mu/16", "resolution": "32", "batch": "8", "vocabulary": "400", "length": "16"},
    "clip_l14": {"size": "mu/14", "text_size": "mu", "resolution": "28", "batch": "8", "vocabulary": "400"},
}
"""Settings that shrink an experiment to seconds."""

LARGE = dict.fromkeys(("siglip_b16", "clip_l14", *FULL_SIZE), FEW)

pytestmark = pytest.mark.usefixtures("at_home")


def module_of(name: str):
    return importlib.import_module(f"experiments.{name}")


def test_there_are_experiments_and_no_stale_golden_files():
    assert EXPERIMENTS and {path.stem for path in FOLDER.glob("*.json")} == set(EXPERIMENTS)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_is_what_it_was(name):
    """When the change is meant: python -m tests.golden.refresh"""
    assert resolved(name) == json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_is_rebuilt_from_its_json(name):
    value = module_of(name).experiment()
    assert config.from_json(config.to_json(value)) == value


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_opens_with_how_to_run_it(name):
    text = ast.get_docstring(tree_of(ROOT / "experiments" / f"{name}.py"))
    assert f"experiments/{name}.py" in text


@pytest.mark.parametrize("name", EXPERIMENTS)
@pytest.mark.parametrize("devices", [1, 8])
def test_an_experiment_fits_by_its_shapes(name, devices):
    """At full size, but for batches that are larger than the pictures at hand. (What does not fit is raised.)"""
    assert check(config.call(module_of(name).experiment, LARGE.get(name, {})), devices) is None


def some_answers(batch: Batch) -> Batch:
    """The batch with something to predict in a quarter of its rows and there in every third place: a random batch has
    it everywhere, which models that count on few answers refuse."""
    if batch.text is None:
        return batch
    rows, places = np.indices(batch.text.loss.shape)
    loss = batch.text.loss * (rows < batch.rows // 4) * (places % 3 == 0)
    return batch.replace(text=dataclasses.replace(batch.text, loss=loss.astype(np.float32)))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if name not in FULL_SIZE])  # these: tests/experiments
def test_an_experiment_takes_a_step_when_it_is_made_small(name):
    """A batch of its shapes goes through the real step."""
    experiment = config.call(module_of(name).experiment, TOY[name])
    batch = some_answers(Batch.fake(experiment.data.spec(), vocabulary=8))
    batch = batch.replace(labels={name: label % 2 for name, label in batch.labels.items()})  # classes that heads have
    before, after, metrics = first_step(experiment, batch)
    assert all(map(math.isfinite, metrics.values()))
    assert any((before[path] != after[path]).any() for path in before)
