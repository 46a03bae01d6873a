"""Checkpoints: what is restored is what was saved, to the last bit, or it is not restored at all."""

import errno
import json
import os
import random
import shutil
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from orbax.checkpoint import v1 as ocp

from mmjax.core import faults
from mmjax.core.errors import CheckpointError, ExitCode, StorageError, UserError
from mmjax.core.pytrees import record
from mmjax.training import checkpoints, durable, treediff
from mmjax.training.checkpoints import Checkpoints, CheckpointStore

DAMAGES = 200


@record
class State:
    step: jax.Array
    params: dict
    opt_state: tuple


@pytest.fixture(autouse=True)
def testing(monkeypatch):
    monkeypatch.setenv("MMJAX_TESTING", "1")
    monkeypatch.setattr(durable, "PAUSE_S", 0.0)


def mesh(data, fsdp):
    devices = np.asarray(jax.devices()[: data * fsdp]).reshape(data, fsdp)
    return jax.sharding.Mesh(devices, ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


def items_at(step, grid=None):
    """A small state as of `step`, spread over a mesh, and its parameters."""
    grid = grid or mesh(1, 1)
    whole, rows = NamedSharding(grid, PartitionSpec()), NamedSharding(grid, PartitionSpec("fsdp"))
    values = np.random.default_rng(step).normal(size=(8, 6)).astype(np.float32)
    params = {"dense": {"kernel": jax.device_put(values, rows), "bias": jax.device_put(values[0], whole)}}
    moments = jax.device_put(optax.adam(1e-3).init(params), whole)
    return {"state": State(jax.device_put(jnp.int32(step), whole), params, moments), "params": params}


def wanted(items):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), items)


def same(left, right):
    pairs = zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    return jax.tree.structure(left) == jax.tree.structure(right) and all(
        a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs
    )


def filled(folder, steps, policy=Checkpoints(every=1, keep=9)):
    store = CheckpointStore(folder, policy)
    for step in steps:
        store.save(step, items_at(step), {"examples": 16 * step})
    store.wait()
    return store


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    """A folder with checkpoints 1 and 2, to be copied."""
    folder = tmp_path_factory.mktemp("two") / "checkpoints"
    filled(folder, [1, 2])
    return folder


@pytest.fixture
def folder(two_steps, tmp_path):
    return shutil.copytree(two_steps, tmp_path / "checkpoints")


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


# --------------------------------------------------------------------------------------------------------------- damage


def files_of(step):
    return sorted(path for path in step.rglob("*") if path.is_file())


def flip(step, choose=random.Random(0)):
    path = choose.choice([path for path in files_of(step) if path.stat().st_size])
    data = bytearray(path.read_bytes())
    data[choose.randrange(len(data))] ^= 1 << choose.randrange(8)
    path.write_bytes(data)


def zero(step, choose):
    path = choose.choice([path for path in files_of(step) if any(path.read_bytes())])
    data = bytearray(path.read_bytes())
    where = next(i for i in range(choose.randrange(len(data)), -1, -1) if data[i] or i == 0)
    end = min(len(data), where + choose.randrange(1, 512))
    if not any(data[where:end]):
        where, end = 0, len(data)
    data[where:end] = bytes(end - where)
    path.write_bytes(data)


def truncate(step, choose):
    path = choose.choice([path for path in files_of(step) if path.stat().st_size])
    os.truncate(path, choose.randrange(path.stat().st_size))


def delete(step, choose):
    choose.choice(files_of(step)).unlink()


def swap(step, choose):
    one, other = choose.sample(files_of(step), 2)
    while one.read_bytes() == other.read_bytes():
        one, other = choose.sample(files_of(step), 2)
    aside = one.with_suffix(".aside")
    one.rename(aside), other.rename(one), aside.rename(other)


def append(step, choose):
    with open(choose.choice(files_of(step)), "ab") as file:
        file.write(choose.randbytes(choose.randrange(1, 64)))


def test_no_random_damage_is_ever_restored_and_the_intact_step_is_used_instead(two_steps, tmp_path, caplog):
    kinds = [flip, zero, truncate, delete, swap, append]
    expected, target = items_at(1), wanted(items_at(1))
    for seed in range(DAMAGES):
        folder = shutil.copytree(two_steps, tmp_path / str(seed))
        kind, choose = kinds[seed % len(kinds)], random.Random(seed)
        caplog.clear()
        kind(folder / "2", choose)
        restored = CheckpointStore(folder).restore(target)
        assert restored.step == 1, f"{kind.__name__} with seed {seed} was not seen"
        assert same(restored.items, expected)
        assert "checkpoint 2 is damaged (" in caplog.text and "going on from checkpoint 1" in caplog.text
        assert sorted(os.listdir(folder)) == ["1", "2.corrupt"]
        shutil.rmtree(folder)


