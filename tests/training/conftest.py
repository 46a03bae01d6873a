"""What the checkpoint tests start from."""

import shutil

import pytest
from checkpoint_toy import filled

from mmjax.training import durable


@pytest.fixture
def faults_allowed(monkeypatch):
    """Fault points may be armed, and retries do not wait."""
    monkeypatch.setenv("MMJAX_TESTING", "1")
    monkeypatch.setattr(durable, "PAUSE_S", 0.0)


@pytest.fixture(scope="session")
def two_steps(tmp_path_factory):
    """A folder with checkpoints 1 and 2, to be copied."""
    folder = tmp_path_factory.mktemp("two") / "checkpoints"
    filled(folder, [1, 2])
    return folder


@pytest.fixture
def folder(two_steps, tmp_path):
    return shutil.copytree(two_steps, tmp_path / "checkpoints")
