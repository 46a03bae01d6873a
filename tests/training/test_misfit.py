"""Checkpoints of another model: one readable difference, and nothing is restored that was not asked for."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoint_toy import items_at, wanted

from mmjax.core.errors import CheckpointError
from mmjax.training import treediff
from mmjax.training.checkpoints import CheckpointStore


def changed(**params):
    dense = {"kernel": jnp.zeros((8, 6)), "bias": jnp.zeros(6)} | params
    return {"params": {"dense": {name: leaf for name, leaf in dense.items() if leaf is not None}}}


@pytest.mark.parametrize(
    ("items", "lines"),
    [
        (changed(kernel=jnp.zeros((8, 7))), ["dense/kernel float32 [8 6] float32 [8 7]"]),
        (changed(kernel=jnp.zeros((8, 6), jnp.bfloat16)), ["dense/kernel float32 [8 6] bfloat16 [8 6]"]),
        (changed(scale=jnp.zeros(6)), ["dense/scale - float32 [6]"]),
        (changed(bias=None), ["dense/bias float32 [6] -"]),
        (
            changed(kernel=None, kernels=jnp.zeros((8, 6))),
            ["dense/kernels - float32 [8 6] (was dense/kernel?)", "dense/kernel float32 [8 6] - (now dense/kernels?)"],
        ),
    ],
)
def test_another_tree_is_refused_with_one_readable_difference(folder, items, lines):
    with pytest.raises(CheckpointError, match="checkpoint 2 does not fit: params") as raised:
        CheckpointStore(folder).restore(jax.eval_shape(lambda: items))
    text = [" ".join(line.split()) for line in str(raised.value).splitlines()]
    assert text[1] == "path saved wanted" and text[2:-1] == lines
    assert sorted(os.listdir(folder)) == ["1", "2"]  # a model that does not fit is no damage


def test_number_formats_are_converted_when_asked(folder):
    target = jax.eval_shape(lambda: changed(kernel=jnp.zeros((8, 6), jnp.bfloat16)))
    restored = CheckpointStore(folder).restore(target, fit=treediff.casting)
    kernel = restored.items["params"]["dense"]["kernel"]
    assert kernel.dtype == jnp.bfloat16
    assert np.array_equal(kernel, items_at(2)["params"]["dense"]["kernel"].astype(jnp.bfloat16))


def test_an_unknown_item_is_answered_with_the_ones_there_are(folder):
    with pytest.raises(CheckpointError, match="no item is called 'param'; did you mean params"):
        CheckpointStore(folder).restore({"param": wanted(items_at(2)["params"])})


def test_a_long_difference_is_cut(tmp_path):
    saved = {f"layer_{i}": ((2,), "float32") for i in range(50)}
    rows = treediff.exact(saved, {})
    assert treediff.report(rows, saved, {}).endswith("... and 30 more") and len(rows) == 50
