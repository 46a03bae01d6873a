"""Objectives over the ids of a token row.  B rows   T places   K further distances"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from mmjax.core.batch import Batch, Text
from mmjax.core.means import Mean


def counted(text: Text, distance: int = 1) -> Float[Array, "B T"]:
    """What predicting each id from `distance` places before it counts: nothing where that place is another sample's."""
    return text.loss * (text.position >= distance)


@dataclasses.dataclass(frozen=True)
class Language:
    """Mean negative log-likelihood of the ids that the batch says to predict, weighted by `text.loss`; needs what
    `heads.language.Language` gives ("nll", "log_z", "hit").

    z_loss: weight of log(z) ** 2, which keeps scores from drifting (PaLM, arXiv 2204.02311, section 5).
    Reports "nll" without it, and "accuracy": how often the id had the best score."""

    z_loss: float = 0.0

    def __call__(self, outputs: Mapping[str, Any], batch: Batch) -> dict[str, Mean]:
        weight, nll = counted(batch.text), outputs["nll"]
        return {
            "loss": Mean.of(nll + self.z_loss * jnp.square(outputs["log_z"]), weight),
            "nll": Mean.of(nll, weight),
            "accuracy": Mean.of(outputs["hit"], weight),
        }


@dataclasses.dataclass(frozen=True)
class Ahead:
    """The same for ids further ahead, all distances alike (arXiv 2404.19737, equation 2); needs "ahead" of
    `heads.language.MultiToken`. Reports "accuracy_2", "accuracy_3" .. by distance."""

    z_loss: float = 0.0

    def __call__(self, outputs: Mapping[str, Any], batch: Batch) -> dict[str, Mean]:
        ahead = outputs["ahead"]
        distances = range(2, ahead["nll"].shape[-1] + 2)
        weight = jnp.stack([counted(batch.text, distance) for distance in distances], axis=-1)
        losses = ahead["nll"] + self.z_loss * jnp.square(ahead["log_z"])
        hits = {f"accuracy_{d}": Mean.of(ahead["hit"][..., d - 2], weight[..., d - 2]) for d in distances}
        return {"loss": Mean.of(losses, weight)} | hits
