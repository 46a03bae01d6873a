"""Attention on a TPU by JAX's splash kernels, for packed rows of any blocks.

B batch   H heads   G key-value heads   T places   K head width   n tiles of c places
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import BlockSizes, SegmentIds
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_mask_info import MaskInfo
from jaxtyping import Array, Int

from mmjax.core.errors import UserError
from mmjax.core.tokens import Pattern, Places
from mmjax.ops.attention_dense import in_chunks, seeing, under
from mmjax.ops.attention_flash import Flash
from mmjax.ops.attention_rows import by_shard, everywhere, in_order, in_step, refuse, runs
from mmjax.ops.target import target

LANES = 128  # a tile is a multiple of this wide


@dataclasses.dataclass(frozen=True)
class Splash:
    """Exact attention in O(T) memory on a TPU: forward and backward are Pallas kernels, and tiles of which nothing is
    visible are left out, whether by order, window or packing. Elsewhere the kernels are interpreted: only for tests.

    block: places of a tile.   spare: places of a block for a row that the kernels cannot express, because it is not in
    order, or has a window and positions that do not count up (by `Flash`).
    queries: how many at a time where they are not the keys' places (a memory, or a cache while decoding).

    The kernels see, per query, one number: the last place that it sees (`_Until`), or that and its own place
    (`_Near`). So any blocks in order can be said: causal, prefix, bidirectional.
    """

    block: int = 512
    spare: int = 128
    queries: int = 256

    def __call__(
        self, q, k, v, query: Places | None, key: Places | None, pattern: Pattern, scale: float, softcap: float | None
    ):
        refuse(self, pattern, None, window=False)
        query, key = everywhere(query, key, q, k)
        if query is not key:
            return in_chunks(seeing(under(pattern), key, k, v, scale, softcap), q, query, self.queries)
        options = {"attn_logits_soft_cap": softcap, "interpret": target() != "tpu"}
        run = functools.partial(self._rows, pattern=pattern, scale=scale, options=options)
        return by_shard(run, (q, k, v), (query,))

    def _rows(self, q, k, v, places: Places, *, pattern: Pattern, scale: float, options: dict[str, Any]) -> Array:
        """Row by row; each that is not in order takes the way through all keys."""
        fits = in_order(places) & (in_step(places) if pattern.window is not None else True)

        def fast(q, k, v, places):
            return self._row(q, k, v, places, pattern, scale, options)

        def slow(q, k, v, places):
            """Head by head, again in the backward pass: it must not need more memory than what it stands in for."""
            places = jax.tree.map(lambda x: x[None], places)
            rest = places, places, pattern, scale, options["attn_logits_soft_cap"]

            def head(part: tuple) -> Array:
                return Flash(self.spare, self.spare)(*(x[None] for x in part), *rest)[0]

            parts = q.reshape(k.shape[0], -1, *q.shape[1:]), k[:, None], v[:, None]
            return jax.lax.map(jax.checkpoint(head), parts).reshape(q.shape)

        one = _either(fast, slow)
        if q.shape[0] == 1:  # no loop, no copies
            return one(*jax.tree.map(lambda x: x[0], (q, k, v, places, fits)))[None]
        return jax.lax.map(lambda row: one(*row), (q, k, v, places, fits))

    def _row(self, q, k, v, places: Places, pattern: Pattern, scale: float, options: dict[str, Any]) -> Array:
        """One row [. T K] whose places are in order."""
        length, width = q.shape[1:]
        tile = min(self.block, -(-length // LANES) * LANES)
        lacking = -length % tile
        wide = -width % LANES if width > LANES else 0
        q, k, v = (jnp.pad(x, ((0, 0), (0, lacking), (0, wide))) for x in (q * jnp.asarray(scale, q.dtype), k, v))
        padded = jax.tree.map(lambda x: jnp.pad(x, (0, lacking))[None], places)
        first, last = (x[0] for x in runs(padded))
        index, valid = jnp.arange(length + lacking), padded.valid[0]
        mask = _Until()
        told = last
        if pattern.window is not None:
            mask = _Near.of(pattern.window, length + lacking)
            first, last = jnp.maximum(first, index - mask.behind), jnp.minimum(last, index + mask.behind)
            told = mask.tell(index, last)
        info = _tiles(first, last, tile)._replace(q_sequence=told.astype(jnp.int32))
        sizes = BlockSizes(*[tile] * 8)
        kernel = splash.SplashAttentionKernel(
            info,
            info,
            _for_keys(info),
            block_sizes=sizes,
            is_mqa=False,
            save_residuals=False,
            mask_value=splash.DEFAULT_MASK_VALUE,
            residual_checkpoint_name=None,
            mask_function=mask,
            **options,
        )
        segment = jnp.where(valid, padded.segment[0] + 1, 0)  # places that are not valid see each other: no 0 / 0
        out = kernel(q, k, v, SegmentIds(segment, segment))
        return jnp.where(valid[:, None], out, 0)[:, :length, :width].astype(v.dtype)


def _either(fast: Callable[..., Array], slow: Callable[..., Array]) -> Callable[..., Array]:
    """`fast(q, k, v, places)` where the row `fits`, else `slow`. What `cond` would keep for the backward pass is what
    both need; here it is what `fast` needs."""

    @jax.custom_vjp
    def run(q, k, v, places, fits):
        return jax.lax.cond(fits, fast, slow, q, k, v, places)

    def forward(q, k, v, places, fits):
        out, back = jax.vjp(lambda *x: fast(*x, places), q, k, v)
        out = jax.lax.cond(fits, lambda: out, lambda: slow(q, k, v, places))
        return out, (back, q, k, v, places, fits)

    def backward(kept, slope):
        back, q, k, v, places, fits = kept

        def again(slope):
            return jax.vjp(lambda *x: slow(*x, places), q, k, v)[1](slope)

        return (*jax.lax.cond(fits, back, again, slope), None, None)

    run.defvjp(forward, backward)
    return run


@dataclasses.dataclass(frozen=True)
class _Until:
    """A query is told the last place that it sees."""

    def __call__(self, told, key):
        return key <= told


@dataclasses.dataclass(frozen=True)
class _Near:
    """A query is told its own place and how far beyond it sees, in the lowest bits."""

    behind: int
    bits: int

    @classmethod
    def of(cls, window: int, length: int) -> _Near:
        """Raises UserError for rows that are too long for both numbers to fit into 31 bits."""
        behind = min(window, length) - 1
        bits = max(behind.bit_length(), 1)
        most = 2 ** (31 - bits)
        if length > most:
            raise UserError(
                f"Splash: with a window of {window}, rows may have up to {most:,} places; got {length:,}; "
                "choose kernel=Sliding()"
            )
        return cls(behind, bits)

    def tell(self, index: Array, last: Array) -> Array:
        """The number told."""
        return (index << self.bits) | (last - index)

    def __call__(self, told, key):
        place = told >> self.bits
        return (key >= place - self.behind) & (key <= place + (told & (2**self.bits - 1)))


def _tiles(first: Int[Array, " T"], last: Int[Array, " T"], tile: int) -> MaskInfo:
    """Which tiles hold anything visible, from the first and last place that each query sees."""
    low = jnp.min(first.reshape(-1, tile), axis=1)[:, None]
    high = jnp.max(last.reshape(-1, tile), axis=1)[:, None]
    begin = jnp.arange(len(first) // tile)[None, :] * tile
    some = ((begin <= high) & (begin + tile > low)).astype(jnp.int32)[None]
    keys = jnp.where(some > 0, jnp.arange(some.shape[2]), 0).astype(jnp.int32)
    return MaskInfo(keys, None, some, None, None)


def _for_keys(info: MaskInfo) -> MaskInfo:
    """The same tiles for the kernel that goes through them by key."""
    queries = jnp.arange(info.block_mask.shape[1], dtype=jnp.int32)[None, :, None]
    return info._replace(data_next=jnp.where(info.block_mask > 0, queries, 0))
