"""A process that dies at any point of a save leaves the newest complete checkpoint; the next run goes on from it."""

import multiprocessing
import os
import signal

import jax
import jax.numpy as jnp
import pytest
from crash_child import save_three

from mmjax.core import faults
from mmjax.training.checkpoints import Checkpoints, CheckpointStore

BEFORE = ["checkpoint.begin", "checkpoint.write", "checkpoint.written", "checkpoint.manifest", "checkpoint.rename"]
AFTER = ["checkpoint.published", "checkpoint.retire:1", "checkpoint.delete:1"]
NEWEST = {f"{point}:3": 2 for point in BEFORE} | {f"{point}:3" if ":" not in point else point: 3 for point in AFTER}


@pytest.fixture(scope="module")
def children():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["jax", "orbax.checkpoint.v1", "mmjax.training.checkpoints"])
    return context


def test_every_point_of_a_save_is_in_the_sweep():
    saving = {name for name in faults.POINTS if name.startswith("checkpoint.")} - {"checkpoint.read"}
    assert {point.split(":")[0] for point in NEWEST} == saving


@pytest.mark.subprocess
@pytest.mark.parametrize("point", NEWEST)
def test_a_crash_in_a_save(point, children, tmp_path):
    child = children.Process(target=save_three, args=(str(tmp_path), f"{point}=kill"))
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    store = CheckpointStore(tmp_path, Checkpoints(every=1, keep=2))
    wanted = {"state": {"w": jax.ShapeDtypeStruct((64, 64), jnp.float32)}}
    restored = store.restore(wanted)
    assert restored.step == NEWEST[point] and restored.meta == {"step": restored.step}
    assert (restored.items["state"]["w"] == restored.step).all()
    store.save_now(4, {"state": {"w": jnp.ones((64, 64))}}, {})
    assert sorted(os.listdir(tmp_path)) == [str(restored.step), "4"]
