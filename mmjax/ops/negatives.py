"""Hard negatives from a batch: pairs that look alike but do not belong together.  B rows   E embedding width"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mmjax.core.pytrees import record
from mmjax.ops.pairwise import Relation
from mmjax.ops.pairwise_sweep import Block


@record
class Negatives:
    """For each left a right that is not its own, and for each right a left; False where the batch has none."""

    right: Int[Array, " B"]
    has_right: Bool[Array, " B"]
    left: Int[Array, " B"]
    has_left: Bool[Array, " B"]


def hard_negatives(
    key: jax.Array,
    left: Float[Array, "B E"],
    right: Float[Array, "B E"],
    scale: Float[Array, ""],
    relation: Relation,
) -> Negatives:
    """Drawn with probability proportional to exp(scale * cosine) among the negatives of `relation` (ALBEF, arXiv
    2107.07651, section 3.2): never a positive, never an ignored pair, never an absent modality. No gradient flows."""
    block = Block.of(*relation.sides(left, right))
    logit = jnp.where(block.negative, jax.lax.stop_gradient(scale * block.cosine), -jnp.inf)
    rows, columns = jax.random.split(key)
    return Negatives(
        jax.random.categorical(rows, logit, axis=1),
        block.negative.any(1),
        jax.random.categorical(columns, logit, axis=0),
        block.negative.any(0),
    )
