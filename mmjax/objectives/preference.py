"""Objectives from pairs of answers, one of which people preferred.  B rows   S samples of a row   P = S / 2 pairs"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mmjax.core.batch import Batch, Text
from mmjax.core.errors import UserError
from mmjax.core.means import Mean
from mmjax.objectives.language import counted


def log_probability(nll: Float[Array, "B T"], text: Text, samples: int) -> Float[Array, "B S"]:
    """Log-probability of each sample's answer: the sum over the ids that count (`text.loss`)."""
    weight = counted(text)
    owner = text.segment[:, None, :] == jnp.arange(1, samples + 1)[:, None]
    return -jnp.sum(jnp.where(owner & (weight > 0)[:, None], (nll * weight)[:, None], 0.0), axis=-1)


@dataclasses.dataclass(frozen=True)
class DPO:
    """Direct preference optimisation (arXiv 2305.18290, equation 7): -log sigmoid(beta * (how much more the model now
    favours the chosen answer over the rejected one than the reference did)).

    Samples 1 and 2 of a row are a pair, so are 3 and 4, ..: the chosen answer first, each with its own copy of prompt
    and media. Needs "nll" of `heads.language.Language` and the label `reference` [B S]: the log-probability that the
    model had for each answer before (`log_probability` of its outputs). smoothing: share of pairs whose order is taken
    to be wrong (conservative DPO, Mitchell 2023). A pair with a null sample counts nothing. Reports "accuracy" (share
    of pairs whose chosen answer gained more), "chosen" and "rejected" (beta times how much each gained). Raises
    UserError when samples cannot be paired."""

    beta: float = 0.1
    smoothing: float = 0.0
    reference: str = "reference"

    def __call__(self, outputs: Mapping[str, Any], batch: Batch) -> dict[str, Mean]:
        samples = batch.fault.shape[1]
        if samples % 2:
            raise UserError(f"DPO: the samples of a row are pairs of answers; rows of {samples} cannot be paired")
        gained = log_probability(outputs["nll"], batch.text, samples) - batch.labels[self.reference]
        chosen, rejected = (self.beta * _pairs(gained)[..., side] for side in (0, 1))
        real = jnp.all(_pairs(batch.valid), axis=-1)
        margin = chosen - rejected
        loss = -(1 - self.smoothing) * jax.nn.log_sigmoid(margin) - self.smoothing * jax.nn.log_sigmoid(-margin)
        return {
            "loss": Mean.of(loss, real),
            "accuracy": Mean.of(margin > 0, real),
            "chosen": Mean.of(chosen, real),
            "rejected": Mean.of(rejected, real),
        }


def _pairs(x: Array) -> Array:
    """[B S] -> [B P 2]."""
    return x.reshape(x.shape[0], -1, 2)
