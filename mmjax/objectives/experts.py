"""The objective that keeps experts evenly busy and their routers' logits small.

Reads what a model inside of `fusion.routed.WithLoad` gives: `load` {router: `ops.routing.Load`}.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from mmjax.core.batch import Batch
from mmjax.core.errors import UserError
from mmjax.core.means import Mean


@dataclasses.dataclass(frozen=True)
class EvenExperts:
    """even * (load-balance loss of Switch, arXiv 2101.03961, equation 4) + z * (router z-loss of ST-MoE, arXiv
    2202.08906, equation 5), the mean over tokens, layers and routers.

    Reports "balance" (1: even), "z", and "busiest": the busiest expert's share of the choices, times experts (1: even).
    Raises UserError when no router tells its load.
    """

    even: float = 1e-2
    z: float = 1e-3

    def __call__(self, outputs: Mapping[str, Any], batch: Batch) -> dict[str, Mean]:
        loads = outputs.get("load", {}).values()
        if not loads:
            raise UserError(
                "EvenExperts: the outputs hold no load of any router; the model needs `Routed` feed-forwards and must "
                "stand inside of mmjax.fusion.routed.WithLoad"
            )
        nothing = Mean.of(0.0, 0.0)
        balance, z = sum((load.balance() for load in loads), nothing), sum((load.z() for load in loads), nothing)
        loss = Mean(self.even * balance.total + self.z * z.total, z.count)
        return {"loss": loss, "balance": balance, "z": z, "busiest": sum((load.busiest() for load in loads), nothing)}
