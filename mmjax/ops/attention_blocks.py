"""Attention between chosen blocks of places (BigBird, arXiv 2007.14062; or any layout that is given).

B batch   H heads   G key-value heads   T places   K head width   n blocks of c places   r key blocks that a block sees

Blocks are counted inside of each sample, by position, so that packing changes nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from mmjax.core.errors import UserError
from mmjax.core.pytrees import record
from mmjax.core.tokens import Pattern, Places, visible
from mmjax.ops.attention_dense import See, in_chunks, join, seeing, weigh
from mmjax.ops.attention_rows import everywhere


class Blocks(Protocol):
    """Which key blocks each query block of a sample sees. The first `leading` blocks see all."""

    leading: int

    def of(self, block: int) -> tuple[int, ...]:
        """Those that block number `block` sees, in order, when it is not leading."""

    def check(self, blocks: int) -> None:
        """Raises UserError when samples of so many blocks are more than the layout is for."""


@dataclasses.dataclass(frozen=True)
class BigBird:
    """A window of blocks, leading blocks that see all and are seen by all, and random ones (section 2, "ITC").

    window: blocks, odd: itself and as many on each side.   random: drawn among the blocks before the window, so that a
    draw depends on `seed` and on the number of the block, not on the length of the sample."""

    window: int = 3
    leading: int = 1
    random: int = 2
    seed: int = 0

    def of(self, block: int) -> tuple[int, ...]:
        """Leading, random and neighbouring blocks."""
        side = self.window // 2
        near = set(range(max(block - side, 0), block + side + 1)) | set(range(self.leading))
        others = sorted(set(range(block)) - near)
        rng = np.random.default_rng([self.seed, block])
        drawn = rng.choice(others, min(self.random, len(others)), replace=False).tolist() if others else []
        return tuple(sorted(near | set(drawn)))

    def check(self, blocks: int) -> None:
        """Samples may have any length; the window must have a middle."""
        if self.window < 1 or self.window % 2 == 0:
            raise UserError(f"BigBird: the window must be an odd number of blocks, such as 3; got {self.window}")


@dataclasses.dataclass(frozen=True)
class Given:
    """Row i lists the key blocks that query block i sees. The longest row is what all rows cost."""

    rows: tuple[tuple[int, ...], ...]
    leading: int = 0

    def of(self, block: int) -> tuple[int, ...]:
        """The row of the list."""
        return tuple(sorted(set(self.rows[block])))

    def check(self, blocks: int) -> None:
        """Every block needs a row."""
        if blocks > len(self.rows):
            raise UserError(
                f"the block layout has {len(self.rows)} rows, but a row of tokens may hold {blocks} blocks; give a "
                "longer layout or larger blocks"
            )


@dataclasses.dataclass(frozen=True)
class BlockSparse:
    """Block-sparse attention in O(T r c).

    size: places of a block.   samples: how many samples in a row there is room for (each costs up to a block).
    queries: how many are taken at a time where all keys are looked at.

    The result is always that of `see`. Batches with more samples in a row, or whose places do not count their samples,
    are computed through all keys, as are queries that are not the keys' places: a memory, or a cache while decoding.
    """

    layout: Blocks = BigBird()
    size: int = 64
    samples: int = 8
    queries: int = 256

    def __call__(
        self, q, k, v, query: Places | None, key: Places | None, pattern: Pattern, scale: float, softcap: float | None
    ):
        query, key = everywhere(query, key, q, k)
        blocks = -(-max(q.shape[2], k.shape[2]) // self.size)
        self.layout.check(blocks)
        see = self.see(pattern, blocks)

        def through_all(q, k, v):
            return in_chunks(seeing(see, key, k, v, scale, softcap), q, query, self.queries)

        if query is not key:
            return through_all(q, k, v)
        laid = _Laid.of(query, self.size, self.samples)

        def sparse(q, k, v):
            return self._sparse(laid, q, k, v, see, lambda *x: weigh(*x, scale, softcap))

        return jax.lax.cond(laid.fits, sparse, through_all, q, k, v)

    def see(self, pattern: Pattern, blocks: int) -> See:
        """Who sees whom: the pattern, between blocks that the layout joins; `blocks` is how many a sample may have."""
        table = np.zeros((blocks, blocks), bool)
        for block in range(blocks):
            seen = range(blocks) if block < self.layout.leading else self.layout.of(block)
            table[block, [i for i in seen if i < blocks]] = True

        def seen(query: Places, key: Places) -> Bool[Array, "B Q S"]:
            row, column = query.position[:, :, None] // self.size, key.position[:, None, :] // self.size
            return visible(query, key, pattern) & jnp.asarray(table).at[row, column].get(mode="fill", fill_value=False)

        return seen

    def _sparse(self, laid: _Laid, q, k, v, see: See, weigh: Callable[..., Array]) -> Array:
        blocks, places = laid.count, laid.places
        q, k, v = (laid.lay(x) for x in (q, k, v))  # [B . n*c K]
        rows = [self.layout.of(block) for block in range(blocks - self.samples)]  # no sample has more
        table = np.full((len(rows), max(map(len, rows))), -1)
        for block, row in enumerate(rows):
            table[block, : len(row)] = row
        local = jnp.asarray(table)[jnp.minimum(laid.number, len(rows) - 1)]  # [B n r], blocks of the sample
        sought = local + (jnp.arange(blocks) - laid.number)[..., None]
        there = (local >= 0) & (sought < blocks)
        sought = jnp.clip(sought, 0, blocks - 1)

        def sides(x: Array) -> Array:
            """Key blocks beside each query block: [B . n*c ..] -> [n B . r*c ..]."""
            split = x.reshape(*x.shape[:2], blocks, self.size, *x.shape[3:])
            taken = jax.vmap(lambda row, index: row[:, index])(split, sought)  # [B . n r c ..]
            return jnp.moveaxis(taken.reshape(*x.shape[:2], blocks, -1, *x.shape[3:]), 2, 0)

        def cut(x: Array, axis: int) -> Array:
            return jnp.moveaxis(x.reshape(*x.shape[:axis], blocks, self.size, *x.shape[axis + 1 :]), axis, 0)

        @jax.checkpoint
        def one(part: tuple[Array, ...]) -> Array:
            q, k, v, query, key, there = part
            return weigh(q, k, v, see(query, key) & jnp.repeat(there, self.size, axis=1)[:, None, :])

        query = jax.tree.map(lambda x: cut(x, 1), places)
        key = jax.tree.map(lambda x: sides(x[:, None])[:, :, 0], places)
        out = jax.lax.map(one, (cut(q, 2), sides(k), sides(v), query, key, jnp.moveaxis(there, 1, 0)))
        out = join(out, blocks * self.size, 2)
        if self.layout.leading:
            lead = places.valid & (places.position < self.layout.leading * self.size)
            out = self._leading(lead, out, q, places, seeing_all(weigh, see, places, k, v))
        return laid.back(out)

    def _leading(self, lead: Bool[Array, "B n*c"], out: Array, q: Array, places: Places, one: Callable) -> Array:
        """The outputs with those of leading places, which look at all keys."""
        room = min(self.samples * self.layout.leading * self.size, lead.shape[1])
        index = jax.vmap(lambda row: jnp.nonzero(row, size=room, fill_value=lead.shape[1])[0])(lead)
        near = jnp.minimum(index, lead.shape[1] - 1)
        chosen = jax.tree.map(lambda x: jnp.take_along_axis(x, near, axis=1), places)
        chosen = chosen.replace(valid=chosen.valid & (index < lead.shape[1]))
        wide = in_chunks(one, jnp.take_along_axis(q, near[:, None, :, None], axis=2), chosen, self.queries)
        return jax.vmap(lambda x, i, y: x.at[:, i].set(y, mode="drop"))(out, index, wide)


def seeing_all(weigh: Callable[..., Array], see: See, key: Places, k: Array, v: Array) -> Callable:
    """Attention to all of the keys, as a function of queries and their places."""
    return lambda q, query: weigh(q, k, v, see(query, key))


@record
class _Laid:
    """A row laid out anew, each sample from the beginning of a block."""

    to: Int[Array, "B T"]  # where each place goes; n*c where it is dropped
    source: Int[Array, "B n*c"]  # which place lies there
    places: Places  # [B n*c]
    number: Int[Array, "B n"]  # of each block in its sample
    fits: Bool[Array, ""]

    @classmethod
    def of(cls, places: Places, size: int, samples: int) -> _Laid:
        """Room for `samples` samples: T / c blocks, and one more for each."""
        rows, length = places.valid.shape
        count = -(-length // size) + samples
        mine = places.valid[:, None] & (places.segment[:, None] == jnp.arange(1, samples + 1)[:, None])  # [B s T]
        spans = jnp.max(jnp.where(mine, places.position[:, None] + 1, 0), axis=2)
        ends = jnp.cumsum(-(-spans // size), axis=1)  # in blocks
        starts = jnp.pad(ends[:, :-1], ((0, 0), (1, 0)))
        owner = jnp.clip(places.segment - 1, 0, samples - 1)
        to = jnp.take_along_axis(starts, owner, axis=1) * size + places.position
        to = jnp.where(places.valid, to, count * size)
        row = jnp.arange(rows)[:, None]
        taken = jnp.zeros((rows, count * size), jnp.int32).at[row, to].add(1, mode="drop")
        source = jnp.zeros((rows, count * size), jnp.int32).at[row, to].set(jnp.arange(length), mode="drop")
        laid = jax.tree.map(lambda x: jnp.take_along_axis(x, source, axis=1), places).replace(valid=taken == 1)
        index = jnp.arange(count)
        before = jnp.max(jnp.where(starts[:, None] <= index[:, None], starts[:, None], 0), axis=2)
        known = jnp.where(places.valid, (places.segment >= 1) & (places.segment <= samples), True)
        known &= ~places.valid | ((places.position >= 0) & (places.position < length))
        fits = jnp.all(known) & jnp.all(taken <= 1) & jnp.all(ends[:, -1] <= count)
        return cls(to, source, laid, index - before, fits)

    @property
    def count(self) -> int:
        """n."""
        return self.number.shape[1]

    def lay(self, x: Array) -> Array:
        """[B . T K] -> [B . n*c K]."""
        return jnp.take_along_axis(x, self.source[:, None, :, None], axis=2)

    def back(self, x: Array) -> Array:
        """[B . n*c K] -> [B . T K]; zeros for places that are not valid."""
        there = jnp.minimum(self.to, x.shape[2] - 1)
        kept = (self.to < x.shape[2])[:, None, :, None]
        return jnp.where(kept, jnp.take_along_axis(x, there[:, None, :, None], axis=2), 0)
