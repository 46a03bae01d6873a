"""The full-size experiments made small: settings that keep every part and shrink it, and a first step with them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.core.pytrees import flatten_names
from mmjax.training.experiment import Experiment
from mmjax.training.state import abstract_state, build_update, new_state
from mmjax.training.step import make_step

_TINY = {"vocabulary": "400", "batch": "4"}
TOY = {
    "llava_7b": {"size": "mu", "image": "mu/14", "resolution": "28", "length": "320", **_TINY},
    "paligemma_3b": {"size": "mu", "image": "mu/14", "resolution": "28", "length": "64", **_TINY},
    "flamingo_3b": {"size": "mu", "image": "mu/14", "resolution": "28", "width": "32", "latents": "4", **_TINY},
    "blip2": {"size": "mu", "image": "mu/14", "qformer": "mu", "resolution": "28", "queries": "4", **_TINY},
    "coca": {"size": "mu", "resolution": "36", "length": "40", **_TINY},
    "vilt": {"size": "mu/32", "resolution": "64", **_TINY},
    "uniter": {"size": "mu", "image": "18", "resolution": "64", **_TINY},
}

FEW = {"batch": "64"}
"""For full-size models on the few records at hand."""


def first_step(experiment: Experiment, batch: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, float]]:
    """Parameters before and after a step on `batch` by the real step function, by name, and what it reports."""
    mesh = experiment.layout.mesh(jax.devices()[:1])
    update = build_update(experiment)
    with experiment.layout.use(mesh):
        state = new_state(experiment, update, abstract_state(experiment, update, mesh))
        after, metrics = jax.jit(make_step(experiment, update))(state, jax.tree.map(jnp.asarray, batch))
    assert int(after.step) == 1
    before, now = (jax.tree.map(np.asarray, flatten_names(each.params)) for each in (state, after))
    return before, now, {name: float(value) for name, value in metrics.items()}
