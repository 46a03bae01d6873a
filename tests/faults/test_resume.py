"""Through the real command line: whatever kills a run, the same command goes on, and no number differs in any bit."""

import random

import pytest
from fault_runs import Door, final, losses, results, steps

from mmjax.training.writers import read_metrics

pytestmark = pytest.mark.subprocess
POISONED = "grad:6=nan"


def equal(run, oracle):
    assert losses(run) == losses(oracle)
    assert [step for step, _, _ in losses(run)] == list(range(1, 21))  # each once, in order
    assert results(run) == results(oracle)
    assert final(run) == final(oracle)
    return True


def test_a_poisoned_gradient_is_skipped_counted_and_changes_no_weight(oracle):
    records = {r["step"]: r for r in read_metrics(oracle / "metrics.jsonl") if r["kind"] == "train"}
    assert records[6]["grad_norm"] is None
    assert [records[step]["skipped"] for step in (5, 6, 20)] == [0, 1, 1]
    assert records[6]["param_norm"] == records[7]["param_norm"] != records[8]["param_norm"]


def test_killed_at_three_random_steps_and_resumed_it_is_the_run_that_was_never_killed(door, oracle):
    run, seed = door.home / "thrice", 7
    first, second, third = sorted(random.Random(seed).sample(range(2, 20), 3))
    examples = 8 * (third - 1)
    for fault in (f"step:{first}=kill", f"metrics.write:{second}=kill", f"data.read:{examples}=kill"):
        assert door.train(run, faults=f"{POISONED}, {fault}").returncode == -9
    assert door.train(run, faults=POISONED).returncode == 0
    assert equal(run, oracle)


def test_a_run_asked_to_stop_while_its_file_is_loading_leaves_at_once(tmp_path):
    door = Door(tmp_path)
    stop = "import os, signal, threading\nos.kill(os.getpid(), signal.SIGTERM)\nthreading.Event().wait()\n"
    door.file.write_text(stop)
    ended = door.train(tmp_path / "run")
    assert ended.returncode == 75 and ended.stderr.startswith("stopped by SIGTERM before training began")


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_is_used(door, oracle, killed):
    array = max((killed / "checkpoints" / "8").rglob("*"), key=lambda path: path.stat().st_size)
    data = bytearray(array.read_bytes())
    data[len(data) // 2] ^= 16
    array.write_bytes(data)
    ended = door.train(killed, faults=POISONED)
    assert ended.returncode == 0
    assert "checkpoint 8 is damaged (" in ended.stderr and "expected hash" in ended.stderr
    assert "going on from checkpoint 4, the newest intact one, instead of 8" in ended.stderr
    assert (killed / "checkpoints" / "8.corrupt").is_dir() and equal(killed, oracle)


def test_when_every_checkpoint_is_damaged_the_run_does_not_begin_anew(door, killed):
    for manifest in (killed / "checkpoints").glob("*/manifest.json"):
        manifest.write_text("{}")
    ended = door.train(killed)
    assert ended.returncode == 66 and "Traceback" not in ended.stderr
    assert "no intact checkpoint" in ended.stderr and "\n  4" in ended.stderr and "\n  8" in ended.stderr


def test_a_run_asked_to_stop_saves_and_goes_on_as_if_it_had_not_been(door, oracle):
    """Between steps, with a second signal in the save; in an evaluation; while compiling; while the data start."""
    run = door.home / "stopped"
    stop = door.train(run, faults=f"{POISONED}, step:7=sigterm, checkpoint.write:7=sigterm")
    assert stop.returncode == 75 and "SIGTERM" in stop.stderr and "Traceback" not in stop.stderr
    assert steps(run)[-1] >= 7
    in_evaluation = door.train(run, faults=f"{POISONED}, eval:10=sigterm, eval:10=sleep:0.2")
    assert in_evaluation.returncode == 75 and steps(run)[-1] == 10 and "10.json" not in results(run)
    for early in ("compile=sigterm, compile=hang", "data.start=sigterm, data.start=hang"):
        ended = door.train(run, faults=f"{POISONED}, {early}")
        assert ended.returncode == 75 and "stopped by SIGTERM" in ended.stderr and steps(run)[-1] == 10
    assert door.train(run, faults=POISONED).returncode == 0
    assert equal(run, oracle)
