"""The stages of one chat model fit together, by their shapes alone."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from experiments import emoji_stages
from mmjax.core.errors import CheckpointError, UserError
from mmjax.core.parameters import unbox
from mmjax.training.check import check
from mmjax.training.checkpoints import CheckpointStore
from mmjax.training.origin import THEN
from mmjax.training.state import build_update

SIZES = {"width": 48, "depth": 1, "batch": 8, "steps": 60}


def stage(name, folder):
    return emoji_stages.experiment(name, **SIZES, runs=str(folder))


def begun(name, folder):
    """A run folder of a stage, as its first checkpoint leaves it but for the numbers in it."""
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), unbox(stage(name, folder).declared))
    items = {"state": {"params": params, "average": params}, "params": params}
    CheckpointStore(folder / name / "checkpoints").save_now(20, items, {})


def rows(name, folder):
    trained = stage(name, folder)
    check(trained, 1)
    report = trained.init.origin(trained.declared).report(build_update(trained).trains)
    return {part.path: (part.start.removeprefix(f"{folder}/"), THEN[part.trains]) for part in report.parts}


def test_each_stage_starts_from_parts_of_those_before_it(tmp_path):
    for name in ("text", "image"):
        assert {start for start, _ in rows(name, tmp_path).values()} == {"initialised"}
        begun(name, tmp_path)
    text = ("text, step 20", "frozen")
    assert rows("align", tmp_path) == {
        "embedding": text,
        "media_image/connector": ("initialised", "trained"),
        "media_image/encoder": ("image, step 20, averaged", "frozen"),
        "norm": text,
        "stack": text,
    }
    begun("align", tmp_path)
    assert set(rows("instruct", tmp_path).values()) == {("align, step 20", "trained")}


def test_a_stage_asks_for_those_before_it(tmp_path):
    with pytest.raises(
        CheckpointError, match=r"text: there is no checkpoint in it; train it first(.|\n)*image: there is"
    ):
        rows("align", tmp_path)
    with pytest.raises(UserError, match="no stage is called 'aligned'; did you mean align"):
        stage("aligned", tmp_path)
