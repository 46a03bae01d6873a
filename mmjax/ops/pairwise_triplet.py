"""Triplet losses over a batch: a margin between positives and negatives.  B rows, E embedding width

Dense: B x B cosines, split over the batch axes by the compiler; meant for batches of thousands, not of a million.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mmjax.core.means import Mean
from mmjax.ops.pairwise import Pairs, Relation
from mmjax.ops.pairwise_losses import Seen, accuracy
from mmjax.ops.pairwise_sweep import Block


@dataclasses.dataclass(frozen=True)
class Hardest:
    """Only the negative that is nearest to the query (VSE++, arXiv 1707.05612, eq. 6)."""

    def __call__(self, violation: Float[Array, "B B"]) -> Float[Array, " B"]:
        """[queries, candidates] -> one loss per query."""
        return jnp.max(violation, 1)


@dataclasses.dataclass(frozen=True)
class EveryNegative:
    """The sum over all negatives (arXiv 1707.05612, eq. 5)."""

    def __call__(self, violation: Float[Array, "B B"]) -> Float[Array, " B"]:
        """[queries, candidates] -> one loss per query."""
        return jnp.sum(violation, 1)


def triplet(
    left: Float[Array, "B E"],
    right: Float[Array, "B E"],
    relation: Relation,
    margin: float,
    mining: Hardest | EveryNegative,
) -> Pairs:
    """loss(query) = mining over negatives of max(0, margin + cosine(negative) - cosine(farthest positive)).

    Rows and columns both ask; a query counts when it has a positive and a negative."""
    block = Block.of(*relation.sides(left, right))
    losses = [
        _losses(block.cosine, block.positive, block.negative, margin, mining),
        _losses(block.cosine.T, block.positive.T, block.negative.T, margin, mining),
    ]
    rows, columns = (Seen.of(block, block.cosine, along) for along in (1, 0))
    cosine = Mean(jnp.sum(rows.drawn), jnp.sum(rows.positives))
    return Pairs(losses[0] + losses[1], *jax.lax.stop_gradient((accuracy(rows), accuracy(columns), cosine)))


def _losses(cosine: Array, positive: Array, negative: Array, margin: float, mining: Hardest | EveryNegative) -> Mean:
    asks = jnp.any(positive, 1) & jnp.any(negative, 1)
    farthest = jnp.min(jnp.where(positive, cosine, 2.0), 1)  # a cosine is at most 1
    violation = jnp.where(negative, jnp.maximum(margin + cosine - farthest[:, None], 0.0), 0.0)
    return Mean.of(mining(violation), asks)
