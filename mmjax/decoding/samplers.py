"""Which id comes next, given logits.  B rows   V vocabulary

A sampler is a frozen value, called with float32 logits and one key per row.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mmjax.core.errors import UserError
from mmjax.ops.vocabulary import likeliest


@dataclasses.dataclass(frozen=True)
class Greedy:
    """The likeliest id; of several, the first."""

    def __call__(self, logits: Float[Array, "B V"], keys: Array) -> Int[Array, " B"]:
        return likeliest(logits)


@dataclasses.dataclass(frozen=True)
class Sampling:
    """A draw from softmax(logits / temperature), narrowed to the ids that every filter keeps.

    top_k: the k likeliest (arXiv 1805.04833).   top_p: the fewest likeliest that have this much probability
    together (nucleus, arXiv 1904.09751, equation 2).   min_p: those with at least this share of the likeliest's
    probability (arXiv 2407.01082). Ids that tie with the last kept one are kept, too.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None

    def __post_init__(self):
        faults = []
        if not self.temperature > 0:
            faults.append(f"temperature must be above 0 (for none, use Greedy()); got {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            faults.append(f"top_k must be at least 1; got {self.top_k}")
        for name in ("top_p", "min_p"):
            share = getattr(self, name)
            if share is not None and not 0 < share <= 1:
                faults.append(f"{name} must be above 0 and at most 1; got {share}")
        if faults:
            raise UserError("sampling: " + "; ".join(faults))

    def __call__(self, logits: Float[Array, "B V"], keys: Array) -> Int[Array, " B"]:
        scaled = jnp.where(self.support(logits), logits / self.temperature, -jnp.inf)
        return jax.vmap(jax.random.categorical)(keys, scaled).astype(jnp.int32)

    def support(self, logits: Float[Array, "B V"]) -> Bool[Array, "B V"]:
        """Which ids can be drawn."""
        scaled = logits / self.temperature
        kept = scaled > -jnp.inf
        chance = jax.nn.softmax(scaled, axis=-1)
        if self.top_k is not None:
            kept &= chance >= _mark(chance, jnp.ones_like(chance), self.top_k)
            chance = jax.nn.softmax(jnp.where(kept, scaled, -jnp.inf), axis=-1)
        if self.top_p is not None and self.top_p < 1:  # a sum of all chances may miss 1 by rounding
            kept &= chance >= _mark(chance, chance, self.top_p)
        if self.min_p is not None:
            kept &= chance >= self.min_p * jnp.max(chance, axis=-1, keepdims=True)
        return kept


def _mark(chance: Float[Array, "B V"], weight: Float[Array, "B V"], need: float) -> Float[Array, "B 1"]:
    """The highest mark at or above which ids have at least `need` of the weight (0 when all have less).

    By bisection on the bits of the chances, which are ordered as they are: no sort of the vocabulary."""
    bits = jax.lax.bitcast_convert_type(chance, jnp.int32)

    def halve(i: int, low: Int[Array, "B 1"]) -> Int[Array, "B 1"]:
        middle = low + (1 << (29 - i))  # chances are at most 1, whose bits are below 2^30
        enough = jnp.sum(jnp.where(bits >= middle, weight, 0.0), axis=-1, keepdims=True) >= need
        return jnp.where(enough, middle, low)

    low = jax.lax.fori_loop(0, 30, halve, jnp.zeros((chance.shape[0], 1), jnp.int32))
    return jax.lax.bitcast_convert_type(low, jnp.float32)


Sampler = Greedy | Sampling
