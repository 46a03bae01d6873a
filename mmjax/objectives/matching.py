"""Objective of the judgement whether two modalities belong together.  B rows"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import optax

from mmjax.core.batch import Batch
from mmjax.core.means import Mean


@dataclasses.dataclass(frozen=True)
class Matching:
    """Binary cross entropy over true pairs and hard negatives (ALBEF, arXiv 2107.07651, section 3.2); needs "matching"
    of `heads.matching.Matching`. Reports "accuracy", and "true" and "false": how often each kind was seen through."""

    def __call__(self, outputs: Mapping[str, Any], batch: Batch) -> dict[str, Mean]:
        logit, valid = outputs["matching"]["logit"], outputs["matching"]["valid"]
        truth = jnp.zeros_like(logit).at[:, 0].set(1.0)
        right = (logit > 0) == (truth > 0)
        return {
            "loss": Mean.of(optax.sigmoid_binary_cross_entropy(logit, truth), valid),
            "accuracy": Mean.of(right, valid),
            "true": Mean.of(right, valid & (truth > 0)),
            "false": Mean.of(right, valid & (truth == 0)),
        }
