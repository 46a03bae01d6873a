"""Models around models.  B rows   n new tokens   V vocabulary"""

from __future__ import annotations

import flax.linen as nn
from jaxtyping import Array, Float, Int

from mmjax.core.batch import Batch
from mmjax.core.tokens import Fused, Live, Tokens


class Around(nn.Module):
    """What a wrapper of a whole model leaves as it is: the model inside decodes (see `mmjax.decoding.state`)."""

    model: nn.Module

    @property
    def longest(self) -> int | None:
        """How long a row may become; None: as long as you like."""
        return getattr(self.model, "longest", None)

    def fuse(self, batch: Batch, *, train: bool = False) -> Fused:
        """What the model inside makes of a batch before its stack."""
        return self.model.fuse(batch, train=train)

    def prefill(self, fused: Fused) -> Float[Array, "B V"]:
        """What it says after the last place of each row."""
        return self.model.prefill(fused)

    def step(self, ids: Int[Array, "B n"], places: Live, memory: Tokens | None = None) -> Float[Array, "B n V"]:
        """What it says after each of `ids`."""
        return self.model.step(ids, places, memory)
