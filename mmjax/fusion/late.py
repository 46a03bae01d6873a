"""Late fusion: one vector per modality becomes one vector per sample.

B rows   S samples of a row   D width of a modality (each its own)   M modalities   E width out   H hidden   R rank

A fusion is called with {modality: [B S D]} and {modality: present [B S]} and gives [B S E]. What an absent modality
holds, NaN too, never matters; a sample that lacks all gets a constant. There may be any number of modalities.
"""

from __future__ import annotations

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mmjax.core.parameters import declare, slot
from mmjax.fusion.gating import Gate, Present, Vectors, prepared
from mmjax.nn.linear import Linear, Normal


def _mapped(parts: Mapping[str, Array], width: int) -> Float[Array, "B S M E"]:
    """A linear map of each modality to one width; called inside of a compact method."""
    return jnp.stack([Linear("bsd,dm->bsm", (width,), name=name)(x) for name, x in parts.items()], axis=2)


class Joined(nn.Module):
    """All vectors side by side, then a linear map; a learned vector stands in for an absent one."""

    width: int

    @nn.compact
    def __call__(self, vectors: Vectors, present: Present) -> Float[Array, "B S E"]:
        parts, _ = prepared(vectors, present)
        whole = []
        for name, x in parts.items():
            absent = declare(self, f"{name}_absent", Normal(0.02), width=x.shape[-1]).astype(x.dtype)
            whole.append(jnp.where(present[name][..., None], x, absent))
        return Linear("bsd,dm->bsm", (self.width,), name="out")(jnp.concatenate(whole, axis=-1))


class Sum(nn.Module):
    """A linear map of each to one width, added up."""

    width: int

    @nn.compact
    def __call__(self, vectors: Vectors, present: Present) -> Float[Array, "B S E"]:
        parts, there = prepared(vectors, present)
        return jnp.sum(jnp.where(there[..., None], _mapped(parts, self.width), 0), axis=2)


class GatedSum(nn.Module):
    """tanh of a linear map of each, times a sigmoid gate that sees all: gated multimodal units (arXiv 1702.01992)."""

    width: int

    @nn.compact
    def __call__(self, vectors: Vectors, present: Present) -> Float[Array, "B S E"]:
        parts, there = prepared(vectors, present)
        told = jnp.concatenate(list(parts.values()), axis=-1)
        gate = Linear("btd,dsm->btsm", (len(parts), self.width), name="gate")(told)
        x = jax.nn.sigmoid(gate) * jnp.tanh(_mapped(parts, self.width))
        return jnp.sum(jnp.where(there[..., None], x, 0), axis=2)


class LowRankBilinear(nn.Module):
    """The product of all, entry by entry in a space of `hidden`, then a linear map: low-rank bilinear pooling (MLB,
    arXiv 1610.04325, section 3). `rank` above 1 adds up that many products (MUTAN, arXiv 1705.06676, section 3). An
    absent modality is a factor of 1."""

    width: int
    hidden: int = 1200
    rank: int = 1

    @nn.compact
    def __call__(self, vectors: Vectors, present: Present) -> Float[Array, "B S E"]:
        parts, _ = prepared(vectors, present)
        product = 1.0
        for name, x in parts.items():
            factor = jnp.tanh(Linear("btd,dsm->btsm", (self.rank, self.hidden), name=name)(x))
            product *= jnp.where(present[name][..., None, None], factor, 1)
        return Linear("btm,md->btd", (self.width,), name="out")(jnp.sum(product, axis=2))


class CompactBilinear(nn.Module):
    """The outer product of all modalities, seen through count sketches of size `sketch`: multimodal compact bilinear
    pooling (MCB, arXiv 1606.01847, algorithm 1), with its signed root and unit length, then a linear map. The sketches
    are fixed by `seed`. An absent modality is the neutral element of the convolution."""

    width: int
    sketch: int = 16_000
    seed: int = 0

    @nn.compact
    def __call__(self, vectors: Vectors, present: Present) -> Float[Array, "B S E"]:
        parts, _ = prepared(vectors, present)
        spectrum = 1.0
        for number, (name, x) in enumerate(parts.items()):
            found = jnp.fft.rfft(count_sketch(x.astype(jnp.float32), self.sketch, (self.seed, number)))
            spectrum *= jnp.where(present[name][..., None], found, 1)
        product = jnp.fft.irfft(spectrum, self.sketch)
        rooted = jnp.sign(product) * jnp.sqrt(jnp.abs(product) + 1e-12)
        unit = rooted * jax.lax.rsqrt(jnp.sum(jnp.square(rooted), axis=-1, keepdims=True) + 1e-12)
        return Linear("btm,md->btd", (self.width,), name="out")(unit.astype(x.dtype))


def count_sketch(x: Float[Array, "*n D"], size: int, seed: tuple[int, ...]) -> Float[Array, "*n size"]:
    """Each entry, with a random sign, added to a random bucket: inner products survive on average (MCB)."""
    rng = np.random.default_rng(seed)
    bucket, sign = rng.integers(0, size, x.shape[-1]), rng.choice([-1.0, 1.0], x.shape[-1])
    return jnp.zeros((*x.shape[:-1], size), x.dtype).at[..., bucket].add(x * sign.astype(x.dtype))


class Attended(nn.Module):
    """A mean of linear maps of each, weighed for each sample by a `gate`: attention over modalities (arXiv
    1701.03126)."""

    width: int
    gate: nn.Module = slot(Gate)

    @nn.compact
    def __call__(self, vectors: Vectors, present: Present) -> Float[Array, "B S E"]:
        parts, _ = prepared(vectors, present)
        weights = self.gate(vectors, present)
        weight = jnp.stack([weights[name] for name in parts], axis=-1)
        return jnp.einsum("bsm,bsme->bse", weight.astype(next(iter(parts.values())).dtype), _mapped(parts, self.width))
