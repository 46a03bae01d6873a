"""The training state, known from shapes alone before any device is touched, and born sharded."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Int

from mmjax.core.compilation import ONCE, Jitted
from mmjax.core.parameters import Declared, is_declared, unbox
from mmjax.core.pytrees import map_names, record
from mmjax.training.experiment import Experiment
from mmjax.training.optim import Update


@record
class TrainState:
    """Everything that the next step depends on, besides the batch."""

    step: Int[Array, ""]  # updates tried so far, skipped ones included
    params: Any
    opt_state: Any
    average: Any
    guard: Any


def build_update(experiment: Experiment) -> Update:
    """The experiment's optimizer for its model. Raises UserError when they do not fit."""
    return experiment.optimizer.build(experiment.declared, experiment.steps)


def abstract_state(experiment: Experiment, update: Update, mesh: Mesh) -> TrainState:
    """The state as ShapeDtypeStructs, each with the sharding that the layout gives it.

    Optimizer statistics lie as their parameters do; factored ones and scalars by the layout's floor."""
    boxed = jax.eval_shape(functools.partial(_state, experiment, update), experiment.declared)
    shapes = {(leaf.value.shape, leaf.dims) for leaf in jax.tree.leaves(boxed.params, is_leaf=is_declared)}
    boxed = jax.tree.map(lambda leaf: _unnamed(leaf, shapes), boxed, is_leaf=is_declared)
    shardings = experiment.layout.shardings(boxed, mesh)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), unbox(boxed), shardings)


def _unnamed(leaf: Any, shapes: set) -> Any:
    """A statistic whose shape is not its parameter's loses the names of its dimensions; a place that a rule leaves
    empty (optax's MaskedNode) loses its box."""
    if is_declared(leaf) and not jax.tree.leaves(leaf):
        return leaf.value
    if not is_declared(leaf) or (leaf.value.shape, leaf.dims) in shapes:
        return leaf
    return Declared(leaf.value, (None,) * leaf.value.ndim)


def new_state(
    experiment: Experiment, update: Update, abstract: TrainState, given: Mapping[str, jax.Array] = MappingProxyType({})
) -> TrainState:
    """The state of step 0 on the devices, made there: nothing whole ever lies in one place. given: parameters by path
    that come from elsewhere, laid out as in `abstract`; they are used up."""

    def create(given: dict[str, jax.Array]) -> TrainState:
        batch = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), experiment.data.spec())
        params = map_names(lambda name, leaf: given.get(name, leaf), unbox(experiment.new_params(batch)))
        return _state(experiment, update, params)

    shardings = jax.tree.map(lambda x: x.sharding, abstract)
    return Jitted(create, ONCE, out_shardings=shardings, donate_argnums=0)(dict(given))


def inference_params(experiment: Experiment, state: TrainState) -> Any:
    """The parameters to evaluate and to ship: the average where there is one."""
    return experiment.average.of(state.average, state.params)


def _state(experiment: Experiment, update: Update, params: Any) -> TrainState:
    step = jnp.zeros((), jnp.int32)
    return TrainState(step, params, update.init(params), experiment.average.init(params), experiment.guard.init())
