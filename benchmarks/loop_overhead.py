"""What the training loop itself costs per step.                                      python -m benchmarks.loop_overhead

The real `loop.train`, supervised and logging as in every run, around a model that does next to nothing: one weight, and
eight small pictures with texts and labels. The time from the beginning of one step to the next is what the host needs,
and what the device needs for nearly nothing. With the guard and without; beside them, the bare compiled call in a
Python loop, which no loop can beat. Given are the median of single steps, and means of a hundred, in which everything
is that comes now and then (logging, garbage collection).
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from benchmarks.measure import Target, conclude, hand_over, interleave, table
from mmjax.core.batch import Batch
from mmjax.core.means import Mean
from mmjax.core.parameters import declare
from mmjax.training.checkpoints import Checkpoints
from mmjax.training.experiment import Experiment, weighted
from mmjax.training.guard import Guard, NoGuard
from mmjax.training.hooks import Hook
from mmjax.training.loop import compile_step, train
from mmjax.training.optim import adamw
from mmjax.training.schedules import Constant
from mmjax.training.state import abstract_state, build_update, new_state
from mmjax.training.supervisor import Supervisor

LIMIT_US, WARMUP, WINDOW = 200, 200, 100
OURS = "benchmarks/loop_overhead.py"
GUARDS = {"guarded": Guard(), "unguarded": NoGuard()}


class Empty(nn.Module):
    """One weight."""

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool = False) -> dict[str, jax.Array]:
        weight = declare(self, "weight", nn.initializers.ones, embed=1)
        return {"value": weight[0] * batch.labels["target"][:, 0], "real": batch.valid[:, 0]}


@dataclasses.dataclass(frozen=True)
class Square:
    """The mean square of the outputs."""

    def __call__(self, outputs: Mapping[str, jax.Array], batch: Batch) -> dict[str, Mean]:
        return {"loss": Mean.of(outputs["value"] ** 2, outputs["real"])}


@dataclasses.dataclass(frozen=True)
class Same:
    """One batch, for ever."""

    def spec(self) -> Batch:
        """Eight rows."""
        return Batch.spec(8, text=16, image=(1, 8, 8), labels={"target": ((), np.float32), "concept": ((), np.int32)})

    def fingerprint(self) -> Mapping[str, str]:
        """Nothing to tell apart."""
        return {}

    def batches(self, position: int = 0, process: int = 0, processes: int = 1) -> Iterator[Batch]:
        """It costs nothing to make."""
        batch = Batch.fake(self.spec(), 0)
        while True:
            yield batch

    def names(self) -> Mapping[str, tuple[str, ...]]:
        """No labels with names."""
        return {}

    def example(self, index: int) -> Mapping[str, Any]:
        """Nothing to look at."""
        return {}


TICKS: list[tuple[float, float]] = []


@dataclasses.dataclass(frozen=True)
class Clock(Hook):
    """Notes when each step begins: wall and CPU seconds."""

    def before(self, folder: pathlib.Path, step: int) -> None:
        """See `Hook`."""
        TICKS.append((time.perf_counter(), time.process_time()))


def experiment(guard: Any, steps: int) -> Experiment:
    """The empty one."""
    return Experiment(
        Empty(), Same(), {"square": weighted(1.0, Square())}, adamw(Constant(1e-3)), steps, guard=guard, log_every=50,
        hooks=(Clock(),), checkpoints=Checkpoints(every=1_000_000),
    )  # fmt: skip


def looped(guard: str, steps: int) -> None:
    """The loop, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder, Supervisor(folder) as supervisor:
        train(experiment(GUARDS[guard], WARMUP + steps), folder, supervisor=supervisor)
    tell()


def bare(guard: str, steps: int) -> None:
    """The compiled step called in turn and nothing else: what no loop can be faster than."""
    empty = experiment(GUARDS[guard], steps)
    mesh, update = empty.layout.mesh(), build_update(empty)
    with empty.layout.use(mesh):
        abstract = abstract_state(empty, update, mesh)
        step, state = compile_step(empty, update, abstract, mesh), new_state(empty, update, abstract)
        batch, clock = next(empty.data.batches()), Clock()
        for number in range(WARMUP + steps):
            clock.before(pathlib.Path(), number)
            state, metrics = step(state, batch)
    jax.block_until_ready((state, metrics))
    tell()


def tell() -> None:
    """Hands over seconds per step."""
    wall, cpu = np.diff(np.array(TICKS[WARMUP:]), axis=0).T
    count = len(wall) // WINDOW * WINDOW
    means, work = (each[:count].reshape(-1, WINDOW).mean(1).tolist() for each in (wall, cpu))
    hand_over({"wall_s": means, "cpu_s": work, "median_us": float(np.median(wall)) * 1e6, "jax": jax.__version__})


SIDES = {"loop": looped, "bare call": bare}


def main(arguments: list[str]) -> int:
    """The door."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2_000, help="timed steps in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--ours", nargs=2, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.ours:
        side, guard = chosen.ours
        SIDES[side](guard, chosen.steps)
        return 0

    own = [sys.executable, OURS, "--steps", str(chosen.steps), "--ours"]
    timed = interleave(
        {f"{side}, {guard}": [*own, side, guard] for guard in GUARDS for side in SIDES}, chosen.rounds, chosen.threads
    )
    rows, targets = [], []
    for name, timing in timed.items():
        median, mean, cpu = timing.facts["median_us"], timing.median_s * 1e6, timing.cpu_s * 1e6
        rows.append([name, median, mean, timing.wall_s * 1e6, cpu])
        if name.startswith("loop"):
            targets.append(Target.at_most(f"{name}: microseconds per step, median", median, LIMIT_US))
            targets.append(Target.at_most(f"{name}: microseconds per step, mean of 100", mean, LIMIT_US))
    print(table(["microseconds per step", "median", "median mean of 100", "least mean of 100", "least CPU"], rows))
    return conclude("loop_overhead", {name: vars(timing) for name, timing in timed.items()}, targets, timed.values())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
