"""The real command line, one run of `tiny_experiment.py` after another, with faults armed; what a run has left."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from mmjax.training.checkpoints import CheckpointStore
from mmjax.training.writers import read_metrics

ROOT = pathlib.Path(__file__).parents[2]


class Door:
    """`python -m mmjax train FILE --run FOLDER name=value ...` in a process of its own, one CPU device."""

    def __init__(self, home: pathlib.Path):
        self.home = home
        self.file = home / "own.py"
        shutil.copy(pathlib.Path(__file__).with_name("tiny_experiment.py"), self.file)

    def train(self, run: pathlib.Path, *settings: str, faults: str = "") -> subprocess.CompletedProcess[str]:
        """Runs to the end, or to its fault."""
        keep = {name: value for name, value in os.environ.items() if not name.startswith(("XLA_", "JAX_", "MMJAX_"))}
        armed = {"MMJAX_FAULTS": faults, "MMJAX_TESTING": "1"} if faults else {}
        environment = keep | armed | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "mmjax", "train", str(self.file), "--run", str(run), *settings]
        return subprocess.run(command, env=environment, cwd=self.home, capture_output=True, text=True, timeout=120)


def losses(run: pathlib.Path) -> list[tuple[int, str, str]]:
    """(step, loss, gradient norm) of every train record, to the last bit; `None` is a number that was not finite."""
    trained = [record for record in read_metrics(run / "metrics.jsonl") if record["kind"] == "train"]
    return [(r["step"], *(r[name] and float.hex(r[name]) for name in ("loss", "grad_norm"))) for r in trained]


def results(run: pathlib.Path) -> dict[str, str]:
    """Every evaluation's file."""
    return {path.name: path.read_text() for path in (run / "evals").rglob("*.json")}


def final(run: pathlib.Path) -> dict[str, bytes]:
    """Every array of the newest checkpoint, to the last bit: parameters, optimizer, average, guard."""
    store = CheckpointStore(run / "checkpoints")
    loaded = ocp.load_checkpointables(run / "checkpoints" / str(store.latest()))
    leaves, _ = jax.tree_util.tree_flatten_with_path(dict(loaded))
    return {jax.tree_util.keystr(path): np.asarray(leaf).tobytes() for path, leaf in leaves if hasattr(leaf, "dtype")}


def steps(run: pathlib.Path) -> list[int]:
    """Published checkpoints."""
    return CheckpointStore(run / "checkpoints").steps()
