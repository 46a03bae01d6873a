"""Runs that several fault tests start from, made once."""

import shutil

import pytest
from fault_runs import Door


@pytest.fixture(scope="session")
def door(tmp_path_factory):
    return Door(tmp_path_factory.mktemp("dir ü with 'space'"))


@pytest.fixture(scope="session")
def oracle(door):
    """The run that nothing happened to. One gradient is poisoned in it, as in every run it is compared with."""
    run = door.home / "oracle"
    ended = door.train(run, faults="grad:6=nan")
    assert ended.returncode == 0, ended.stderr
    return run


@pytest.fixture(scope="session")
def killed_once(door):
    run = door.home / "killed"
    assert door.train(run, faults="grad:6=nan, checkpoint.begin:12=kill").returncode == -9
    return run


@pytest.fixture
def killed(killed_once, tmp_path):
    """A copy of a run that was killed after step 12, before it saved that; it has checkpoints 4 and 8."""
    return shutil.copytree(killed_once, tmp_path / "run")
