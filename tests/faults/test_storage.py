"""Through the real command line: disks that are full, folders that are not ours, runs that die again and again."""

import json
import os
import subprocess

import pytest
from fault_runs import steps

from mmjax.cli.main import main

pytestmark = pytest.mark.subprocess


def clean(ended):
    """One message of a line or a few, no stack trace."""
    assert "Traceback" not in ended.stderr + ended.stdout
    return [line for line in ended.stderr.splitlines() if line.startswith("error: ")]


def test_a_full_disk_stops_the_run_with_one_message_and_earlier_steps_stay(door, tmp_path):
    place = tmp_path / "small disk"
    place.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", place]).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        ended = door.train(place / "run", "width=512", "checkpoints.keep=9")
        assert ended.returncode == 73
        [message] = clean(ended)
        assert "checkpoint" in message and "rerun the same command" in message
        kept = steps(place / "run")
        assert kept and kept[-1] < 20
        subprocess.run(["mount", "-o", "remount,size=64m", place], check=True)
        again = door.train(place / "run", "width=512", "checkpoints.keep=9")
        assert again.returncode == 0 and steps(place / "run")[: len(kept)] == kept and steps(place / "run")[-1] == 20
    finally:
        subprocess.run(["umount", place])


def test_a_save_that_fails_in_the_background_stops_the_run_with_its_own_code(door, tmp_path):
    ended = door.train(tmp_path / "run", faults="checkpoint.manifest:8=oserror:ENOSPC")
    assert ended.returncode == 73 and steps(tmp_path / "run") == [4]
    [message] = clean(ended)
    assert message.startswith("error: saving checkpoint 8 failed: No space left on device")


def test_a_run_that_dies_again_and_again_is_not_started_a_fourth_time(door, tmp_path):
    run = tmp_path / "run"
    assert door.train(run, faults="compile=kill").returncode == -9
    started = json.loads((run / "attempts.json").read_text())
    (run / "attempts.json").write_text(json.dumps(started | {"starts": started["starts"] + 2}))  # and twice more
    ended = door.train(run)
    assert ended.returncode == 70
    [message] = clean(ended)
    assert "started 3 times" in message and "attempts.json" in message


def test_another_folder_than_a_runs_is_refused_before_anything_is_written(door, tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("precious")
    assert main(["train", str(door.file), "--run", str(tmp_path)]) == 2
    assert os.listdir(tmp_path) == ["thesis.tex"]
    assert "holds no mmjax run (it has thesis.tex)" in capsys.readouterr().err


def test_another_model_in_the_folder_is_refused_and_nothing_is_lost(door, killed, capsys):
    assert main(["train", str(door.file), "--run", str(killed), "width=8"]) in (2, 66)
    said = capsys.readouterr().err
    assert "error: " in said and "Traceback" not in said and steps(killed) == [4, 8]
