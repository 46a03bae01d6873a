"""Softmax and sigmoid losses over pairs, as visitors of a sweep: what they gather, and their slopes.

B rows, E embedding width, R rows and C columns of a block

A *query* is a row (looking for its columns) or a column (looking for its rows) that has at least one positive.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mmjax.core.means import Mean
from mmjax.core.pytrees import record
from mmjax.ops.pairwise_sweep import Block, Side, Sweep

FAR = -1e30  # stands for -inf where differences of two of them must stay finite


@record
class Scalars:
    """What turns a cosine into a logit: scale * cosine + bias, where there is a bias."""

    scale: Float[Array, ""]
    bias: Float[Array, ""]


@record
class Seen:
    """What each query has seen of its candidates so far."""

    nearest: Float[Array, " B"]  # best logit of a positive
    rival: Float[Array, " B"]  # best logit of a negative
    positives: Float[Array, " B"]  # how many
    drawn: Float[Array, " B"]  # sum of the positives' cosines
    mass: Float[Array, " B"]  # softmax: sum of exp(logit - peak); sigmoid: sum of the pairs' losses

    @classmethod
    def nothing(cls, side: Side) -> Seen:
        """Before the first block."""
        zero = jnp.zeros(side.valid.shape, jnp.float32)
        return cls(zero + FAR, zero + FAR, zero, zero, zero)

    @classmethod
    def of(cls, block: Block, logit: Float[Array, "R C"], along: int) -> Seen:
        """One block, without its mass, reduced over its columns (`along=1`) or its rows (0)."""
        best = jax.lax.stop_gradient(logit)
        nearest = jnp.max(jnp.where(block.positive, best, FAR), along)
        rival = jnp.max(jnp.where(block.negative, best, FAR), along)
        drawn = jnp.sum(jnp.where(block.positive, block.cosine, 0.0), along)
        return cls(nearest, rival, jnp.sum(block.positive, along, jnp.float32), drawn, jnp.zeros_like(drawn))

    @property
    def peak(self) -> Float[Array, " B"]:
        """The largest logit that counts."""
        return jnp.maximum(self.nearest, self.rival)

    @property
    def asks(self) -> Array:
        """Which of them are queries."""
        return self.positives > 0

    def with_mass(self, mass: Float[Array, " B"]) -> Seen:
        """The same, with another mass."""
        return dataclasses.replace(self, mass=mass)

    def merge(self, other: Seen) -> Seen:
        """Both, with masses added as they are."""
        return Seen(
            jnp.maximum(self.nearest, other.nearest),
            jnp.maximum(self.rival, other.rival),
            self.positives + other.positives,
            self.drawn + other.drawn,
            self.mass + other.mass,
        )


@record
class Slopes:
    """Gradients of a loss total."""

    left: Float[Array, "B E"]
    right: Float[Array, "B E"]
    scale: Float[Array, ""]
    bias: Float[Array, ""]

    @classmethod
    def of(cls, left: Side, rows: Array, columns: Array, scalars: Scalars, bias: Array) -> Slopes:
        """From the embeddings' gradients with respect to *logits*: those in cosines are `scale` times as large, and the
        slope in the scale, sum over pairs of slope x cosine, is the inner product of rows and their gradient."""
        return cls(rows * scalars.scale, columns * scalars.scale, jnp.vdot(left.x.astype(jnp.float32), rows), bias)


def no_gradient(side: Side) -> Float[Array, "B E"]:
    """Where a gradient starts to be gathered."""
    return jnp.zeros(side.x.shape, jnp.float32)


@dataclasses.dataclass(frozen=True)
class Softmax:
    """InfoNCE in both directions; several positives of a query share its loss equally.

    loss(query) = log sum_{candidates} exp(logit) - mean_{positives} logit; a bias would cancel: logit = scale * cosine.
    One positive: CLIP (arXiv 2103.00020); several: L_out of supervised contrastive learning (arXiv 2004.11362, eq. 2).
    """

    def gather(self, sweep: Sweep, left: Side, right: Side, scalars: Scalars) -> tuple[Seen, Seen]:
        """One sweep: logsumexp and mean positive of each row and column, brought forward block by block."""
        return sweep(self._gather_block, left, right, Seen.nothing(left), Seen.nothing(right), scalars)

    def total(self, rows: Seen, columns: Seen, scalars: Scalars) -> Array:
        """Sum of the losses of all queries."""
        return sum(jnp.sum(self._losses(seen, scalars)) for seen in (rows, columns))

    def slopes(self, sweep: Sweep, left: Side, right: Side, scalars: Scalars) -> tuple[Seen, Seen, Slopes]:
        """Two sweeps: what normalises each query has to be known before the first slope is."""
        rows, columns = self.gather(sweep, left, right, scalars)
        starts = (no_gradient(left), *self._norms(rows)), (no_gradient(right), *self._norms(columns))
        (of_left, *_), (of_right, *_) = sweep(self._slope_block, left, right, *starts, scalars)
        slopes = Slopes.of(left, of_left, of_right, scalars, jnp.zeros((), jnp.float32))
        return rows, columns, slopes

    @staticmethod
    def _gather_block(block: Block, rows: Seen, columns: Seen, scalars: Scalars) -> tuple[Seen, Seen]:
        logit = scalars.scale * block.cosine
        counted = block.positive | block.negative

        def forward(seen: Seen, along: int) -> Seen:
            new = seen.merge(Seen.of(block, logit, along))
            # Masked before exp: above the peak it could overflow, and its gradient with it.
            weight = jnp.exp(jnp.where(counted, logit - jnp.expand_dims(new.peak, along), FAR))
            return new.with_mass(seen.mass * jnp.exp(seen.peak - new.peak) + jnp.sum(weight, along))

        return forward(rows, 1), forward(columns, 0)

    @staticmethod
    def _norms(seen: Seen) -> tuple[Array, Array]:
        """logsumexp of each query (beyond reach where there is none, so that its weights are 0); 1 / positives or 0."""
        mass, positives = (jnp.where(seen.asks, x, 1.0) for x in (seen.mass, seen.positives))
        return jnp.where(seen.asks, jnp.log(mass) + seen.peak, -FAR), seen.asks / positives

    @staticmethod
    def _losses(seen: Seen, scalars: Scalars) -> Float[Array, " B"]:
        norm, share = Softmax._norms(seen)
        return jnp.where(seen.asks, norm - scalars.scale * seen.drawn * share, 0.0)

    @staticmethod
    def _slope_block(block: Block, rows: Any, columns: Any, scalars: Scalars) -> tuple[Any, Any]:
        (of_left, row_norm, row_share), (of_right, column_norm, column_share) = rows, columns
        logit = scalars.scale * block.cosine
        weight = jnp.exp(logit - row_norm[:, None]) + jnp.exp(logit - column_norm)
        slope = jnp.where(block.positive | block.negative, weight, 0.0)
        slope = slope - jnp.where(block.positive, row_share[:, None] + column_share, 0.0)
        left, right = block.pull(slope)
        return (of_left + left, row_norm, row_share), (of_right + right, column_norm, column_share)


@dataclasses.dataclass(frozen=True)
class Sigmoid:
    """A yes-or-no decision on each pair (SigLIP, arXiv 2303.15343, eq. 1).

    loss(query) = sum_{candidates} log(1 + exp(-+ logit)), + for negatives: each pair belongs to its row and its column.
    """

    def gather(self, sweep: Sweep, left: Side, right: Side, scalars: Scalars) -> tuple[Seen, Seen]:
        """One sweep."""
        return sweep(self._gather_block, left, right, Seen.nothing(left), Seen.nothing(right), scalars)

    def total(self, rows: Seen, columns: Seen, scalars: Scalars) -> Array:
        """Sum of all pairs' losses, once for the rows and once for the columns."""
        return 2 * jnp.sum(rows.mass)

    def slopes(self, sweep: Sweep, left: Side, right: Side, scalars: Scalars) -> tuple[Seen, Seen, Slopes]:
        """One sweep: a pair's slope depends on that pair alone."""
        starts = (Seen.nothing(left), no_gradient(left), jnp.zeros(left.valid.shape, jnp.float32))
        (rows, of_left, of_bias), (columns, of_right) = sweep(
            self._slope_block, left, right, starts, (Seen.nothing(right), no_gradient(right)), scalars
        )
        return rows, columns, Slopes.of(left, of_left, of_right, scalars, jnp.sum(of_bias))

    @staticmethod
    def _gather_block(block: Block, rows: Seen, columns: Seen, scalars: Scalars) -> tuple[Seen, Seen]:
        logit, loss, _ = Sigmoid._decide(block, scalars)
        seen = Seen.of(block, logit, 1).with_mass(jnp.sum(loss, 1))
        return rows.merge(seen), columns.merge(Seen.of(block, logit, 0))

    @staticmethod
    def _slope_block(block: Block, rows: Any, columns: Any, scalars: Scalars) -> tuple[Any, Any]:
        (row_seen, of_left, of_bias), (column_seen, of_right) = rows, columns
        row_seen, column_seen = Sigmoid._gather_block(block, row_seen, column_seen, scalars)
        slope = Sigmoid._decide(block, scalars)[2]
        left, right = block.pull(slope)
        return (row_seen, of_left + left, of_bias + jnp.sum(slope, 1)), (column_seen, of_right + right)

    @staticmethod
    def _decide(block: Block, scalars: Scalars) -> tuple[Array, Array, Array]:
        """Logit, loss and slope of each pair; the slope is that of twice the loss (row's and column's)."""
        logit = scalars.scale * block.cosine + scalars.bias
        wrong = jnp.where(block.positive, -logit, logit)  # how strongly the logit says the wrong thing
        counted, small = block.positive | block.negative, jnp.exp(-jnp.abs(wrong))
        loss = jnp.where(counted, jnp.maximum(wrong, 0.0) + jnp.log1p(small), 0.0)
        chance = jnp.where(wrong > 0, 1.0, small) / (1.0 + small)  # sigmoid(wrong)
        return logit, loss, jnp.where(counted, jnp.where(block.positive, -2.0, 2.0) * chance, 0.0)


def accuracy(seen: Seen) -> Mean:
    """Share of queries whose best candidate is a positive."""
    return Mean.of(seen.nearest > seen.rival, seen.asks)
