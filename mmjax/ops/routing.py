"""Routing: which expert a token goes to, how its product with that expert's weights is computed, and what it costs.

N tokens   B rows   T tokens of a row   G groups of modalities   E experts of a group   X = G E experts   K chosen ones
D, M width in and out
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mmjax.core.means import Mean
from mmjax.core.pytrees import record

Dispatch = Callable[[Array, Array, Array], Array]


@dataclasses.dataclass(frozen=True)
class Everywhere:
    """Each token meets all experts and zeros fall away: X times the arithmetic, no sorting, and any layout of tokens
    and experts over devices. Right for few experts."""

    def __call__(
        self, x: Float[Array, "N D"], expert: Int[Array, " N"], kernel: Float[Array, "X D M"]
    ) -> Float[Array, "N M"]:
        chosen = jax.nn.one_hot(expert, kernel.shape[0], dtype=x.dtype)
        return jnp.einsum("nx,nd,xdm->nm", chosen, x, kernel)


@dataclasses.dataclass(frozen=True)
class Sorted:
    """Tokens are sorted by expert, and each run of them meets its own weights: no capacity, no dropped token, no
    arithmetic to spare (MegaBlocks, arXiv 2211.15841). The sort is over all tokens of the batch: where these are spread
    over devices, it moves them."""

    def __call__(
        self, x: Float[Array, "N D"], expert: Int[Array, " N"], kernel: Float[Array, "X D M"]
    ) -> Float[Array, "N M"]:
        order = jnp.argsort(expert, stable=True)
        sizes = jnp.bincount(expert, length=kernel.shape[0]).astype(jnp.int32)
        product = jax.lax.ragged_dot(jnp.take(x, order, axis=0), kernel, sizes)
        return jnp.zeros_like(product).at[order].set(product)


def in_proportion(probability: Float[Array, "*n K"]) -> Float[Array, "*n K"]:
    """Each chosen expert counts with its probability among all (Switch, arXiv 2101.03961, equation 2)."""
    return probability


def to_one(probability: Float[Array, "*n K"]) -> Float[Array, "*n K"]:
    """The chosen experts' probabilities, scaled to add up to 1 (Mixtral, arXiv 2401.04088, section 2.1)."""
    return probability / jnp.sum(probability, axis=-1, keepdims=True)


@record
class Load:
    """What routers saw, as sums for each row: losses of the whole batch follow exactly from any micro-batches."""

    chosen: Float[Array, "B *L G E"]  # choices that fell on an expert
    probability: Float[Array, "B *L G E"]  # sum of its probabilities
    squared: Float[Array, "B *L G"]  # sum of squared log-partition functions
    tokens: Float[Array, "B *L G"]  # how many tokens

    @classmethod
    def of(
        cls,
        logits: Float[Array, "B T E"],
        choice: Int[Array, "B T K"],
        group: Int[Array, "B T"],
        groups: int,
        where: Bool[Array, "B T"],
    ) -> Load:
        """Counts the real tokens (`where`). choice: experts of the token's own group, K of them."""
        logits = jnp.where(where[..., None], logits.astype(jnp.float32), 0.0)
        mine = jax.nn.one_hot(group, groups) * where[..., None]
        picked = jnp.sum(jax.nn.one_hot(choice, logits.shape[-1]), axis=-2)
        return cls(
            jnp.einsum("btg,bte->bge", mine, picked),
            jnp.einsum("btg,bte->bge", mine, jax.nn.softmax(logits)),
            jnp.einsum("btg,bt->bg", mine, jnp.square(jax.nn.logsumexp(logits, axis=-1))),
            jnp.sum(mine, axis=1),
        )

    def balance(self) -> Mean:
        """E sum_e f_e P_e: f the share of choices that fell on an expert, P its mean probability; 1 when even (Switch,
        arXiv 2101.03961, equations 4 to 6). The mean over layers and groups, weighed by their tokens."""
        chosen, probability, tokens = (jnp.sum(x, axis=0) for x in (self.chosen, self.probability, self.tokens))
        share = jax.lax.stop_gradient(chosen / jnp.maximum(jnp.sum(chosen, axis=-1, keepdims=True), 1))
        mean = probability / jnp.maximum(tokens[..., None], 1)
        return Mean.of(chosen.shape[-1] * jnp.sum(share * mean, axis=-1), tokens)

    def z(self) -> Mean:
        """The mean squared log-partition function of the routers (ST-MoE, arXiv 2202.08906, equation 5)."""
        return Mean(jnp.sum(self.squared), jnp.sum(self.tokens))

    def busiest(self) -> Mean:
        """The largest share of choices that falls on one expert, times E: 1 when even, E when one does it all."""
        chosen, tokens = jnp.sum(self.chosen, axis=0), jnp.sum(self.tokens, axis=0)
        share = jnp.max(chosen, axis=-1) / jnp.maximum(jnp.sum(chosen, axis=-1), 1)
        return Mean.of(chosen.shape[-1] * share, tokens)
