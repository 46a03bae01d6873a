"""Several objectives whose weights are learned."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from mmjax.core.batch import Batch
from mmjax.core.errors import UserError, unknown_name
from mmjax.core.means import Mean
from mmjax.core.protocols import Objective


@dataclasses.dataclass(frozen=True)
class Balanced:
    """sum of exp(-s) * loss + s / 2 over `objectives`, where s is the learned log-variance of each: what is noisy
    counts less (homoscedastic uncertainty, arXiv 1705.07115, equation 10). Losses named in `distances` are squared
    differences and count half as much, as there.

    One objective of an experiment, `{"all": weighted(1.0, Balanced({...}))}`; needs the output "balance" of
    `heads.balance.Balance`. An objective that finds nothing to count in a batch adds nothing, its s neither. Reports
    everything its parts report as "name_what", and "name_weight". Raises UserError when "balance" lacks a name."""

    objectives: Mapping[str, Objective]
    distances: tuple[str, ...] = ()

    def __post_init__(self):
        for name in self.distances:
            if name not in self.objectives:
                raise UserError("Balanced: " + unknown_name("objective", name, self.objectives))

    def __call__(self, outputs: Mapping[str, Any], batch: Batch) -> dict[str, Mean]:
        total, told = jnp.zeros(()), {}
        for name, objective in self.objectives.items():
            if name not in outputs["balance"]:
                raise UserError("Balanced: " + unknown_name("log-variance", name, outputs["balance"]))
            means, spread = objective(outputs, batch), outputs["balance"][name]
            weight = jnp.exp(-spread) * (0.5 if name in self.distances else 1.0)
            loss = means["loss"]
            total += jnp.where(loss.count > 0, weight * loss.value + spread / 2, 0.0)
            told |= {f"{name}_{what}": mean for what, mean in means.items()} | {f"{name}_weight": Mean.of(weight)}
        return {"loss": Mean.of(total)} | told
