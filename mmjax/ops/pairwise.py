"""Losses over all pairs of a batch: which pairs count as what, and one entry point for every way to compute them.

B rows, E embedding width, K label columns

Gradients of the chunked and ring forms are computed beside the loss (`jax.custom_vjp`), so nothing of size B x B is
ever kept; related: Inf-CL (arXiv 2410.17243), and the ring of SigLIP (arXiv 2303.15343, section 3.3).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mmjax.core.batch import Batch
from mmjax.core.errors import UserError, unknown_name
from mmjax.core.means import Mean
from mmjax.core.pytrees import record
from mmjax.ops.pairwise_losses import Scalars, Sigmoid, Slopes, Softmax, accuracy
from mmjax.ops.pairwise_sweep import Automatic, Chunked, Execution, Full, Ring, Side, at_once, resolve

__all__ = ["Automatic", "Chunked", "Execution", "Full", "Pairs", "Relation", "Ring", "Sigmoid", "Softmax", "pairwise"]


@record
class Relation:
    """How the left of sample i relates to the right of sample j.

    No pair     where `left[i]` or `right[j]` is False: that sample lacks the modality.
    Positive    where `same` is equal. Distinct numbers: each sample matches itself alone.
    Ignored     where it is not positive but some column of `alike` is equal: neither pulled together nor pushed apart.
    Negative    every other pair.
    A code below 0 equals no other, its own included.
    """

    same: Int[Array, " B"]
    alike: Int[Array, "B K"]
    left: Bool[Array, " B"]
    right: Bool[Array, " B"]

    @classmethod
    def of(
        cls,
        left: Bool[Array, " B"],
        right: Bool[Array, " B"],
        same: Int[Array, " B"] | None = None,
        alike: Sequence[Int[Array, " B"]] = (),
    ) -> Relation:
        """From who is present, and codes; without `same` each sample matches itself alone."""
        rows = left.shape[0]
        codes = jnp.arange(rows, dtype=jnp.int32) if same is None else jnp.asarray(same, jnp.int32)
        columns = [jnp.asarray(code, jnp.int32) for code in alike]
        return cls(codes, jnp.stack(columns, 1) if columns else jnp.zeros((rows, 0), jnp.int32), left, right)

    @classmethod
    def labelled(
        cls,
        batch: Batch,
        left: Bool[Array, "*n"],
        right: Bool[Array, "*n"],
        same: str | None = None,
        alike: Sequence[str] = (),
    ) -> Relation:
        """By the batch's labels of these names, [B S]; a null sample is in no pair. Raises UserError for a label that
        the batch does not have, or that is more than one number per sample."""

        def code(name: str) -> Array:
            if name not in batch.labels:
                raise UserError(unknown_name("label", name, batch.labels))
            if batch.labels[name].ndim != 2:
                shape = batch.labels[name].shape
                raise UserError(f"label {name} is {shape}; pairs need one number per sample: [B S]")
            return batch.labels[name].reshape(-1)

        real = batch.valid.reshape(-1)
        both = (side.reshape(-1) & real for side in (left, right))
        return cls.of(*both, None if same is None else code(same), [code(name) for name in alike])

    def sides(self, left: Float[Array, "B E"], right: Float[Array, "B E"]) -> tuple[Side, Side]:
        """Embeddings with their codes. What is absent becomes zero: its numbers, even NaN, reach nothing."""

        def side(x: Array, valid: Array, nobody: int) -> Side:
            same, alike = (jnp.where(code < 0, nobody, code) for code in (self.same, self.alike))
            return Side(jnp.where(valid[:, None], x, 0), same, alike, valid)

        return side(left, self.left, -1), side(right, self.right, -2)


@record
class Pairs:
    """What a pairwise loss tells. Only `loss` has a gradient; it counts queries: rows and columns with a positive."""

    loss: Mean
    left_accuracy: Mean  # share of rows whose best column is a positive
    right_accuracy: Mean  # share of columns whose best row is a positive
    cosine: Mean  # of positive pairs


def pairwise(
    loss: Softmax | Sigmoid,
    left: Float[Array, "B E"],
    right: Float[Array, "B E"],
    scale: Float[Array, ""],
    bias: Float[Array, ""],
    relation: Relation,
    execution: Execution = Automatic(),
) -> Pairs:
    """The loss over all pairs of L2-normalised embeddings (any float format; float32 inside).

    Every execution gives the same numbers and the same gradients in `left`, `right`, `scale` and `bias` up to rounding.
    Raises UserError for shapes that do not pair up, and for a ring whose devices do not divide B."""
    if left.shape != right.shape or left.ndim != 2:
        raise UserError(f"pairwise: left {left.shape} and right {right.shape} must both be [B E]")
    scalars = Scalars(jnp.asarray(scale, jnp.float32), jnp.asarray(bias, jnp.float32))
    execution = resolve(execution, left.shape[0])
    if isinstance(execution, Full):
        return _told(loss, at_once, *relation.sides(left, right), scalars)
    return _fused(loss, execution, *relation.sides(left, right), scalars)


def _told(loss, sweep, left: Side, right: Side, scalars: Scalars) -> Pairs:
    return _pairs(loss, *loss.gather(sweep, left, right, scalars), scalars)


def _pairs(loss, rows, columns, scalars: Scalars) -> Pairs:
    queries = jnp.sum(rows.asks, dtype=jnp.float32) + jnp.sum(columns.asks, dtype=jnp.float32)
    cosine = Mean(jnp.sum(rows.drawn), jnp.sum(rows.positives))
    told = jax.lax.stop_gradient((accuracy(rows), accuracy(columns), cosine))
    return Pairs(Mean(loss.total(rows, columns, scalars), queries), *told)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _fused(loss, execution: Chunked | Ring, left: Side, right: Side, scalars: Scalars) -> Pairs:
    """Without a gradient asked for, the sweep that gathers is all there is."""
    return _told(loss, execution.sweep(), left, right, scalars)


def _fused_forward(loss, execution, left: Side, right: Side, scalars: Scalars):
    rows, columns, slopes = loss.slopes(execution.sweep(), left, right, scalars)
    return _pairs(loss, rows, columns, scalars), (slopes, jnp.zeros(0, left.x.dtype), jnp.zeros(0, right.x.dtype))


def _fused_backward(loss, execution, kept, cotangent: Pairs):
    slopes, *formats = kept
    slopes: Slopes = jax.tree.map(lambda x: x * cotangent.loss.total, slopes)
    left, right = (
        Side(x.astype(like.dtype), None, None, None)
        for x, like in zip((slopes.left, slopes.right), formats, strict=True)
    )
    return left, right, Scalars(slopes.scale, slopes.bias)


_fused.defvjp(_fused_forward, _fused_backward)
