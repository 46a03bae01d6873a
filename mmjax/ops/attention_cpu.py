"""Attention in pieces that fit a CPU's caches.  B batch   H heads   G key-value heads   T, S places   K head width"""

from __future__ import annotations

import dataclasses

import jax
from jaxtyping import Array

from mmjax.core.tokens import Pattern, Places
from mmjax.ops.attention_dense import in_chunks, seeing, under


@dataclasses.dataclass(frozen=True)
class PerHead:
    """Exact attention, row by row and key-value head by head, `queries` queries at a time, recomputed in the backward
    pass. On devices that share rows or heads, other kernels are better: a loop over what is split moves data."""

    queries: int = 256

    def __call__(
        self, q, k, v, query: Places | None, key: Places | None, pattern: Pattern, scale: float, softcap: float | None
    ):
        def row(part: tuple) -> Array:
            q, k, v, query, key = part
            query, key = jax.tree.map(lambda x: x[None], (query, key))

            def head(part: tuple) -> Array:
                q, k, v = (x[None] for x in part)  # [1 R T K], [1 S K] twice
                look = seeing(under(pattern), key, k[:, None], v[:, None], scale, softcap)
                return in_chunks(look, q, query, self.queries)[0]

            return jax.lax.map(head, (q.reshape(k.shape[0], -1, *q.shape[1:]), k, v)).reshape(q.shape)

        return jax.lax.map(row, (q, k, v, query, key))
