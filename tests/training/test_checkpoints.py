"""Checkpoints: what is restored is what was saved, to the last bit, or it is not restored at all."""

import errno
import os
import shutil
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoint_toy import filled, flip, items_at, mesh, same, wanted
from orbax.checkpoint import v1 as ocp

from mmjax.core import faults
from mmjax.core.errors import ExitCode, StorageError, UserError
from mmjax.training import checkpoints, durable
from mmjax.training.checkpoints import Checkpoints, CheckpointStore

pytestmark = pytest.mark.usefixtures("faults_allowed")


# ------------------------------------------------------------------------------------------------ saving and restoring


def test_everything_comes_back_to_the_last_bit(folder):
    restored = CheckpointStore(folder).restore(wanted(items_at(2)))
    assert restored.step == 2 and restored.meta == {"examples": 32}
    assert same(restored.items, items_at(2))


def test_parameters_come_back_alone(folder):
    restored = CheckpointStore(folder).restore({"params": wanted(items_at(1)["params"])}, step=1)
    assert same(restored.items["params"], items_at(1)["params"])


def test_a_published_step_is_an_ordinary_orbax_checkpoint(folder):
    loaded = ocp.load_checkpointables(folder / "2")
    assert same(loaded["params"], items_at(2)["params"])


@pytest.mark.parametrize("shape", [(4, 2), (1, 8), (1, 1)])
def test_another_mesh_gets_the_same_bits(tmp_path, shape):
    saved = items_at(1, mesh(2, 4))
    store = CheckpointStore(tmp_path)
    store.save_now(1, saved, {})
    there = items_at(1, mesh(*shape))
    restored = CheckpointStore(tmp_path).restore(wanted(there))
    assert same(restored.items, saved)
    assert all(a.sharding == b.sharding for a, b in zip(*map(jax.tree.leaves, (restored.items, there)), strict=True))


def test_what_is_saved_is_the_state_of_the_call_even_when_it_is_donated_at_once(tmp_path):
    items = items_at(1, mesh(2, 4))
    expected = jax.device_get(items)
    overwrite = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0 - 1, tree), donate_argnums=0)
    store = CheckpointStore(tmp_path)
    with faults.injected("checkpoint.write=sleep:0.2"):
        store.save(1, items, {})
        jax.block_until_ready(overwrite(items["state"]))
        store.wait()
    assert same(store.restore(wanted(items_at(1))).items, expected)


def test_a_save_does_not_wait_for_the_disk(tmp_path):
    store, release = CheckpointStore(tmp_path), threading.Event()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(durable, "flush_tree", lambda folder: release.wait(60))
        store.save(1, items_at(1), {})
        assert store.latest() is None  # it has returned, and nothing is visible yet
        release.set()
        store.wait()
    assert store.latest() == 1


def test_saving_the_step_that_was_just_saved_or_restored_again_writes_nothing(folder):
    store = CheckpointStore(folder)
    store.restore(wanted(items_at(2)))
    before = (folder / "2").stat().st_ino
    store.save_now(2, items_at(2), {})
    assert (folder / "2").stat().st_ino == before


def test_going_back_and_saving_a_step_anew_replaces_it(folder):
    store = CheckpointStore(folder, Checkpoints(keep=9))
    store.restore(wanted(items_at(1)), step=1)
    store.save_now(2, items_at(5), {"again": True})
    restored = store.restore(wanted(items_at(2)))
    assert restored.step == 2 and restored.meta == {"again": True} and same(restored.items, items_at(5))


def test_due_follows_the_policy(tmp_path):
    store = CheckpointStore(tmp_path, Checkpoints(every=5))
    assert [step for step in range(1, 16) if store.due(step)] == [5, 10, 15]


@pytest.mark.parametrize("name", ["every", "keep", "keep_every"])
def test_a_policy_that_keeps_nothing_is_refused(name):
    with pytest.raises(UserError, match=f"checkpoints.{name}=0"):
        Checkpoints(**{name: 0})


# ---------------------------------------------------------------------------------------------------- refusing to save


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_never_saved(folder, value):
    items = items_at(3)
    items["state"].params["dense"]["bias"] = items["state"].params["dense"]["bias"].at[2].set(value)
    store = CheckpointStore(folder)
    with pytest.raises(UserError, match=r"not finite \(state/params/dense/bias") as refusal:
        store.save_now(3, items, {})
    assert refusal.value.code == ExitCode.NUMERICS
    assert sorted(os.listdir(folder)) == ["1", "2"]


def test_an_infinite_best_value_so_far_is_no_fault(tmp_path):
    store = CheckpointStore(tmp_path)
    store.save_now(1, {"state": {"best": jnp.float32(np.inf), "w": jnp.ones(2)}}, {})
    assert store.latest() == 1


