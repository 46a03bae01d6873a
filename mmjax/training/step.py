"""One training step: forward, objectives, gradients, update, average, guard. It knows no feature by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mmjax.core import faults
from mmjax.core.batch import Batch
from mmjax.core.rng import at_step
from mmjax.training.experiment import Experiment
from mmjax.training.gradients import loss_and_gradient
from mmjax.training.guard import keep
from mmjax.training.optim import Update
from mmjax.training.state import TrainState, build_update

Metrics = dict[str, jax.Array]


Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def make_step(experiment: Experiment, update: Update | None = None) -> Step:
    """The pure function (state, global batch) -> (next state, float32 scalars), to be compiled by the caller.

    An update that the guard refuses changes nothing but the step counter and the guard's own memory."""
    update = update or build_update(experiment)
    objective = total_loss(experiment)

    def forward(params: Any, batch: Batch, rng: jax.Array) -> Any:
        return experiment.model.apply({"params": update.hold(params)}, batch, train=True, rngs={"dropout": rng})

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        keys = at_step(experiment.seed, state.step, ("dropout", "augment"))
        batch = experiment.augment(keys["augment"], batch)
        (loss, metrics), grads = loss_and_gradient(
            forward, objective, state.params, batch, keys["dropout"], experiment.accumulate
        )
        grads = faults.traced("grad", state.step + 1, grads)
        norm = optax.global_norm(grads)
        change, opt_state = update(grads, state.opt_state, state.params, step=state.step, loss=loss)
        params = optax.apply_updates(state.params, change)
        average = experiment.average.update(state.average, params, state.step)
        ok, guard = experiment.guard.judge(state.guard, state.step, loss, norm)
        new, old = (params, opt_state, average), (state.params, state.opt_state, state.average)
        after = TrainState(state.step + 1, *keep(ok, new, old), guard)
        size = optax.global_norm(state.params)
        metrics |= {
            "loss": loss,
            "grad_norm": norm,
            "param_norm": size,
            "update_ratio": optax.global_norm(change) / jnp.maximum(size, 1e-12),
            "lr": update.rate(state.opt_state, state.step),
            **experiment.guard.metrics(guard),
        }
        return after, jax.tree.map(lambda x: x.astype(jnp.float32), metrics)

    return step


def total_loss(experiment: Experiment) -> Callable[[Any, Batch], tuple[jax.Array, Metrics]]:
    """(outputs, batch) -> (sum of weight * loss over the objectives, every mean as "objective/name")."""

    def objective(outputs: Any, batch: Batch) -> tuple[jax.Array, Metrics]:
        means = {name: part.objective(outputs, batch) for name, part in experiment.objectives.items()}
        loss = sum(part.weight * means[name]["loss"].value for name, part in experiment.objectives.items())
        return loss, {f"{name}/{key}": mean.value for name, found in means.items() for key, mean in found.items()}

    return objective
