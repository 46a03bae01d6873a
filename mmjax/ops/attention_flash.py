"""Exact attention block by block, where blocks that nobody sees cost nothing.

B batch   H heads   G key-value heads, h = H / G   T, S places   n, m blocks of R queries and C keys   K head width
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from mmjax.core.tokens import Pattern, Places, visible
from mmjax.ops.attention_dense import cut, cut_places, join
from mmjax.ops.attention_rows import by_shard, everywhere

HIDDEN = float(jnp.finfo(jnp.float32).min)
LEAST = HIDDEN / 2
"""The running maximum starts here: above what is hidden, whose weight is 0 then, also where nothing else is seen."""


@dataclasses.dataclass(frozen=True)
class Flash:
    """Softmax over blocks of keys in turn, with a running maximum, and probabilities computed again in the backward
    pass: O(T) memory (FlashAttention, arXiv 2205.14135, algorithms 1 and 4; the delta of 2307.08691, section 3.1).

    Each block of queries visits only the blocks between the first and the last that hold something it may see, which is
    found out while running: where places are in order, a packed row costs what its samples cost, and a causal one half
    of a bidirectional one. In plain XLA, row by row, on each device its own. Gradients in reverse, once."""

    queries: int = 256
    keys: int = 128

    def __call__(
        self,
        q: Float[Array, "B H T K"],
        k: Float[Array, "B G S K"],
        v: Float[Array, "B G S K"],
        query: Places | None,
        key: Places | None,
        pattern: Pattern,
        scale: float,
        softcap: float | None,
    ) -> Float[Array, "B H T K"]:
        query, key = everywhere(query, key, q, k)
        run = functools.partial(self._rows, rule=_Rule(pattern, softcap))
        return by_shard(run, (q * jnp.asarray(scale, q.dtype), k, v), (query, key))

    def _rows(self, q: Array, k: Array, v: Array, query: Places, key: Places, rule: _Rule) -> Array:
        sizes = min(self.queries, q.shape[2]), min(self.keys, k.shape[2])

        def row(part: tuple) -> Array:
            q, k, v, query, key = part
            query, key = (
                cut_places(jax.tree.map(lambda x: x[None], each), size)
                for each, size in zip((query, key), sizes, strict=True)
            )
            grouped = cut(q.reshape(k.shape[0], -1, *q.shape[1:]), sizes[0], 2)
            mixed = _attend(rule, grouped, cut(k, sizes[1], 1), cut(v, sizes[1], 1), query, key)
            return join(mixed, q.shape[1], 2).reshape(q.shape)

        return jax.lax.map(row, (q, k, v, query, key))


@dataclasses.dataclass(frozen=True)
class _Rule:
    """What the logits of a block are, and which of them count."""

    pattern: Pattern
    softcap: float | None

    def logits(self, q: Float[Array, "G h R K"], k: Float[Array, "G C K"], query: Places, key: Places) -> Array:
        """[G h R C], those that do not count far below all others."""
        logits = jnp.einsum("ghrk,gck->ghrc", q, k, preferred_element_type=jnp.float32)
        if self.softcap is not None:
            logits = self.softcap * jnp.tanh(logits / self.softcap)
        return jnp.where(visible(query, key, self.pattern)[0], logits, HIDDEN)

    def slope(self, logits: Array) -> Array | float:
        """Of the logits by the products."""
        return 1.0 if self.softcap is None else 1 - jnp.square(jnp.maximum(logits / self.softcap, -1))


def reach(query: Places, key: Places, window: int | None) -> tuple[Int[Array, " n"], Int[Array, " n"]]:
    """First and one after the last block of keys [m 1 C] in which each block of queries [n 1 R] may see something.

    A block is passed over only when no sample has places in both, when all its keys come, by sample and block, after
    all of the queries, or when positions are too far apart: in rows that are in order, all that can be passed over, and
    never too much."""
    (q_first, q_last), (k_first, k_last) = _ends(query, query.segment), _ends(key, key.segment)
    meets = (k_first <= q_last[:, None]) & (k_last >= q_first[:, None])
    _, newest = _ends(query, jnp.where(query.segment == q_last[:, None, None], query.block, -1))
    oldest, _ = _ends(key, jnp.where(key.segment == k_first[:, None, None], key.block, _MOST))
    meets &= (k_first < q_last[:, None]) | (oldest <= newest[:, None])
    if window is not None:
        (q_first, q_last), (k_first, k_last) = _ends(query, query.position), _ends(key, key.position)
        meets &= (k_first - q_last[:, None] < window) & (q_first[:, None] - k_last < window)
    some, count = jnp.any(meets, axis=1), meets.shape[1]
    first = jnp.where(some, jnp.argmax(meets, axis=1), 0)
    return first, jnp.where(some, count - jnp.argmax(meets[:, ::-1], axis=1), 0)


_MOST = 2**30


def _ends(places: Places, x: Int[Array, "n 1 R"]) -> tuple[Int[Array, " n"], Int[Array, " n"]]:
    """The smallest and the largest of `x` at the valid places of each block."""
    least = jnp.min(jnp.where(places.valid, x, _MOST), axis=(1, 2))
    return least, jnp.max(jnp.where(places.valid, x, -1), axis=(1, 2))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(rule, q, k, v, query, key):
    return _forward(rule, q, k, v, query, key)[0]


def _forward(rule: _Rule, q, k, v, query: Places, key: Places):
    """[n G h R K] from queries of that shape and keys and values [m G C K]; then what the backward pass needs."""

    def block(part: tuple):
        q, query, first, last = part

        def step(j, state):
            top, total, mixed = state
            there, at = jax.tree.map(lambda x: x[j], (k, key)), v[j]
            logits = rule.logits(q, there[0], query, there[1])
            higher = jnp.maximum(top, jnp.max(logits, axis=-1))
            fade = jnp.exp(top - higher)
            weight = jnp.exp(logits - higher[..., None])
            found = jnp.einsum("ghrc,gck->ghrk", weight.astype(at.dtype), at, preferred_element_type=jnp.float32)
            return higher, total * fade + jnp.sum(weight, axis=-1), mixed * fade[..., None] + found

        start = jnp.full(q.shape[:-1], LEAST), jnp.zeros(q.shape[:-1]), jnp.zeros(q.shape)
        top, total, mixed = jax.lax.fori_loop(first, last, step, start)
        total = jnp.where(total > 0, total, 1.0)  # a query that sees nothing gets zeros
        return (mixed / total[..., None]).astype(q.dtype), top + jnp.log(total)

    out, level = jax.lax.map(block, (q, query, *reach(query, key, rule.pattern.window)))
    out, level = (checkpoint_name(x, "context") for x in (out, level))  # kept, they spare the second forward pass
    return out, (q, k, v, query, key, out, level)


def _backward(rule: _Rule, kept: tuple, slope: Array):
    q, k, v, query, key, out, level = kept
    delta = jnp.sum(slope.astype(jnp.float32) * out, axis=-1)

    def block(carry, part):
        q, query, first, last, slope, level, delta = part

        def step(j, state):
            dq, dk, dv = state
            there, at = jax.tree.map(lambda x: x[j], (k, key)), v[j]
            logits = rule.logits(q, there[0], query, there[1])
            weight = jnp.exp(logits - level[..., None])
            towards = jnp.einsum("ghrk,gck->ghrc", slope, at, preferred_element_type=jnp.float32)
            towards = weight * (towards - delta[..., None]) * rule.slope(logits)
            towards = towards.astype(q.dtype)
            dq += jnp.einsum("ghrc,gck->ghrk", towards, there[0], preferred_element_type=jnp.float32)
            dk = dk.at[j].add(jnp.einsum("ghrc,ghrk->gck", towards, q, preferred_element_type=jnp.float32))
            weight = weight.astype(slope.dtype)
            dv = dv.at[j].add(jnp.einsum("ghrc,ghrk->gck", weight, slope, preferred_element_type=jnp.float32))
            return dq, dk, dv

        dq, *carry = jax.lax.fori_loop(first, last, step, (jnp.zeros(q.shape), *carry))
        return tuple(carry), dq.astype(q.dtype)

    start = jnp.zeros(k.shape), jnp.zeros(v.shape)
    (dk, dv), dq = jax.lax.scan(block, start, (q, query, *reach(query, key, rule.pattern.window), slope, level, delta))
    return dq, dk.astype(k.dtype), dv.astype(v.dtype), None, None


_attend.defvjp(_forward, _backward)