def test_too_little_room_is_told_before_anything_is_written(folder, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1000, 900, 100))
    with pytest.raises(StorageError, match=r"checkpoint 3 needs .* has 100 bytes left") as refusal:
        CheckpointStore(folder).save(3, items_at(3), {})
    assert refusal.value.code == ExitCode.NO_SPACE
    assert sorted(os.listdir(folder)) == ["1", "2"]


@pytest.mark.parametrize(
    ("name", "code"), [("ENOSPC", ExitCode.NO_SPACE), ("EROFS", ExitCode.NO_SPACE), ("ENODEV", ExitCode.IO)]
)
@pytest.mark.parametrize("point", [f"checkpoint.{name}" for name in ("write", "written", "manifest", "rename")])
def test_a_failed_save_is_raised_at_the_next_check_and_leaves_no_trace(folder, point, name, code):
    store = CheckpointStore(folder)
    with faults.injected(f"{point}=oserror:{name}"):
        store.save(3, items_at(3), {})
        while not store._pending.done():
            pass
        reason = os.strerror(getattr(errno, name))
        with pytest.raises(StorageError, match=f"saving checkpoint 3 failed: {reason}") as raised:
            store.check()
    assert raised.value.code == code
    assert sorted(os.listdir(folder)) == ["1", "2"]
    assert CheckpointStore(folder).restore(wanted(items_at(2))).step == 2


def test_a_transient_failure_is_made_up_for_at_the_next_step(folder):
    store = CheckpointStore(folder, Checkpoints(every=10))
    with faults.injected("checkpoint.written#1=oserror:EIO"):
        store.save(10, items_at(10), {})
        store.wait()
        assert store.due(11)
        store.save(11, items_at(11), {})
        store.wait()
        assert not store.due(12)
    assert store.latest() == 11


def test_a_failure_that_does_not_pass_ends_in_74_after_three_attempts(folder):
    store = CheckpointStore(folder)
    with faults.injected("checkpoint.written=oserror:EIO") as (fault,):
        with pytest.raises(StorageError, match="Input/output error") as raised:
            store.save_now(10, items_at(10), {})
        assert raised.value.code == ExitCode.IO and fault.hits == 3


def test_a_disk_that_returns_other_bytes_than_it_was_given_is_noticed_at_once(folder, monkeypatch):
    lies = iter([True])

    def lie(partial):
        if next(lies, False):
            flip(partial)

    monkeypatch.setattr(durable, "flush_tree", lie)
    store = CheckpointStore(folder)
    store.save_now(3, items_at(3), {})
    assert sorted(os.listdir(folder)) == ["1", "2", "3", "3.corrupt"]
    assert same(store.restore(wanted(items_at(3))).items, items_at(3))


def test_a_full_disk_is_one_clean_error_and_costs_no_earlier_step(full_disk):
    store = CheckpointStore(full_disk / "checkpoints", Checkpoints(keep=9))
    store.save_now(1, items_at(1), {})
    noise = np.random.default_rng(0).bytes(3_000_000)
    big = {"state": {"w": jnp.asarray(np.frombuffer(noise, np.uint8))}}
    with pytest.MonkeyPatch.context() as patch, pytest.raises(StorageError) as raised:
        patch.setattr(checkpoints, "byte_count", lambda tree: 0)  # somebody else fills the disk after the estimate
        store.save_now(2, big, {})
    assert raised.value.code == ExitCode.NO_SPACE and "No space left on device" in str(raised.value)
    assert os.listdir(full_disk / "checkpoints") == ["1"]
    assert same(CheckpointStore(full_disk / "checkpoints").restore(wanted(items_at(1))).items, items_at(1))


@pytest.fixture
def full_disk(tmp_path):
    """A file system of 2 MiB; only root can mount one."""
    place = tmp_path / "small"
    place.mkdir()
    if os.geteuid() != 0 or os.system(f"mount -t tmpfs -o size=2m tmpfs '{place}' 2>/dev/null") != 0:
        pytest.skip("mounting a small file system needs root")
    yield place
    os.system(f"umount '{place}'")


# ----------------------------------------------------------------------------------------------------------- retention


def test_retention_keeps_the_newest_and_the_milestones(tmp_path):
    store = filled(tmp_path, range(1, 9), Checkpoints(every=1, keep=2, keep_every=3))
    assert store.steps() == [3, 6, 7, 8]


def test_damaged_steps_do_not_count_as_kept(folder):
    flip(folder / "2")
    store = CheckpointStore(folder, Checkpoints(every=1, keep=2))
    store.save_now(3, items_at(3), {})
    assert store.steps() == [1, 3] and (folder / "2.corrupt").exists()


def test_an_old_step_that_cannot_be_deleted_does_not_fail_the_save(folder, caplog):
    store = CheckpointStore(folder, Checkpoints(keep=1))
    with faults.injected("checkpoint.delete=oserror:EBUSY"):
        store.save_now(3, items_at(3), {})
    assert store.steps() == [3] and "could not be deleted" in caplog.text
