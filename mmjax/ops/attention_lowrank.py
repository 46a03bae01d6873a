"""Attention by a few summaries of each sample, in time linear in length, without parameters.

B batch   H heads   G key-value heads   R = H / G   Q, S places   K head width   s samples   m landmarks   C = s m

A landmark is the mean of neighbouring places of a sample: m of them share its places evenly. Samples of m places or
fewer have one landmark for each place, and then nothing is lost.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mmjax.core.tokens import Pattern, Places
from mmjax.ops.attention_dense import in_chunks, seeing, under, weigh
from mmjax.ops.attention_rows import everywhere, refuse


@dataclasses.dataclass(frozen=True)
class Pooled:
    """Queries look at m means of keys and of values of their sample: Linformer's mean pooling (arXiv 2006.04768,
    section 4, "general projections"), in O(T C) for any length.

    samples: how many in a row there is room for. Means mix what causal order keeps apart, so batches in which any place
    must not see all of its sample, or with more samples in a row, are computed through all keys, `queries` at a time.
    """

    landmarks: int = 64
    samples: int = 8
    queries: int = 256

    def __call__(
        self, q, k, v, query: Places | None, key: Places | None, pattern: Pattern, scale: float, softcap: float | None
    ):
        refuse(self, pattern, None)
        query, key = everywhere(query, key, q, k)

        def pooled(q, k, v):
            means, known = _means(key, self.landmarks, self.samples)
            k, v = (_mean(means, x) for x in (k, v))
            seen = _own(query, self.landmarks, self.samples) & known[:, None, :]
            return weigh(q, k, v, seen, scale, softcap)

        return _or_exact(self, pooled, (q, k, v), (query, key), scale, softcap)


@dataclasses.dataclass(frozen=True)
class Nystrom:
    """softmax(q K') softmax(Q' K')^+ softmax(Q' k) v with landmarks Q', K' (Nystromformer, arXiv 2102.03902), in
    O(T C). The inverse is what `iterations` steps of theirs come to, for each sample by itself.

    samples, and when all keys are looked at: as in `Pooled`.
    """

    landmarks: int = 64
    iterations: int = 6
    samples: int = 8
    queries: int = 256

    def __call__(
        self, q, k, v, query: Places | None, key: Places | None, pattern: Pattern, scale: float, softcap: float | None
    ):
        refuse(self, pattern, softcap)
        query, key = everywhere(query, key, q, k)

        def approximated(q, k, v):
            return self._approximated(q, k, v, query, key, scale)

        return _or_exact(self, approximated, (q, k, v), (query, key), scale, softcap)

    def _approximated(self, q, k, v, query: Places, key: Places, scale: float) -> Array:
        dtype, batch, groups, samples = v.dtype, q.shape[0], k.shape[1], self.samples
        q, k, v = (x.astype(jnp.float32) for x in (q, k, v))
        q = q.reshape(batch, groups, -1, *q.shape[2:]) * scale
        q_means, q_known = _means(query, self.landmarks, samples)
        k_means, k_known = _means(key, self.landmarks, samples)
        q_marks = jnp.einsum("bcq,bgrqk->bgrck", q_means, q)
        k_marks = _mean(k_means, k)
        own = _own(query, self.landmarks, samples)

        left = _softmax(jnp.einsum("bgrqk,bgck->bgrqc", q, k_marks), own & k_known[:, None, :])
        theirs = jnp.swapaxes(_own(key, self.landmarks, samples), 1, 2) & q_known[:, :, None]
        right = _softmax(jnp.einsum("bgrck,bgsk->bgrcs", q_marks, k), theirs)
        mixed = jnp.einsum("bgrcs,bgsk->bgrck", right, v)

        def apart(x: Array, axis: int) -> Array:
            return x.reshape(*x.shape[:axis], samples, self.landmarks, *x.shape[axis + 1 :])

        both = apart(q_known, 1)[..., :, None] & apart(k_known, 1)[..., None, :]
        middle = _softmax(jnp.einsum("bgrsik,bgsjk->bgrsij", apart(q_marks, 3), apart(k_marks, 2)), both)
        mixed = jnp.einsum("bgrsij,bgrsjk->bgrsik", _inverse(middle, self.iterations), apart(mixed, 3))
        out = jnp.einsum("bgrqc,bgrck->bgrqk", left, mixed.reshape(*left.shape[:3], -1, v.shape[-1]))
        return out.reshape(batch, -1, *out.shape[3:]).astype(dtype)


def _or_exact(kernel: Pooled | Nystrom, short: Callable, arrays: tuple, places: tuple, scale: float, softcap):
    """`short`, where every place sees all of its sample and there is room for the samples; else exact attention."""
    query, key = places

    def exact(q, k, v):
        return in_chunks(seeing(under(Pattern()), key, k, v, scale, softcap), q, query, kernel.queries)

    fits = jnp.all(~key.valid | ((key.segment >= 1) & (key.segment <= kernel.samples)))
    least = _extreme(query, kernel.samples, jnp.min, jnp.iinfo(jnp.int32).max)
    most = _extreme(key, kernel.samples, jnp.max, jnp.iinfo(jnp.int32).min)
    return jax.lax.cond(fits & jnp.all(most <= least), short, exact, *arrays)


def _members(places: Places, samples: int) -> Bool[Array, "B s T"]:
    """Which places belong to each sample."""
    return places.valid[:, None] & (places.segment[:, None] == jnp.arange(1, samples + 1)[:, None])


def _extreme(places: Places, samples: int, reduce: Callable, rest: int) -> Array:
    """Least or largest block of each sample: [B s]."""
    return reduce(jnp.where(_members(places, samples), places.block[:, None], rest), axis=2)


def _means(places: Places, landmarks: int, samples: int) -> tuple[Float[Array, "B C T"], Bool[Array, "B C"]]:
    """What each place adds to each landmark, and which landmarks there are."""
    members = _members(places, samples)
    count = jnp.sum(members, axis=2, keepdims=True)
    rank = jnp.cumsum(members, axis=2) - 1
    bin_ = jnp.where(count > landmarks, rank * landmarks // jnp.maximum(count, 1), rank)  # [B s T]
    share = members[:, :, None] & (bin_[:, :, None] == jnp.arange(landmarks)[:, None])  # [B s m T]
    share = share.reshape(share.shape[0], samples * landmarks, -1)
    held = jnp.sum(share, axis=2)
    return share / jnp.maximum(held, 1)[..., None], held > 0


def _mean(means: Float[Array, "B C T"], x: Float[Array, "B G T K"]) -> Float[Array, "B G C K"]:
    return jnp.einsum("bct,bgtk->bgck", means, x.astype(jnp.float32)).astype(x.dtype)


def _own(places: Places, landmarks: int, samples: int) -> Bool[Array, "B T C"]:
    """Which landmarks are of each place's sample."""
    return jnp.repeat(jnp.swapaxes(_members(places, samples), 1, 2), landmarks, axis=2)


def _softmax(logits: Array, seen: Bool[Array, "B ..."]) -> Array:
    """Over the last dimension; rows that see nothing are zero. `seen` lacks the two head dimensions."""
    seen = seen[:, None, None]
    weights = jax.nn.softmax(jnp.where(seen, logits, jnp.finfo(logits.dtype).min), axis=-1)
    return jnp.where(seen, weights, 0.0)


def _inverse(x: Float[Array, "*n m m"], iterations: int) -> Float[Array, "*n m m"]:
    """The Moore-Penrose inverse, by the iteration of arXiv 2102.03902; zero where all of x is."""
    rows, columns = jnp.max(jnp.sum(x, axis=-1), axis=-1), jnp.max(jnp.sum(x, axis=-2), axis=-1)
    size = jnp.where(rows > 0, rows * columns, 1.0)[..., None, None]
    one = jnp.eye(x.shape[-1])
    guess = jnp.swapaxes(x, -1, -2) / size
    for _ in range(iterations):
        z = x @ guess
        guess = guess @ (13 * one - z @ (15 * one - z @ (7 * one - z))) / 4
    return guess
