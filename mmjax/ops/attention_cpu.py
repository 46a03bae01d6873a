"""Attention in pieces that fit a CPU's caches.  B batch   H heads   G key-value heads   T, S places   K head width"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from mmjax.core.tokens import Pattern, Places
from mmjax.ops.attention_dense import cut, cut_places, join, under, weigh


@dataclasses.dataclass(frozen=True)
class PerHead:
    """Exact attention, row by row and head by head, `queries` queries at a time, recomputed in the backward pass."""

    queries: int = 256

    def __call__(
        self, q, k, v, query: Places | None, key: Places | None, pattern: Pattern, scale: float, softcap: float | None
    ):
        groups, length = k.shape[1], q.shape[2]
        size = min(self.queries, length)
        see = under(pattern)

        def row(part: tuple) -> jax.Array:
            q, k, v, query, key = part

            def chunk(part: tuple) -> jax.Array:
                q, query = part
                seen = None if query is None else see(_one(query), _one(key))

                @jax.checkpoint
                def head(part: tuple) -> jax.Array:
                    q, k, v = (x[None] for x in part)
                    return weigh(q, k[:, None], v[:, None], seen, scale, softcap)[0]

                return jax.lax.map(head, (q, k, v))

            grouped = q.reshape(groups, -1, *q.shape[1:])
            places = None if query is None else jax.tree.map(lambda x: x[:, 0], cut_places(_one(query), size))
            out = join(jax.lax.map(chunk, (cut(grouped, size, 2), places)), length, 2)
            return out.reshape(q.shape)

        return jax.lax.map(row, (q, k, v, query, key))


def _one(places: Places) -> Places:
    """The places of one row as a batch of one."""
    return jax.tree.map(lambda x: jnp.asarray(x)[None], places)
