"""A training step of ours, as the loop runs it, and whether a peer's does the same work."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from benchmarks.measure import Timing, hand_over, peak_mib, time_calls
from mmjax.core.allocator import keep_pages
from mmjax.core.batch import Batch
from mmjax.core.compilation import executable
from mmjax.core.parameters import unbox
from mmjax.core.pytrees import flatten_names
from mmjax.training.experiment import Experiment, weighted
from mmjax.training.guard import NoGuard
from mmjax.training.optim import adamw
from mmjax.training.state import TrainState, build_update
from mmjax.training.step import make_step, total_loss

RATE, DECAY = 1e-4, 0.05


@dataclasses.dataclass(frozen=True)
class Case:
    """A model to step. batch: of an experiment's shapes. peer: the script that does the same; told: what it has to know
    beside the weights."""

    experiment: Callable[[], Experiment]
    batch: Callable[[Experiment], Batch]
    peer: str
    told: Callable[[Experiment, Batch], Mapping[str, Any]]

    def write(self, folder: Path) -> None:
        """Weights and batch as the peer reads them."""
        experiment = self.experiment()
        batch = self.batch(experiment)
        weights = flatten_names(weights_of(experiment, batch))
        np.savez(folder / "weights.npz", **{path: np.asarray(x) for path, x in weights.items()})
        np.savez(folder / "batch.npz", rate=RATE, decay=DECAY, **self.told(experiment, batch))


@dataclasses.dataclass(frozen=True)
class Fixed:
    """Data that are one batch's shapes, for an experiment that is only stepped."""

    shapes: Any

    def spec(self) -> Batch:
        """The batch as ShapeDtypeStructs."""
        return self.shapes

    def fingerprint(self) -> Mapping[str, str]:
        """Nothing to tell apart."""
        return {}

    def batches(self, position: int = 0, process: int = 0, processes: int = 1) -> Iterator[Batch]:
        """Not used here."""
        return iter(())

    def names(self) -> Mapping[str, tuple[str, ...]]:
        """No labels with names."""
        return {}

    def example(self, index: int) -> Mapping[str, Any]:
        """Nothing to look at."""
        return {}


def plain(model: Any, objective: Any, shapes: Batch) -> Experiment:
    """An experiment of nothing but model, loss and AdamW."""
    optimizer = adamw(RATE, decay=DECAY, clip=1.0)
    return Experiment(model, Fixed(shapes), {"loss": weighted(1.0, objective)}, optimizer, 1_000, guard=NoGuard())


def weights_of(experiment: Experiment, batch: Batch) -> Any:
    """The parameters of step 0, all of them moved a little: no zero may hide what the two sides do differently."""
    params = unbox(jax.jit(experiment.model.init)({"params": jax.random.key(0)}, batch)["params"])
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: x + 0.02 * rng.normal(size=x.shape).astype(np.float32), params)


def slopes_of(experiment: Experiment, params: Any, batch: Batch) -> dict[str, float]:
    """The norm of the gradient of each part of the model."""
    objective = total_loss(experiment)

    def loss(params: Any) -> jax.Array:
        return objective(experiment.model.apply({"params": params}, batch, train=True), batch)[0]

    norms = jax.jit(lambda params: {name: optax.global_norm(part) for name, part in jax.grad(loss)(params).items()})
    return {name: float(norm) for name, norm in norms(params).items()}


def ours(case: Case, calls: int) -> None:
    """Our side, in a process of its own: the step as the loop runs it, state donated."""
    keep_pages()  # as the command line does
    experiment = case.experiment()
    batch = jax.device_put(case.batch(experiment))
    update = build_update(experiment)
    params = weights_of(experiment, batch)
    slopes = slopes_of(experiment, params, batch)
    average, guard = experiment.average.init(params), experiment.guard.init()
    state = TrainState(jax.numpy.zeros((), "int32"), params, update.init(params), average, guard)
    lowered = jax.jit(make_step(experiment, update), donate_argnums=0).lower(state, batch)
    step = executable(lowered, jax.default_backend())

    def call() -> float:
        nonlocal state
        state, metrics = step(state, batch)
        return float(jax.block_until_ready((state, metrics))[1]["loss"])

    losses = [call() for _ in range(3)]
    hand_over({"losses": losses, "slopes": slopes, "peak_mib": peak_mib()} | time_calls(call, calls, warmup=1))


def agree(one: Timing, other: Timing) -> None:
    """Raises when the first loss or the norm of a gradient differs by more than 1e-4, or the losses after one and two
    updates by more than 1e-3."""
    mine, theirs = one.facts, other.facts
    np.testing.assert_allclose(mine["losses"][0], theirs["losses"][0], rtol=1e-4, err_msg="loss before any update")
    assert mine["slopes"].keys() == theirs["slopes"].keys()
    for part, slope in mine["slopes"].items():
        np.testing.assert_allclose(slope, theirs["slopes"][part], rtol=1e-4, err_msg=f"gradient of {part}")
    np.testing.assert_allclose(mine["losses"], theirs["losses"], rtol=1e-3, err_msg="losses of three steps")
