"""Softmax attention over all keys, and a way to take queries a few at a time: what all exact kernels are made of.

B batch   H heads   G key-value heads (H is a multiple of G)   Q query places   S key places   K head width
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mmjax.core.tokens import Pattern, Places, visible

See = Callable[[Places, Places], Bool[Array, "B Q S"]]
"""Who sees whom, from query places to key places."""


def weigh(
    q: Float[Array, "B H Q K"],
    k: Float[Array, "B G S K"],
    v: Float[Array, "B G S K"],
    seen: Bool[Array, "B Q S"] | None,
    scale: float,
    softcap: float | None,
) -> Float[Array, "B H Q K"]:
    """Softmax attention over all S keys, in float32; a query that sees nothing gets zeros."""
    batch, heads, queries, width = q.shape
    grouped = q.reshape(batch, k.shape[1], heads // k.shape[1], queries, width)
    if queries == 1 and heads == k.shape[1]:
        # Keys first: XLA:CPU copies the second factor transposed, and of the two the keys are the longer. Keys that
        # several heads share come from the cache as they are liked (`nn.cache.Kept`).
        logits = jnp.moveaxis(jnp.einsum("bgsk,bghqk->bgshq", k, grouped, preferred_element_type=jnp.float32), 2, -1)
    else:
        logits = jnp.einsum("bghqk,bgsk->bghqs", grouped, k, preferred_element_type=jnp.float32)
    logits = logits * scale
    if softcap is not None:
        logits = softcap * jnp.tanh(logits / softcap)
    if seen is not None:
        seen = seen[:, None, None]
        logits = jnp.where(seen, logits, jnp.finfo(logits.dtype).min)
    weights = jax.nn.softmax(logits, axis=-1)
    if seen is not None:
        weights = jnp.where(seen, weights, 0.0)
    mixed = jnp.einsum("bghqs,bgsk->bghqk", weights.astype(v.dtype), v)
    return mixed.reshape(q.shape)


def cut(x: Array, size: int, axis: int) -> Array:
    """[.. T ..] -> [chunks .. size ..]; the last chunk is filled with zeros, so that no place there is valid."""
    pad = -x.shape[axis] % size
    x = jnp.pad(x, [(0, pad if i == axis else 0) for i in range(x.ndim)])
    split = x.reshape(*x.shape[:axis], -1, size, *x.shape[axis + 1 :])
    return jnp.moveaxis(split, axis, 0)


def join(chunks: Array, length: int, axis: int) -> Array:
    """The inverse of `cut`."""
    whole = jnp.moveaxis(chunks, 0, axis)
    whole = whole.reshape(*whole.shape[:axis], -1, *whole.shape[axis + 2 :])
    return jax.lax.slice_in_dim(whole, 0, length, axis=axis)


def cut_places(places: Places | None, size: int) -> Places | None:
    """Places [B T] -> [chunks B size]."""
    return jax.tree.map(lambda x: cut(x, size, 1), places)


def in_chunks(
    one: Callable[[Array, Places | None], Array], q: Float[Array, "B H Q K"], query: Places | None, size: int
) -> Float[Array, "B H Q K"]:
    """`one(queries, their places)` for `size` queries at a time, recomputed in the backward pass."""
    length = q.shape[2]
    size = min(size, length)
    run = jax.checkpoint(lambda part: one(*part))
    return join(jax.lax.map(run, (cut(q, size, 2), cut_places(query, size))), length, 2)


def seeing(see: See, key: Places | None, k: Array, v: Array, scale: float, softcap: float | None) -> Callable:
    """Attention to all keys under `see`, as a function of queries and their places (for `in_chunks`)."""
    return lambda q, query: weigh(q, k, v, None if query is None else see(query, key), scale, softcap)


def under(pattern: Pattern) -> See:
    """`visible` under a pattern."""
    return lambda query, key: visible(query, key, pattern)
