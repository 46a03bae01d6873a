"""Damaged checkpoints: every one is noticed, named, set aside, and none is ever restored."""

import json
import os
import random
import shutil

import pytest
from checkpoint_toy import files_of, flip, items_at, same, wanted

from mmjax.core import faults
from mmjax.core.errors import CheckpointError, ExitCode, StorageError
from mmjax.training import manifest
from mmjax.training.checkpoints import Checkpoints, CheckpointStore

DAMAGES = 200
pytestmark = pytest.mark.usefixtures("faults_allowed")


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
    tree["xxh3_128"] = manifest._hash(manifest._canonical(tree["body"]))
    path.write_text(json.dumps(tree))
    with pytest.raises(CheckpointError, match="written in format 2; this version reads format 1"):
        CheckpointStore(folder).restore(wanted(items_at(2)), step=2)
