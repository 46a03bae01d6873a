"""Where a run begins, where it goes on, and how it gets away from bad numbers.

A checkpoint remembers how many examples the run has seen and what would make other numbers: the data, the seed, the
model. Going on with something else there is refused unless it is allowed by name.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import pathlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from mmjax.core.config import to_json
from mmjax.core.errors import CheckpointError, ExitCode, UserError, unknown_name
from mmjax.training import records, writers
from mmjax.training.checkpoints import CheckpointStore
from mmjax.training.experiment import Experiment
from mmjax.training.optim import Update
from mmjax.training.origin import Origin
from mmjax.training.state import TrainState, new_state

log = logging.getLogger(__name__)

IDENTITY = ("data", "seed", "model", "init")
"""What may not change between two starts of one run, unless `allow` names it."""


@dataclasses.dataclass(frozen=True)
class Start:
    """The state to go on from. step: updates tried; examples: data position; rollbacks: how often the run has fled.
    origin: of a new run, where its parameters come from."""

    state: TrainState
    step: int = 0
    examples: int = 0
    rollbacks: int = 0
    origin: Origin | None = None


def begin(
    experiment: Experiment, update: Update, abstract: TrainState, store: CheckpointStore, allow: Collection[str] = ()
) -> Start:
    """The newest intact checkpoint, or a new state when there never was one. Raises CheckpointError when none is intact
    and UserError, with both sides beside each other, when the run's data, seed or model is not what it was."""
    for name in allow:
        if name not in IDENTITY:
            raise UserError("allow: " + unknown_name("part of a run", name, IDENTITY))
    if store.empty:
        return _new(experiment, update, abstract)
    found = store.restore({"state": abstract})
    _compare(found.meta, meta(experiment, 0, 0, 0), allow)
    if found.step > experiment.steps:
        raise UserError(
            f"the run is at step {found.step}, beyond steps={experiment.steps}; "
            "ask for at least as many steps, or train into another folder"
        )
    return Start(found.items["state"], found.step, found.meta["examples"], found.meta["rollbacks"])


def _new(experiment: Experiment, update: Update, abstract: TrainState) -> Start:
    """Step 0, with what other runs lend."""
    origin = experiment.init.origin(experiment.declared)
    return Start(new_state(experiment, update, abstract, origin.load(abstract.params)), origin=origin)


def meta(experiment: Experiment, examples: int, rollbacks: int, skipped_lately: int) -> dict[str, Any]:
    """What a checkpoint says beside its arrays."""
    return {
        "examples": examples,
        "rollbacks": rollbacks,
        "skipped_lately": skipped_lately,
        "data": dict(experiment.data.fingerprint()),
        "seed": {"seed": str(experiment.seed)},
        "model": dict(_leaves(to_json(experiment.model))),
        "init": dict(_leaves(to_json(experiment.init))),
        "versions": records.versions(),
    }


def _leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else None
    if items is None:
        yield prefix, json.dumps(tree)
        return
    for name, child in items:
        yield from _leaves(child, f"{prefix}.{name}" if prefix else str(name))


def _compare(saved: Mapping[str, Any], now: Mapping[str, Any], allow: Collection[str]) -> None:
    rows, changed = [], []
    for part in (part for part in IDENTITY if part in saved):  # a checkpoint may be older than a part
        names = [name for name in {**saved[part], **now[part]} if saved[part].get(name) != now[part].get(name)]
        if names and part not in allow:
            changed.append(part)
            rows += [(f"{part}.{name}", saved[part].get(name, "-"), now[part].get(name, "-")) for name in names]
    if rows:
        flags = " ".join(f"--allow {part}" for part in changed)
        raise UserError(
            f"the run in this folder was started with another {' and '.join(changed)}:\n{_columns(rows)}\n"
            f"Train into another folder, go back to the old settings, or go on with the new ones by {flags}"
        )
    old = {name: version for name, version in saved["versions"].items() if now["versions"].get(name) != version}
    if old:
        changes = ", ".join(f"{name} {version} -> {now['versions'].get(name)}" for name, version in old.items())
        log.warning("the versions are not those of the checkpoint (%s): the last bits may differ", changes)


def _columns(rows: list[tuple[str, str, str]], shown: int = 20) -> str:
    table = [("", "saved", "now"), *rows[:shown]]
    widths = [max(len(row[i]) for row in table) for i in range(2)]
    lines = ["  " + "  ".join((row[0].ljust(widths[0]), row[1].ljust(widths[1]), row[2])) for row in table]
    return "\n".join(lines + [f"  ... and {len(rows) - shown} more"] * (len(rows) > shown))


def roll_back(
    experiment: Experiment, update: Update, abstract: TrainState, store: CheckpointStore, start: Start
) -> Start:
    """`start` with the weights, optimizer and guard of the last good checkpoint, at the same step and data position:
    the data between the two is left out, and the run's own clock never goes back (PaLM, arXiv 2204.02311, section 5.1).

    Good is the newest checkpoint with no skipped update shortly before it, else the newest; else the run's beginning.
    """
    store.wait()
    found = None
    for step in reversed(store.steps()):
        try:
            candidate = store.restore({"state": abstract}, step=step)
        except CheckpointError as error:
            log.warning("%s", error)
            continue
        found = found or candidate
        if not candidate.meta["skipped_lately"]:
            found = candidate
            break
    old = found.items["state"] if found else _new(experiment, update, abstract).state
    skips = jax.device_put(np.zeros(abstract.guard.skips.shape, bool), abstract.guard.skips.sharding)
    guard = dataclasses.replace(old.guard, skips=skips, skipped=start.state.guard.skipped)
    state = dataclasses.replace(old, step=start.state.step, guard=guard)
    log.warning("rolled back to the weights of step %d; going on at step %d", found.step if found else 0, start.step)
    return dataclasses.replace(start, state=state, rollbacks=start.rollbacks + 1)


def give_up(folder: pathlib.Path, start: Start, budget: int) -> UserError:
    """What stops a run that went bad once too often."""
    return UserError(
        f"step {start.step}: more than {budget} updates were skipped lately, again after {start.rollbacks} rollbacks. "
        f"The batches are listed in {folder / 'skipped_batches.jsonl'}. Look at them with `mmjax data show`, lower the "
        "learning rate, or loosen guard.sigmas or guard.budget",
        code=ExitCode.NUMERICS,
    )


def list_batches(folder: pathlib.Path, batches: Mapping[int, np.ndarray], skips: np.ndarray) -> None:
    """Appends the example ids of the skipped steps among `batches` (step from 1 -> ids) to skipped_batches.jsonl."""
    path = folder / "skipped_batches.jsonl"
    listed = {record["step"] for record in writers.read_metrics(path)}
    with open(path, "a", encoding="utf-8") as file:
        for step, ids in batches.items():
            if skips[(step - 1) % len(skips)] and step not in listed:
                file.write(json.dumps({"step": step, "ids": ids.ravel().tolist()}) + "\n")
