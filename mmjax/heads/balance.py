"""Learned weights of several objectives."""

from __future__ import annotations

from typing import Any

import flax.linen as nn

from mmjax.core.batch import Batch
from mmjax.core.errors import UserError
from mmjax.core.parameters import declare
from mmjax.nn.around import Around


class Balance(Around):
    """A model with a learned log-variance for each objective of `names` (arXiv 1705.07115, section 3.2), which
    `objectives.balance.Balanced` reads. Wraps any model from outside: its parameters keep their names; added are
    `log_variance_<name>` and the output "balance" {name: scalar}."""

    names: tuple[str, ...]
    start: float = 0.0

    def setup(self):
        nn.share_scope(self, self.model)

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool = False) -> dict[str, Any]:
        outputs = dict(self.model(batch, train=train))
        if "balance" in outputs:
            raise UserError("this model's objectives are balanced already")
        start = nn.initializers.constant(self.start)
        return outputs | {"balance": {name: declare(self, f"log_variance_{name}", start) for name in self.names}}
