"""What a run leaves in its folder besides checkpoints and metrics: what it was, where it ran, how it was judged."""

from __future__ import annotations

import importlib.metadata
import json
import os
import pathlib
import platform
import shlex
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

import mmjax
from mmjax.core.batch import FAULTS, Batch
from mmjax.core.config import to_json
from mmjax.core.protocols import Data
from mmjax.training import durable
from mmjax.training.experiment import Experiment
from mmjax.training.origin import Report
from mmjax.training.writers import Writers, read_metrics

FORMAT = 1
BAD = "bad_records.jsonl"
START = "start.json"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def write_record(folder: pathlib.Path, experiment: Experiment, source: Mapping[str, Any]) -> None:
    """experiment.json (enough to rebuild the value), command.txt and environment.json. `source`: the file that made the
    experiment and its settings. Raises UserError for an experiment that has no JSON form."""
    record = {"format": FORMAT, "experiment": to_json(experiment), "source": dict(source), "versions": versions()}
    folder.mkdir(parents=True, exist_ok=True)
    durable.write_text(folder / "experiment.json", json.dumps(record, indent=1) + "\n")
    durable.write_text(folder / "command.txt", shlex.join([pathlib.Path(sys.argv[0]).name, *sys.argv[1:]]) + "\n")
    durable.write_text(folder / "environment.json", json.dumps(environment(), indent=1) + "\n")


def tell_origin(folder: pathlib.Path, report: Report, writers: Writers) -> None:
    """Where a new run's parameters come from: into start.json, and, where that is not its own initialisation alone, to
    who reads along."""
    durable.write_text(folder / START, json.dumps(report.record(), indent=1) + "\n")
    if not report.plain:
        writers.write({"step": 0, "kind": "event", "text": f"where the parameters come from\n{report}"})


def versions() -> dict[str, str]:
    """Versions of what the numbers of a run depend on."""
    found = {"mmjax": mmjax.__version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def environment() -> dict[str, Any]:
    """The machine: devices, processor, memory. Starts the backend."""
    devices = jax.devices()
    return {
        "versions": versions(),
        "devices": {"count": len(devices), "kind": devices[0].device_kind, "platform": devices[0].platform},
        "processes": jax.process_count(),
        "cpu": {"model": _cpu(), "cores": len(os.sched_getaffinity(0))},
        "system": platform.platform(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def _cpu() -> str:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def result_path(folder: pathlib.Path, name: str, step: int) -> pathlib.Path:
    """Where the results of evaluator `name` on the state after `step` lie."""
    return folder / "evals" / name / f"{step}.json"


def write_result(folder: pathlib.Path, name: str, step: int, results: Mapping[str, Any]) -> None:
    """Keeps the results of an evaluation."""
    path = result_path(folder, name, step)
    path.parent.mkdir(parents=True, exist_ok=True)
    durable.write_text(path, json.dumps(results, indent=1, ensure_ascii=False) + "\n")


def write_done(folder: pathlib.Path, step: int) -> None:
    """Says that the run has come to its end, after `step`."""
    durable.write_text(folder / "DONE", json.dumps({"step": step}) + "\n")


def forget_later(folder: pathlib.Path, after: int, steps: int) -> None:
    """Removes what a run of `steps` that goes on after step `after` will write again."""
    if after < steps:
        (folder / "DONE").unlink(missing_ok=True)
    for path in folder.glob("evals/*/*.json"):
        if path.stem.isdigit() and int(path.stem) > after:
            path.unlink()
    bad = folder / BAD
    if bad.exists():
        kept = [entry for entry in read_metrics(bad) if entry["step"] <= after]
        durable.write_text(bad, "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in kept))


def list_bad(folder: pathlib.Path, data: Data, step: int, batch: Batch) -> None:
    """Appends the null examples of a host batch to bad_records.jsonl, one line each: step, id, fault, and what the data
    can tell of them through a method `faults(batch)`. A batch without one costs a look at B bytes."""
    rows, samples = np.nonzero(batch.fault > FAULTS.index("padding"))
    if not rows.size:
        return
    codes, ids = batch.fault[rows, samples], batch.id[rows, samples]
    known = {entry["id"]: entry for entry in data.faults(batch)} if hasattr(data, "faults") else {}
    with open(folder / BAD, "a", encoding="utf-8") as file:
        for code, number in zip(codes.tolist(), ids.tolist(), strict=True):
            entry = {"step": step, "id": number, "fault": FAULTS[code]} | known.get(number, {})
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")


def numbers(results: Any, prefix: str = "") -> Iterator[tuple[str, float]]:
    """("text_to_image/r1", 0.9) for each number of a tree of results; of a number with an interval, its value."""
    if isinstance(results, Mapping):
        if isinstance(results.get("value"), int | float):
            yield prefix, float(results["value"])
            return
        for name, child in results.items():
            yield from numbers(child, f"{prefix}/{name}" if prefix else str(name))
    elif isinstance(results, int | float) and not isinstance(results, bool):
        yield prefix, float(results)
