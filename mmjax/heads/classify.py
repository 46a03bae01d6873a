"""Classes from vectors.  B rows   S samples of a row   D width   C classes"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from mmjax.core.parameters import slot
from mmjax.nn.linear import Linear
from mmjax.nn.norms import Identity


class Classify(nn.Module):
    """A score for each class (a probe, the head of ImageNet, answers of VQA). Gives {"logits": float32 [B S C]}. It
    starts at zero: every class alike, whatever the vectors are."""

    classes: int
    norm: nn.Module = slot(Identity)
    gain: float = 0.0

    @nn.compact
    def __call__(self, x: Float[Array, "B S D"]) -> dict[str, Float[Array, "B S C"]]:
        score = Linear("bsd,de->bse", (self.classes,), gain=self.gain, name="score")
        return {"logits": score(self.norm(x)).astype(jnp.float32)}
