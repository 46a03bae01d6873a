"""From a run folder to something that can be asked: the experiment and the parameters that a run has kept for use."""

from __future__ import annotations

import argparse
import pathlib

import jax
from jax.sharding import Mesh

from mmjax.cli.loading import Loaded, from_run
from mmjax.core.errors import CheckpointError, UserError
from mmjax.core.layout import Layout
from mmjax.core.parameters import unbox
from mmjax.core.protocols import EvalContext
from mmjax.training.checkpoints import CheckpointStore
from mmjax.training.context import Context
from mmjax.training.experiment import Experiment


def restore(arguments: argparse.Namespace) -> tuple[Loaded, EvalContext]:
    """The experiment of `arguments.run` and a context with its parameters: the newest intact ones, or those of
    `arguments.step`. Raises UserError for a folder that is no run, CheckpointError where nothing can be restored."""
    loaded = from_run(arguments.run, arguments.experiment)
    layout, mesh = fitting(loaded.experiment)
    params, step = _params(arguments.run, loaded.experiment, layout, mesh, getattr(arguments, "step", None))
    return loaded, Context.of(loaded.experiment.model, params, step, layout, mesh)


def fitting(experiment: Experiment) -> tuple[Layout, Mesh]:
    """The run's own layout where these devices can hold it, or copies of the model: a run of a pod can be judged on
    a laptop."""
    devices = len(jax.devices())
    layout = experiment.layout
    try:
        layout.sizes(devices)
    except UserError:
        layout = Layout(rules=layout.rules)
    return layout, layout.mesh()


def _params(folder: pathlib.Path, experiment: Experiment, layout: Layout, mesh: Mesh, step: int | None):
    store = CheckpointStore(folder / "checkpoints", experiment.checkpoints)
    if store.empty:
        raise CheckpointError(
            f"{folder} has no checkpoint yet; train it first: `mmjax train` with the same file and --run"
        )
    declared = experiment.declared
    wanted = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        unbox(declared),
        layout.shardings(declared, mesh),
    )
    restored = store.restore({"params": wanted}, step)
    return restored.items["params"], restored.step
