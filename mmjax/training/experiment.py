"""An experiment: one frozen value that says everything about a run, and is its own configuration."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax

from mmjax.core.batch import Batch
from mmjax.core.layout import Layout
from mmjax.core.protocols import Data, Evaluator, Objective
from mmjax.core.rng import named
from mmjax.training.average import Average, NoAverage
from mmjax.training.checkpoints import Checkpoints
from mmjax.training.guard import Guard, NoGuard
from mmjax.training.hooks import Hook
from mmjax.training.optim import Optimizer
from mmjax.training.stages import FromRuns, Scratch


@dataclasses.dataclass(frozen=True)
class Weighted:
    """An objective and its share of the total loss."""

    weight: float
    objective: Objective


def weighted(weight: float, objective: Objective) -> Weighted:
    """`objectives={"clip": weighted(1.0, InfoNCE())}`."""
    return Weighted(weight, objective)


@dataclasses.dataclass(frozen=True)
class Every:
    """An evaluator and how often it judges: each `steps` steps and at the end; 0 is only at the end."""

    steps: int
    evaluator: Evaluator

    def due(self, step: int, last: int) -> bool:
        """Whether it judges after `step` of a run of `last` steps."""
        return step == last or (self.steps > 0 and step > 0 and step % self.steps == 0)


def every(steps: int, evaluator: Evaluator) -> Every:
    """`evals={"retrieval": every(500, Retrieval(...))}`."""
    return Every(steps, evaluator)


def identity(key: jax.Array, batch: Batch) -> Batch:
    """No augmentation."""
    return batch


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What is trained on what, how, for how long, where, and how it is judged.

    init: where the parameters of a new run come from (`training.stages`). augment: (key, batch) -> batch, on the device
    inside the step; a frozen dataclass or a function at the top of a module. accumulate: micro-batches per step; the
    loss is that of the whole batch whatever it is. Total loss = sum of weight * loss. Every field may be set from the
    command line by its dotted name.
    """

    model: nn.Module
    data: Data
    objectives: Mapping[str, Weighted]
    optimizer: Optimizer
    steps: int
    layout: Layout = Layout()
    init: Scratch | FromRuns = Scratch()
    augment: Callable[[jax.Array, Batch], Batch] = identity
    accumulate: int = 1
    average: Average = NoAverage()
    guard: Guard | NoGuard = Guard()
    evals: Mapping[str, Every] = dataclasses.field(default_factory=dict)
    hooks: tuple[Hook, ...] = ()
    checkpoints: Checkpoints = Checkpoints()
    log_every: int = 50
    seed: int = 0

    def replace(self, **changes: Any) -> Experiment:
        """A copy with fields changed."""
        return dataclasses.replace(self, **changes)

    @functools.cached_property
    def declared(self) -> Any:
        """The model's parameters as `Declared` boxes of ShapeDtypeStructs. Large models take seconds to trace, so it is
        done once."""
        return jax.eval_shape(self.new_params, self.data.spec())

    def new_params(self, batch: Batch) -> Any:
        """The model's parameters at the start, in boxes; of `batch` only the shapes count."""
        key = named(jax.random.key(self.seed), "params")
        return self.model.init({"params": key}, batch, train=False)["params"]
