"""A sliding window at the cost of the window, with places that see all (Longformer, arXiv 2004.05150).

B batch   H heads   G key-value heads   T places   K head width   w window   C places that see all, in a row
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mmjax.core.errors import UserError
from mmjax.core.tokens import Pattern, Places, visible
from mmjax.ops.attention_dense import See, cut, cut_places, in_chunks, join, seeing, weigh
from mmjax.ops.attention_rows import everywhere, in_order, in_step, looks_ahead


@dataclasses.dataclass(frozen=True)
class Sliding:
    """`Pattern(window=w)` in O(T w): each query is compared with the keys in its window only.

    leading: so many first places of each sample see the whole sample and are seen by it (section 3.1, "global
        attention"; subject to blocks, like everything).
    ahead: how far beyond itself a query looks at most; 0 for causal rows halves the work. None: as far as the window.
    samples: how many samples in a row the room for `leading` places is for.
    queries: how many are taken at a time.

    The result is always that of the visibility described. A row for which the short cut would not give it (not in
    order, positions that do not count up, more samples, something visible further ahead) makes the batch take the way
    through all keys, as do queries that are not the keys' places: a memory, or a cache while decoding.
    """

    leading: int = 0
    ahead: int | None = None
    samples: int = 8
    queries: int = 256

    def __call__(
        self, q, k, v, query: Places | None, key: Places | None, pattern: Pattern, scale: float, softcap: float | None
    ):
        if pattern.window is None:
            raise UserError("attention: Sliding needs a window; give pattern=Pattern(window=512), or another kernel")
        query, key = everywhere(query, key, q, k)
        see = self.see(pattern)

        def through_all(q, k, v):
            return in_chunks(seeing(see, key, k, v, scale, softcap), q, query, self.queries)

        def banded(q, k, v):
            return self._banded(q, k, v, query, pattern, scale, softcap)

        size, behind, ahead = self._reach(q.shape[2], pattern)
        if query is not key or 1 + behind + ahead >= -(-q.shape[2] // size):
            return through_all(q, k, v)
        return jax.lax.cond(self._fits(query, pattern), banded, through_all, q, k, v)

    def see(self, pattern: Pattern) -> See:
        """Who sees whom: the pattern, its window lifted from and for leading places."""

        def seen(query: Places, key: Places) -> Bool[Array, "B Q S"]:
            near = jnp.abs(query.position[:, :, None] - key.position[:, None, :]) < pattern.window
            lead = (query.position < self.leading)[:, :, None] | (key.position < self.leading)[:, None, :]
            return visible(query, key, dataclasses.replace(pattern, window=None)) & (near | lead)

        return seen

    def _reach(self, length: int, pattern: Pattern) -> tuple[int, int, int]:
        """Queries of a chunk, and how many chunks of keys before and after its own they look at: few wide chunks for a
        wide window, for each key is copied once for each chunk that looks at it."""
        back = pattern.window - 1
        size = min(length, max(self.queries, -(-back // 4)))
        front = back if self.ahead is None else min(back, self.ahead)
        return size, -(-back // size), -(-front // size)

    def _fits(self, places: Places, pattern: Pattern) -> Bool[Array, ""]:
        fits = in_order(places) & in_step(places)
        if self.ahead is not None and self.ahead < pattern.window - 1:
            fits &= ~looks_ahead(places, self.ahead)
        return jnp.all(fits & (jnp.sum(self._leads(places), axis=1) <= self.leading * self.samples))

    def _leads(self, places: Places) -> Bool[Array, "B T"]:
        return places.valid & (places.position < self.leading)

    def _banded(self, q, k, v, places: Places, pattern: Pattern, scale: float, softcap: float | None):
        length = q.shape[2]
        size, behind, ahead = self._reach(length, pattern)
        see, leads = self.see(pattern), self._leads(places)
        index = _first(leads, min(self.leading * self.samples, length))
        lead_k, lead_v, lead_places = _take(k, index), _take(v, index), _take_places(places, index)

        def near(chunks: Array, axis: int) -> Array:
            """[n .. size ..] -> [n .. (behind + 1 + ahead) size ..]: each chunk between its neighbours."""
            wide = jnp.pad(chunks, [(behind, ahead)] + [(0, 0)] * (chunks.ndim - 1))
            count = chunks.shape[0]
            return jnp.concatenate([wide[i : i + count] for i in range(behind + 1 + ahead)], axis=axis)

        @jax.checkpoint
        def one(part: tuple[Array, ...]) -> Array:
            q, k, v, query, key, key_leads = part
            seen = [see(query, key) & ~key_leads[:, None, :], see(query, lead_places)]
            keys, values = jnp.concatenate([k, lead_k], axis=2), jnp.concatenate([v, lead_v], axis=2)
            return weigh(q, keys, values, jnp.concatenate(seen, axis=2), scale, softcap)

        query = cut_places(places, size)
        keys = (near(cut(k, size, 2), 3), near(cut(v, size, 2), 3))
        key, key_leads = jax.tree.map(lambda x: near(x, 2), query), near(cut(leads, size, 1), 2)
        out = join(jax.lax.map(one, (cut(q, size, 2), *keys, query, key, key_leads)), length, 2)
        if not self.leading:
            return out
        wide = in_chunks(seeing(see, places, k, v, scale, softcap), _take(q, index), lead_places, self.queries)
        return jax.vmap(lambda x, i, y: x.at[:, i].set(y, mode="drop"))(out, index, wide)


def _first(chosen: Bool[Array, "B T"], count: int) -> Int[Array, "B C"]:
    """Indices of the first `count` chosen places of each row; T where there are fewer."""
    length = chosen.shape[1]
    return jax.vmap(lambda row: jnp.nonzero(row, size=count, fill_value=length)[0])(chosen)


def _take(x: Float[Array, "B N T K"], index: Int[Array, "B C"]) -> Float[Array, "B N C K"]:
    return jnp.take_along_axis(x, jnp.minimum(index, x.shape[2] - 1)[:, None, :, None], axis=2)


def _take_places(places: Places, index: Int[Array, "B C"]) -> Places:
    length = places.valid.shape[1]
    taken = jax.tree.map(lambda x: jnp.take_along_axis(x, jnp.minimum(index, length - 1), axis=1), places)
    return taken.replace(valid=taken.valid & (index < length))