def test_the_message_names_file_expectation_and_finding(folder, caplog):
    array = max(files_of(folder / "2"), key=lambda path: path.stat().st_size)
    name = array.relative_to(folder / "2").as_posix()
    array.write_bytes(array.read_bytes()[:-1] + b"?")
    CheckpointStore(folder).restore(wanted(items_at(1)))
    assert f"{name}: expected hash " in caplog.text and ", found " in caplog.text


def test_a_step_asked_for_by_number_never_becomes_another_one(folder):
    flip(folder / "2")
    with pytest.raises(CheckpointError, match="checkpoint 2 .* is damaged: .*no other one is used"):
        CheckpointStore(folder).restore(wanted(items_at(2)), step=2)
    with pytest.raises(CheckpointError, match="there is no checkpoint 7 .*; there are: 1, 2"):
        CheckpointStore(folder).restore(wanted(items_at(2)), step=7)


def test_when_nothing_is_intact_every_step_is_listed_and_no_later_start_begins_anew(folder):
    flip(folder / "1")
    (folder / "2" / "manifest.json").unlink()
    for _ in range(2):
        store = CheckpointStore(folder)
        assert not store.empty
        with pytest.raises(CheckpointError, match="no intact checkpoint") as raised:
            store.restore(wanted(items_at(1)))
        assert raised.value.code == ExitCode.NO_INPUT
        assert "\n  1" in str(raised.value) and "\n  2" in str(raised.value)
    assert sorted(os.listdir(folder)) == ["1.corrupt", "2.corrupt"]


def test_an_empty_folder_is_empty(tmp_path):
    store = CheckpointStore(tmp_path / "none")
    assert store.empty and store.steps() == [] and store.latest() is None
    with pytest.raises(CheckpointError, match="there is no checkpoint in"):
        store.restore(wanted(items_at(1)))


def test_a_second_damaged_copy_of_a_step_is_kept_too(folder):
    (folder / "2.corrupt").mkdir()
    flip(folder / "2")
    CheckpointStore(folder).restore(wanted(items_at(1)))
    assert sorted(os.listdir(folder)) == ["1", "2.corrupt", "2.corrupt.1"]


@pytest.mark.parametrize("make", [lambda p, old: p.symlink_to(old), lambda p, old: p.mkdir(), lambda p, old: p.touch()])
def test_what_only_looks_like_a_checkpoint_is_refused(folder, make):
    make(folder / "3", folder / "2")
    assert CheckpointStore(folder).latest() == 2
    assert CheckpointStore(folder).restore(wanted(items_at(2))).step == 2


def test_a_copy_under_another_number_is_refused(folder):
    shutil.copytree(folder / "1", folder / "3")
    assert CheckpointStore(folder).restore(wanted(items_at(2))).step == 2
    assert (folder / "3.corrupt").exists()


def test_a_link_in_place_of_a_file_is_refused(folder):
    array = max(files_of(folder / "2"), key=lambda path: path.stat().st_size)
    array.rename(folder.parent / "elsewhere")
    array.symlink_to(folder.parent / "elsewhere")
    assert CheckpointStore(folder).restore(wanted(items_at(1))).step == 1


def test_strange_names_are_ignored_with_a_warning(folder, caplog):
    for name in ("notes.txt", "007", "3.old"):
        (folder / name).mkdir()
    assert CheckpointStore(folder).restore(wanted(items_at(2))).step == 2
    assert "007, 3.old, notes.txt" in caplog.text


def test_storage_that_does_not_answer_is_not_taken_for_damage(folder):
    with faults.injected("checkpoint.read=oserror:EIO"), pytest.raises(StorageError, match="failed") as raised:
        CheckpointStore(folder).restore(wanted(items_at(2)))
    assert raised.value.code == ExitCode.IO and sorted(os.listdir(folder)) == ["1", "2"]


def test_reading_never_touches_what_another_process_is_writing(folder):
    (folder / ".3.partial").mkdir()
    CheckpointStore(folder).restore(wanted(items_at(2)))
    assert (folder / ".3.partial").exists()


def test_the_next_run_that_saves_removes_leftovers_and_brings_back_what_was_to_be_replaced(folder):
    (folder / ".3.partial.orbax-checkpoint-tmp").mkdir()
    (folder / ".0.retired").mkdir()
    (folder / "2").rename(folder / ".2.replaced")
    CheckpointStore(folder, Checkpoints(keep=9)).save_now(3, items_at(3), {})
    assert sorted(os.listdir(folder)) == ["1", "2", "3"]
    assert CheckpointStore(folder).restore(wanted(items_at(2)), step=2).step == 2


def test_a_format_of_the_future_is_named(folder):
    path = folder / "2" / "manifest.json"
    tree = json.loads(path.read_text())
    tree["body"]["format"] = 2
    from mmjax.training import manifest

    tree["xxh3_128"] = manifest._hash(manifest._canonical(tree["body"]))
    path.write_text(json.dumps(tree))
    with pytest.raises(CheckpointError, match="written in format 2; this version reads format 1"):
        CheckpointStore(folder).restore(wanted(items_at(2)), step=2)


# -------------------------------------------------------------------------------------------------------- another model


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
