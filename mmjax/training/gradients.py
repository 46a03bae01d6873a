"""The loss and its gradient, whole or in micro-batches, exact for every objective.

B rows   K micro-batches   P parameters
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Forward = Callable[[Any, Any, jax.Array], Any]  # (params, batch, rng) -> outputs
Loss = Callable[[Any, Any], tuple[jax.Array, Any]]  # (outputs, batch) -> (loss, what to report)


def loss_and_gradient(
    forward: Forward, loss: Loss, params: Any, batch: Any, rng: jax.Array, parts: int
) -> tuple[tuple[jax.Array, Any], Any]:
    """((loss, report), gradient) of `loss(forward(params, batch, rng), batch)`, in `parts` micro-batches."""
    if parts == 1:
        return jax.value_and_grad(lambda p: loss(forward(p, batch, rng), batch), has_aux=True)(params)
    return _cached(forward, loss, params, batch, rng, parts)


def _cached(forward: Forward, loss: Loss, params: Any, batch: Any, rng: jax.Array, parts: int) -> Any:
    """Two passes over the micro-batches (GradCache, arXiv 2101.06983): the first computes the outputs only, on which
    the objectives, pairwise ones too, see the whole batch; the second carries their cotangents back to the parameters.
    Costs one forward pass more and keeps the activations of one micro-batch."""
    batches = jax.tree.map(lambda x: _deal(x, parts), batch)
    keys = jax.vmap(lambda k: jax.random.fold_in(rng, k))(jnp.arange(parts))

    def run(_, part):
        return None, forward(params, *part)

    outputs = jax.tree.map(_join, jax.lax.scan(run, None, (batches, keys))[1])
    leaves, tree = jax.tree.flatten(outputs)
    smooth = [jnp.issubdtype(x.dtype, jnp.inexact) for x in leaves]

    def on_outputs(floats):
        rest = iter(floats)
        mixed = [next(rest) if yes else x for yes, x in zip(smooth, leaves, strict=True)]
        return loss(jax.tree.unflatten(tree, mixed), batch)

    result, cotangents = jax.value_and_grad(on_outputs, has_aux=True)(_where(smooth, leaves))
    cotangents = [_first(x, parts) if x.ndim == 0 else _deal(x, parts) for x in cotangents]

    def back(total, part):
        *inputs, cotangent = part
        _, vjp = jax.vjp(lambda p: _where(smooth, jax.tree.leaves(forward(p, *inputs))), params)
        return jax.tree.map(jnp.add, total, vjp(cotangent)[0]), None

    gradient, _ = jax.lax.scan(back, jax.tree.map(jnp.zeros_like, params), (batches, keys, cotangents))
    return result, gradient


def _deal(x: jax.Array, parts: int) -> jax.Array:
    """[B ...] -> [K B/K ...], micro-batch k holding rows k::K: each device deals the rows it has."""
    return jnp.swapaxes(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 0, 1)


def _join(x: jax.Array) -> jax.Array:
    """The inverse of `_deal` for stacked outputs; a scalar is the model's own, equal in all parts: the first."""
    return x[0] if x.ndim == 1 else jnp.swapaxes(x, 0, 1).reshape(x.shape[0] * x.shape[1], *x.shape[2:])


def _first(cotangent: jax.Array, parts: int) -> jax.Array:
    """The cotangent of a scalar goes back through the part it was taken from."""
    return jnp.zeros((parts,), cotangent.dtype).at[0].set(cotangent)


def _where(chosen: list[bool], items: list[Any]) -> list[Any]:
    return [item for yes, item in zip(chosen, items, strict=True) if yes]
