"""Gates: how much each modality counts, decided for each sample from what it holds.

B rows   S samples of a row   D width of a modality (each its own)   T tokens of a modality

A gate reads {modality: [B S D]} and {modality: present [B S]} and gives {modality: weight [B S]}, float32: they add up
to 1 over the present ones, and an absent one has 0. `late.Attended` uses it on vectors, `GatedTokens` on tokens.
"""

from __future__ import annotations

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mmjax.core.errors import UserError
from mmjax.core.means import Mean
from mmjax.core.parameters import slot
from mmjax.core.tokens import Tokens
from mmjax.nn import pooling
from mmjax.nn.linear import Linear

Vectors = Mapping[str, Float[Array, "B S D"]]
Present = Mapping[str, Bool[Array, "B S"]]


def prepared(vectors: Vectors, present: Present) -> tuple[dict[str, Array], Bool[Array, "B S M"]]:
    """The vectors in the order of their names, zeros where absent, and which are there. Raises UserError when there
    are none, or one of which nothing says where it is."""
    if not vectors:
        raise UserError("fusion: there is no modality to fuse")
    lacking = sorted(vectors.keys() - present.keys())
    if lacking:
        raise UserError(f"fusion: nothing says which samples have {', '.join(lacking)}; give `present` for each")
    names = sorted(vectors)
    parts = {name: jnp.where(present[name][..., None], vectors[name], 0) for name in names}
    return parts, jnp.stack([present[name] for name in names], axis=-1)


class Gate(nn.Module):
    """softmax over the present modalities of w . tanh(U_m x_m + b_m): attention-based multimodal fusion (arXiv
    1701.03126).

    Intermediates, one `Mean` each over the samples that have anything: `weight_<modality>`, and `entropy` in nats (0:
    one modality decides, log M: all of M count alike).
    """

    hidden: int = 64

    @nn.compact
    def __call__(self, vectors: Vectors, present: Present) -> dict[str, Float[Array, "B S"]]:
        parts, there = prepared(vectors, present)
        keys = [Linear("bsd,dm->bsm", (self.hidden,), name=name)(x) for name, x in parts.items()]
        told = jnp.tanh(jnp.stack(keys, axis=2))
        score = Linear("btvm,me->btve", (1,), bias=False, name="score")(told)[..., 0].astype(jnp.float32)
        weight = jax.nn.softmax(jnp.where(there, score, jnp.finfo(jnp.float32).min), axis=-1)
        weight = jnp.where(there, weight, 0.0)
        weights = dict(zip(parts, jnp.unstack(weight, axis=-1), strict=True))
        some = jnp.any(there, axis=-1)
        for name, value in weights.items():
            self.sow("intermediates", f"weight_{name}", Mean.of(value, some))
        self.sow("intermediates", "entropy", Mean.of(-jnp.sum(jax.scipy.special.xlogy(weight, weight), axis=-1), some))
        return weights


class GatedTokens(nn.Module):
    """The tokens of each modality times its weight in their sample, which a gate reads off their means; the weights are
    scaled so that a gate that weighs all alike changes nothing. {modality: Tokens} to the same; `samples` is S."""

    gate: nn.Module = slot(Gate)

    @nn.compact
    def __call__(self, streams: Mapping[str, Tokens], samples: int = 1, *, train: bool = False) -> dict[str, Tokens]:
        owners = {name: pooling.owned(tokens, samples) for name, tokens in streams.items()}
        present = {name: jnp.any(mine, axis=-1) for name, mine in owners.items()}
        weights = self.gate({name: pooling.Mean()(tokens, samples) for name, tokens in streams.items()}, present)
        count = sum(there.astype(jnp.float32) for there in present.values())

        def scaled(name: str, tokens: Tokens) -> Tokens:
            scale = jnp.einsum("bs,bst->bt", weights[name] * count, owners[name].astype(jnp.float32))
            return tokens.with_x(tokens.clean().x * scale[..., None].astype(tokens.x.dtype))

        return {name: scaled(name, tokens) for name, tokens in streams.items()}
