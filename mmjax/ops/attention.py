"""Scaled dot-product attention behind one entry point.

B batch   H heads   G key-value heads (H is a multiple of G)   Q query places   S key places   K head width

A kernel is a frozen value that is called with arrays and places; `Auto` picks one by length. Platform kernels are added
as further values of this kind. No kernel but `Reference` holds a [Q S] array for all queries at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mmjax.core.tokens import Pattern, Places, visible

Kernel = Callable[..., Array]
Seen = Bool[Array, "B Q S"] | None


def _weigh(
    q: Float[Array, "B H Q K"], k: Float[Array, "B G S K"], v: Float[Array, "B G S K"], seen: Seen, scale: float
) -> Float[Array, "B H Q K"]:
    """Softmax attention over all S keys, in float32; a query that sees nothing gets zeros."""
    batch, heads, queries, width = q.shape
    grouped = q.reshape(batch, k.shape[1], heads // k.shape[1], queries, width)
    logits = jnp.einsum("bghqk,bgsk->bghqs", grouped, k, preferred_element_type=jnp.float32) * scale
    if seen is not None:
        seen = seen[:, None, None]
        logits = jnp.where(seen, logits, jnp.finfo(logits.dtype).min)
    weights = jax.nn.softmax(logits, axis=-1)
    if seen is not None:
        weights = jnp.where(seen, weights, 0.0)
    mixed = jnp.einsum("bghqs,bgsk->bghqk", weights.astype(v.dtype), v)
    return mixed.reshape(q.shape)


@dataclasses.dataclass(frozen=True)
class Reference:
    """Everything at once: O(Q S) memory. The truth that other kernels are tested against."""

    def __call__(self, q, k, v, query: Places | None, key: Places | None, pattern: Pattern, scale: float):
        seen = None if query is None else visible(query, key, pattern)
        return _weigh(q, k, v, seen, scale)


@dataclasses.dataclass(frozen=True)
class Chunked:
    """`queries` queries at a time, recomputed in the backward pass: O(queries S) memory, equal to `Reference`
    (Rabe and Staats 2021, arXiv 2112.05682, with whole rows so that no running maximum is needed)."""

    queries: int = 256

    def __call__(self, q, k, v, query: Places | None, key: Places | None, pattern: Pattern, scale: float):
        length = q.shape[2]
        size = min(self.queries, length)
        pad = -length % size
        chunks = (length + pad) // size

        def cut(x: Array, axis: int) -> Array:
            """[.. Q ..] -> [chunks .. size ..]; padded queries see nothing because their `valid` is False."""
            widths = [(0, pad if i == axis else 0) for i in range(x.ndim)]
            split = jnp.pad(x, widths).reshape(*x.shape[:axis], chunks, size, *x.shape[axis + 1 :])
            return jnp.moveaxis(split, axis, 0)

        @jax.checkpoint
        def one(part: tuple[Array, Places | None]) -> Array:
            q_part, q_places = part
            seen = None if q_places is None else visible(q_places, key, pattern)
            return _weigh(q_part, k, v, seen, scale)

        out = jax.lax.map(one, (cut(q, 2), None if query is None else jax.tree.map(lambda x: cut(x, 1), query)))
        return jnp.moveaxis(out, 0, 2).reshape(*q.shape[:2], length + pad, -1)[:, :, :length]


@dataclasses.dataclass(frozen=True)
class Auto:
    """`Reference` up to `dense` queries, `Chunked` beyond."""

    dense: int = 1024
    chunked: Chunked = Chunked()

    def __call__(self, q, k, v, query: Places | None, key: Places | None, pattern: Pattern, scale: float):
        kernel = Reference() if q.shape[2] <= self.dense else self.chunked
        return kernel(q, k, v, query, key, pattern, scale)


def attend(
    q: Float[Array, "B H Q K"],
    k: Float[Array, "B G S K"],
    v: Float[Array, "B G S K"],
    query: Places | None = None,
    key: Places | None = None,
    *,
    pattern: Pattern = Pattern(),
    scale: float | None = None,
    kernel: Kernel = Auto(),
) -> Float[Array, "B H Q K"]:
    """Attention from query places to key places (Vaswani et al. 2017, equation 1).

    Without places everything is visible. `key` defaults to `query` (self-attention). `scale` defaults to 1/sqrt(K).
    A query that may see no key returns zeros. G < H is grouped-query attention (arXiv 2305.13245)."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return kernel(q, k, v, query, query if key is None else key, pattern, scale)
