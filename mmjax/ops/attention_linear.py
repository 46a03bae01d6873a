"""Attention in time linear in length, by feature maps in place of the exponential.

B batch   H heads   G key-value heads   R = H / G   T, Q, S places   K head width   M features   n chunks of c places
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from mmjax.core.pytrees import record
from mmjax.core.tokens import Pattern, Places, visible
from mmjax.ops.attention_dense import cut, cut_places, in_chunks, join
from mmjax.ops.attention_rows import everywhere, in_order, refuse


class Features(Protocol):
    """Positive features whose products stand for exp(scale q.k)."""

    def queries(self, q: Float[Array, "B H Q K"], scale: float) -> Float[Array, "B H Q M"]:
        """Those of queries."""

    def keys(self, k: Float[Array, "B G S K"], valid: Bool[Array, "B S"], scale: float) -> Float[Array, "B G S M"]:
        """Those of keys."""


@dataclasses.dataclass(frozen=True)
class Elu:
    """elu(x) + 1 (Katharopoulos et al. 2020, arXiv 2006.16236, equation 7): another attention, not an approximation of
    softmax. It knows no scale."""

    def queries(self, q, scale: float):
        """elu(q) + 1."""
        return jax.nn.elu(q) + 1

    def keys(self, k, valid, scale: float):
        """elu(k) + 1."""
        return jax.nn.elu(k) + 1


@dataclasses.dataclass(frozen=True)
class Favor:
    """Positive orthogonal random features (Performer, arXiv 2009.14794, lemma 1 and section 2.4), an unbiased estimate
    of the exponential. The same `seed` gives the same directions, for ever."""

    features: int = 256
    seed: int = 0

    def directions(self, width: int) -> Float[np.ndarray, "M K"]:
        """Gaussian vectors, orthogonal to each other in groups of K."""
        rng = np.random.default_rng(self.seed)
        q, r = np.linalg.qr(rng.normal(size=(-(-self.features // width), width, width)))
        groups = q * np.sign(np.diagonal(r, axis1=1, axis2=2))[:, None]  # without it, signs are not evenly spread
        lengths = np.linalg.norm(rng.normal(size=(self.features, width)), axis=1, keepdims=True)
        return (groups.swapaxes(1, 2).reshape(-1, width)[: self.features] * lengths).astype(np.float32)

    def queries(self, q, scale: float):
        """exp(w.q - |q|^2 / 2), relative to the largest of each query, which the quotient does not notice."""
        logs = self._logs(q, scale)
        return jnp.exp(logs - jax.lax.stop_gradient(jnp.max(logs, axis=-1, keepdims=True)))

    def keys(self, k, valid, scale: float):
        """The same of keys, relative to the largest of the row."""
        logs = jnp.where(valid[:, None, :, None], self._logs(k, scale), -jnp.inf)
        top = jax.lax.stop_gradient(jnp.max(logs, axis=(2, 3), keepdims=True))
        return jnp.exp(logs - jnp.where(jnp.isfinite(top), top, 0.0))

    def _logs(self, x, scale: float):
        x = x * scale**0.5
        return jnp.einsum("...k,mk->...m", x, self.directions(x.shape[-1])) - jnp.sum(x * x, axis=-1, keepdims=True) / 2


@record
class _Sums:
    """What keys leave behind: sums over those of one sample (and block)."""

    mixed: Float[Array, "B G M K"]
    total: Float[Array, "B G M"]
    segment: Array  # [B]
    block: Array  # [B]

    def of(self, phi: Float[Array, "B G R c M"], asks: Bool[Array, "B c"]) -> Float[Array, "B G R c K+1"]:
        """What these keys give to queries that ask for them; the last number is the weight."""
        both = jnp.concatenate([self.mixed, self.total[..., None]], axis=-1)
        return jnp.where(asks[:, None, None, :, None], jnp.einsum("bgrqm,bgmk->bgrqk", phi, both), 0.0)

    def plus(self, keep: Bool[Array, " B"], phi, v, seen: Bool[Array, "B c"], segment, block) -> _Sums:
        """These, where kept, and the keys of a chunk that are seen."""
        phi = jnp.where(seen[:, None, :, None], phi, 0.0)
        mixed = jnp.where(keep[:, None, None, None], self.mixed, 0.0) + jnp.einsum("bgsm,bgsk->bgmk", phi, v)
        total = jnp.where(keep[:, None, None], self.total, 0.0) + jnp.sum(phi, axis=2)
        return _Sums(mixed, total, segment, block)


@dataclasses.dataclass(frozen=True)
class Linear:
    """sum_j phi(q).phi(k_j) v_j / sum_j phi(q).phi(k_j) over the visible j, in O(T) (arXiv 2006.16236, equations 5
    and 8): `Linear()` is linear attention, `Linear(Favor())` the Performer.

    Blocks of all kinds (causal, prefix, bidirectional) and packing are exact: sums over the sample so far pass along
    the row from chunk to chunk, those over the rest of a block pass back. `chunk` places are compared pair by pair. A
    row that is not in order, and queries that are not the keys' places (a memory, or a cache while decoding), make the
    call compare all pairs, with the same result. Sums are float32.
    """

    features: Features = Elu()
    chunk: int = 128

    def __call__(
        self, q, k, v, query: Places | None, key: Places | None, pattern: Pattern, scale: float, softcap: float | None
    ):
        refuse(self, pattern, softcap)
        query, key = everywhere(query, key, q, k)
        batch, heads, length, _ = q.shape
        phi_q = self.features.queries(q.astype(jnp.float32), scale)
        phi_q = phi_q.reshape(batch, k.shape[1], heads // k.shape[1], length, -1)
        phi_k = self.features.keys(k.astype(jnp.float32), key.valid, scale)
        values = jnp.where(key.valid[:, None, :, None], v.astype(jnp.float32), 0.0)

        def all_pairs(phi_q, phi_k, values):
            flat = phi_q.reshape(batch, heads, length, -1)

            def one(part, places):
                part = part.reshape(*phi_q.shape[:3], *part.shape[2:])
                return _pairs(part, phi_k, values, visible(places, key)).reshape(batch, heads, part.shape[3], -1)

            return in_chunks(one, flat, query, self.chunk)

        def along(phi_q, phi_k, values):
            return self._along(phi_q, phi_k, values, query).reshape(batch, heads, length, -1)

        if query is not key or length <= self.chunk:
            sums = all_pairs(phi_q, phi_k, values)
        else:
            sums = jax.lax.cond(jnp.all(in_order(query)), along, all_pairs, phi_q, phi_k, values)
        mixed, total = sums[..., :-1], sums[..., -1:]
        return (mixed / jnp.where(total > 0, total, 1.0)).astype(v.dtype)

    def _along(self, phi_q, phi_k, values, places: Places) -> Float[Array, "B G R T K+1"]:
        parts = (cut(phi_q, self.chunk, 3), cut(phi_k, self.chunk, 2), cut(values, self.chunk, 2))
        parts = (*parts, cut_places(places, self.chunk))
        none = jnp.zeros(phi_q.shape[:1], places.segment.dtype)
        start = _Sums(
            jnp.zeros((*phi_k.shape[:2], phi_k.shape[-1], values.shape[-1]), jnp.float32),
            jnp.zeros((*phi_k.shape[:2], phi_k.shape[-1]), jnp.float32),
            none,
            none,
        )
        _, forth = jax.lax.scan(jax.checkpoint(_forth), start, parts)
        _, back = jax.lax.scan(jax.checkpoint(_back), start, parts, reverse=True)
        return join(forth + back, phi_q.shape[3], 3)


def _pairs(phi_q, phi_k, values, seen: Bool[Array, "B Q S"]) -> Float[Array, "B G R Q K+1"]:
    """What all visible keys give, and the weight, pair by pair."""
    weights = jnp.where(seen[:, None, None], jnp.einsum("bgrqm,bgsm->bgrqs", phi_q, phi_k), 0.0)
    mixed = jnp.einsum("bgrqs,bgsk->bgrqk", weights, values)
    return jnp.concatenate([mixed, jnp.sum(weights, axis=-1, keepdims=True)], axis=-1)


def _forth(sums: _Sums, part: tuple) -> tuple[_Sums, Array]:
    """A chunk sees itself, and what stands before it in the sample that its first places belong to."""
    phi_q, phi_k, values, places = part
    out = _pairs(phi_q, phi_k, values, visible(places, places))
    out += sums.of(phi_q, places.valid & (places.segment == sums.segment[:, None]))
    last = places.valid.shape[1] - 1 - jnp.argmax(places.valid[:, ::-1], axis=1)
    segment = jnp.where(jnp.any(places.valid, axis=1), _pick(places.segment, last), sums.segment)
    seen = places.valid & (places.segment == segment[:, None])
    return sums.plus(sums.segment == segment, phi_k, values, seen, segment, sums.block), out


def _back(sums: _Sums, part: tuple) -> tuple[_Sums, Array]:
    """Its last places also see what stands after the chunk in their block."""
    phi_q, phi_k, values, places = part

    def alike(segment: Array, block: Array) -> Bool[Array, "B c"]:
        return places.valid & (places.segment == segment[:, None]) & (places.block == block[:, None])

    out = sums.of(phi_q, alike(sums.segment, sums.block))
    first, some = jnp.argmax(places.valid, axis=1), jnp.any(places.valid, axis=1)
    segment = jnp.where(some, _pick(places.segment, first), sums.segment)
    block = jnp.where(some, _pick(places.block, first), sums.block)
    keep = (sums.segment == segment) & (sums.block == block)
    return sums.plus(keep, phi_k, values, alike(segment, block), segment, block), out


def _pick(x: Array, index: Array) -> Array:
    return jnp.take_along_axis(x, index[:, None], axis=1)[:, 0]
