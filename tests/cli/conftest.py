"""A user's folder outside of the repository, and one trained run in it."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Callable

import pytest

from mmjax.cli.main import main

ROOT = pathlib.Path(__file__).parent.parent.parent


@pytest.fixture(scope="session")
def home(tmp_path_factory) -> pathlib.Path:
    """A folder with a blank and a quote in its name, which holds the user's file."""
    folder = tmp_path_factory.mktemp("a user's folder")
    shutil.copy(pathlib.Path(__file__).parent / "colours.py", folder / "colours.py")
    return folder


@pytest.fixture(scope="session")
def file(home) -> str:
    return str(home / "colours.py")


@pytest.fixture(scope="session")
def trained(home, file) -> pathlib.Path:
    """A finished run of 12 steps."""
    assert main(["train", file, "steps=12", "--run", str(home / "runs" / "trained")]) == 0
    return home / "runs" / "trained"


@pytest.fixture(scope="session")
def alone(home) -> Callable[..., subprocess.CompletedProcess]:
    """Runs the command line in a process of its own that has imported nothing yet, in the user's folder."""

    def run(*words: str, **environment: str) -> subprocess.CompletedProcess:
        paths = os.pathsep.join([str(ROOT), environment.pop("PYTHONPATH", "")]).rstrip(os.pathsep)
        return subprocess.run(
            [sys.executable, "-m", "mmjax", *words],
            cwd=home,
            env=os.environ | {"PYTHONPATH": paths} | environment,
            capture_output=True,
            text=True,
            timeout=240,
        )

    return run
