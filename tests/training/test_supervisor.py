"""The supervisor: every way a process can end, seen from outside, by exit code and message."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from mmjax.core.errors import DataError, ExitCode
from mmjax.training.supervisor import Stopped, Supervisor, run_supervised

ROOT = pathlib.Path(__file__).parents[2]
HEAD = """
import os, pathlib, signal, sys, threading, time
from mmjax.core.errors import DataError, UserError
from mmjax.training.supervisor import Supervisor, run_supervised
folder = pathlib.Path(sys.argv[1])
forever = threading.Event()
def tell(number): os.kill(os.getpid(), number)
"""


def start(folder, body, **options):
    """A child that runs `body` under a supervisor called `supervisor`."""
    settings = ", ".join(f"{name}={value}" for name, value in options.items())
    code = HEAD + f"def main():\n    with Supervisor(folder, {settings}) as supervisor:\n"
    code += textwrap.indent(textwrap.dedent(body), " " * 8) + "\ncode = run_supervised(main)\n"
    code += "print('code', int(code), flush=True)\nsys.exit(code)\n"
    command = [sys.executable, "-c", code, str(folder)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(folder, body, **options):
    child = start(folder, body, **options)
    child.out, child.err = child.communicate(timeout=60)
    return child


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_before_the_first_step_a_signal_ends_the_process_at_once(tmp_path, name):
    child = run(tmp_path, f"tell(signal.{name}); forever.wait()")
    assert child.returncode == ExitCode.RETRY
    assert child.err.startswith(f"stopped by {name}; rerun the same command") and "Traceback" not in child.err
    assert not (tmp_path / "attempts.json").exists()


def test_a_signal_before_there_is_a_supervisor_means_75_too(tmp_path):
    code = HEAD + "def main(): tell(signal.SIGTERM); forever.wait()\nsys.exit(run_supervised(main))"
    child = subprocess.run([sys.executable, "-c", code, "."], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert child.returncode == ExitCode.RETRY and "stopped by SIGTERM before training began" in child.stderr


def test_later_the_loop_finishes_its_step_and_further_signals_change_nothing(tmp_path):
    body = """
    for step in range(1, 1000):
        supervisor.beat(step)
        if step == 3:
            tell(signal.SIGTERM)
        if supervisor.stopping:
            tell(signal.SIGTERM), tell(signal.SIGINT)
            time.sleep(0.2)
            (folder / "saved").write_text(str(step))
            raise supervisor.stopped()
        time.sleep(0.01)
    """
    child = run(tmp_path, body)
    assert child.returncode == ExitCode.RETRY
    assert int((tmp_path / "saved").read_text()) >= 3
    assert "SIGTERM: finishing the step and saving" in child.err and "stopped by SIGTERM after step" in child.err


def test_after_the_save_the_process_stays_deaf_until_it_is_gone(tmp_path):
    with Supervisor(tmp_path) as supervisor:
        supervisor.beat(1)
        supervisor.stopping = True
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_what_does_not_finish_within_the_grace_time_is_left(tmp_path):
    child = run(tmp_path, "supervisor.beat(7); tell(signal.SIGTERM); forever.wait()", grace_s=0.3)
    assert child.returncode == ExitCode.RETRY
    assert "stopped by SIGTERM after step 7, not finished within 0.3 s" in child.err
    assert not (tmp_path / "attempts.json").exists()  # being preempted is no death


def test_a_hang_is_noticed_and_every_stack_is_written_down(tmp_path):
    body = "def stuck_in_the_data(): forever.wait()\nsupervisor.beat(5); stuck_in_the_data()"
    child = run(tmp_path, body, step_timeout_s=0.3)
    assert child.returncode == ExitCode.RETRY and "after step 5; what every thread was doing is in" in child.err
    assert "stuck_in_the_data" in (tmp_path / "hang_0.txt").read_text()


def test_what_may_take_long_is_no_hang(tmp_path):
    body = """
    supervisor.beat(1)
    with supervisor.pause("evaluation"):
        time.sleep(1.5)
    supervisor.beat(2)
    """
    assert run(tmp_path, body, step_timeout_s=0.6).returncode == ExitCode.DONE


def test_an_exception_in_a_thread_ends_the_whole_process(tmp_path):
    body = """
    def fail(): raise RuntimeError("wires cut")
    supervisor.beat(4)
    threading.Thread(target=fail, name="reader").start()
    forever.wait()
    """
    child = run(tmp_path, body)
    assert child.returncode == ExitCode.INTERNAL
    assert "process 0, thread reader after step 4" in child.err and "RuntimeError: wires cut" in child.err


def test_a_users_mistake_found_in_a_thread_is_one_message(tmp_path):
    body = """
    def fail(): raise DataError("no pictures here")
    threading.Thread(target=fail).start()
    forever.wait()
    """
    child = run(tmp_path, body)
    assert child.returncode == ExitCode.DATA and child.err == "error: no pictures here\n"


def test_a_bug_prints_its_stack_and_leaves_it_in_the_folder(tmp_path):
    child = run(tmp_path, "supervisor.beat(2); [][0]")
    assert child.returncode == ExitCode.INTERNAL and "IndexError" in child.err
    assert "after step 2" in (tmp_path / "crash_0.txt").read_text()
    assert json.loads((tmp_path / "attempts.json").read_text())["starts"] == 1


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (DataError("the folder is empty"), ExitCode.DATA, "error: the folder is empty\n"),
        (OSError(28, "No space left on device", "/run/x"), ExitCode.NO_SPACE, "No space left on device, in /run/x"),
        (PermissionError(13, "Permission denied", "/run/x"), ExitCode.NO_SPACE, "a folder that this user may write to"),
        (Stopped("stopped by SIGTERM"), ExitCode.RETRY, "stopped by SIGTERM\n"),
        (KeyboardInterrupt(), ExitCode.RETRY, "rerun the same command"),
        (ZeroDivisionError("x"), ExitCode.INTERNAL, "Traceback"),
    ],
)
def test_each_end_has_its_code_and_message(error, code, text, capsys):
    def fail():
        raise error

    assert run_supervised(fail) == code
    said = capsys.readouterr().err
    assert text in said and ("Traceback" in said) == (code == ExitCode.INTERNAL)


def test_signals_and_hooks_are_as_before_afterwards(tmp_path):
    before = (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT), sys.excepthook)
    assert run_supervised(lambda: Supervisor(tmp_path).__enter__().__exit__(None, None, None)) == ExitCode.DONE
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT), sys.excepthook) == before


# ---------------------------------------------------------------------------------------------------- the run folder


def test_a_folder_is_held_by_one_living_process(tmp_path):
    first = start(tmp_path, "(folder / 'ready').touch(); forever.wait()")
    while not (tmp_path / "ready").exists():
        assert first.poll() is None
        time.sleep(0.01)
    second = run(tmp_path, "print('training twice')")
    assert second.returncode == ExitCode.USAGE and second.out == "code 2\n"
    assert second.err.startswith(f"error: process {first.pid} on ") and "is training in" in second.err
    first.send_signal(signal.SIGKILL)
    first.communicate()
    third = run(tmp_path, "print('took over')")
    assert third.returncode == ExitCode.DONE and "took over" in third.out


def test_a_process_that_reuses_the_number_of_a_dead_one_does_not_keep_its_lock(tmp_path):
    with Supervisor(tmp_path):
        holder = json.loads((tmp_path / ".mmjax.lock").read_text())
    assert (tmp_path / ".mmjax.lock").read_text() == ""
    (tmp_path / ".mmjax.lock").write_text(json.dumps(holder | {"started": "1"}))
    with Supervisor(tmp_path):
        pass
    (tmp_path / ".mmjax.lock").write_text(json.dumps(holder | {"boot": "before the last reboot", "started": "1"}))
    with Supervisor(tmp_path):
        pass


def test_another_machine_is_refused_while_it_shows_signs_of_life(tmp_path, capsys):
    lock = tmp_path / ".mmjax.lock"
    lock.write_text(json.dumps({"host": "elsewhere", "boot": "b", "pid": 3, "started": "4"}))
    assert run_supervised(lambda: Supervisor(tmp_path).__enter__()) == ExitCode.RETRY
    assert "process 3 on elsewhere was training in" in capsys.readouterr().err
    os.utime(lock, (time.time() - 300,) * 2)
    with Supervisor(tmp_path):
        assert json.loads(lock.read_text())["pid"] == os.getpid()


@pytest.mark.parametrize("text", ["", "{torn", "[]", '{"pid": 3}'])
def test_a_torn_lock_holds_nobody(tmp_path, text):
    lock = tmp_path / ".mmjax.lock"
    lock.write_text(text)
    with Supervisor(tmp_path):
        assert json.loads(lock.read_text())["pid"] == os.getpid()


def test_a_strangers_folder_is_refused_and_left_as_it_is(tmp_path, capsys):
    (tmp_path / "holiday.jpg").write_text("x")
    assert run_supervised(lambda: Supervisor(tmp_path).__enter__()) == ExitCode.USAGE
    assert "is not empty and holds no mmjax run (it has holiday.jpg)" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["holiday.jpg"]
    assert run_supervised(lambda: Supervisor(tmp_path / "holiday.jpg").__enter__()) == ExitCode.USAGE


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, capsys):
    place = tmp_path / "readonly"
    place.mkdir()
    if os.geteuid() != 0 or os.system(f"mount -t tmpfs -o ro tmpfs '{place}' 2>/dev/null") != 0:
        pytest.skip("mounting a read-only file system needs root")
    try:
        assert run_supervised(lambda: Supervisor(place / "run").__enter__()) == ExitCode.NO_SPACE
    finally:
        os.system(f"umount '{place}'")
    said = capsys.readouterr().err
    assert "Read-only file system" in said and said.count("\n") == 1


def test_a_run_that_always_dies_at_the_same_place_is_not_started_a_fourth_time(tmp_path):
    die = "tell(signal.SIGKILL)"
    assert [run(tmp_path, die).returncode for _ in range(3)] == [-signal.SIGKILL] * 3
    refused = run(tmp_path, die)
    assert refused.returncode == ExitCode.INTERNAL
    assert "started 3 times and always died before its first checkpoint" in refused.err
    (tmp_path / "checkpoints" / "10").mkdir(parents=True)  # it got further: the count begins anew
    assert run(tmp_path, die).returncode == -signal.SIGKILL


@pytest.mark.parametrize("end", ["pass", "raise supervisor.stopped()", "raise DataError('bad data')"])
def test_an_end_that_explains_itself_is_no_death(tmp_path, end):
    run(tmp_path, "tell(signal.SIGKILL)")
    assert (tmp_path / "attempts.json").exists()
    run(tmp_path, end)
    assert not (tmp_path / "attempts.json").exists()


def test_progress_is_where_the_newest_checkpoint_is(tmp_path):
    with Supervisor(tmp_path):
        pass
    for newest in (10, 20, 30, 40):
        (tmp_path / "checkpoints" / str(newest)).mkdir(parents=True)
        with pytest.raises(ZeroDivisionError), Supervisor(tmp_path):
            raise ZeroDivisionError
    assert json.loads((tmp_path / "attempts.json").read_text()) == {"newest_checkpoint": 40, "starts": 1}
