"""The contrastive head: one space for all modalities.  B rows   S samples   D width of a tower   E shared width"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mmjax.core.parameters import declare
from mmjax.nn.linear import Linear


class Contrastive(nn.Module):
    """Projects each modality's vector to E, normalises it, and carries the temperature and bias of the loss.

    scale = exp(learned log scale), at most `max_scale`, multiplies cosines; CLIP starts at 1/0.07 (arXiv 2103.00020,
    2.5), SigLIP at 10 with bias -10 (arXiv 2303.15343, section 3.2).
    """

    dim: int
    scale: float = 1 / 0.07
    max_scale: float = 100.0
    bias: float = 0.0
    project_bias: bool = False

    @nn.compact
    def __call__(self, pooled: Mapping[str, Float[Array, "B S D"]]) -> dict[str, Any]:
        embeddings = {}
        for name, x in pooled.items():
            y = Linear("bsd,de->bse", (self.dim,), self.project_bias, name=name)(x).astype(jnp.float32)
            # Not y / norm(y): the gradient of a norm is NaN at 0, where the vector of an absent modality may lie.
            embeddings[name] = y * jax.lax.rsqrt(jnp.maximum(jnp.sum(y * y, axis=-1, keepdims=True), 1e-12))
        log_scale = declare(self, "log_scale", nn.initializers.constant(math.log(self.scale)))
        bias = declare(self, "bias", nn.initializers.constant(self.bias))
        scale = jnp.exp(jnp.minimum(log_scale, math.log(self.max_scale)))
        return {"embeddings": embeddings, "scale": scale, "bias": bias}
