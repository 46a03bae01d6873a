"""Masked language modelling: hide some ids, and tell them from what is left.

B rows   T places   M judged places of a row   D width   V vocabulary
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mmjax.core.batch import Text
from mmjax.core.errors import UserError
from mmjax.core.parameters import declare, slot
from mmjax.core.pytrees import record
from mmjax.nn.activations import gelu_exact
from mmjax.nn.linear import Linear, Normal
from mmjax.nn.norms import LayerNorm
from mmjax.ops.crossentropy import Auto, Execution, cross_entropy
from mmjax.ops.vocabulary import Form


@record
class Masked:
    """A row with some ids hidden, and where."""

    text: Text
    chosen: Bool[Array, "B T"]


@dataclasses.dataclass(frozen=True)
class Masking:
    """Hides `rate` of the ids of every sample, at least one: of those `mask` become the id `mask_id`, `random` any id
    below `vocab`, the rest stay as they are (BERT, arXiv 1810.04805, section 3.1: 80, 10 and 10 %).

    Every sample of a packed row is masked by itself, by an exact count. Media, padding and the ids in `special` are
    never chosen. Raises UserError for shares that are none."""

    mask_id: int
    vocab: int
    rate: float = 0.15
    mask: float = 0.8
    random: float = 0.1
    special: tuple[int, ...] = ()

    def __post_init__(self):
        if not 0 < self.rate < 1 or min(self.mask, self.random) < 0 or self.mask + self.random > 1:
            raise UserError(
                f"masking: rate={self.rate} must lie between 0 and 1, and mask={self.mask} and random={self.random} "
                "must be shares that add up to at most 1"
            )

    def __call__(self, key: jax.Array, text: Text) -> Masked:
        """Another choice for each key."""
        pick, fate, draw = jax.random.split(key, 3)
        open_ = (text.segment > 0) & (text.slot < 0)
        for number in self.special:
            open_ &= text.ids != number
        chosen = self._choose(jax.random.uniform(pick, text.ids.shape), jnp.where(open_, text.segment, 0))
        luck = jax.random.uniform(fate, text.ids.shape)
        other = jax.random.randint(draw, text.ids.shape, 0, self.vocab)
        hidden = jnp.where(luck < self.mask, self.mask_id, jnp.where(luck < self.mask + self.random, other, text.ids))
        return Masked(dataclasses.replace(text, ids=jnp.where(chosen, hidden, text.ids)), chosen)

    def _choose(self, luck: Float[Array, "B T"], segment: Array) -> Bool[Array, "B T"]:
        """The places of each segment with the least luck. One sort by (segment, luck): segments lie together, and the
        rank inside a segment is the distance from its first place."""

        def row(luck: Array, segment: Array) -> Array:
            length = luck.shape[0]
            owner, _, place = jax.lax.sort((segment, luck, jnp.arange(length)), num_keys=2)
            first = jnp.searchsorted(owner, owner, side="left")
            size = jnp.searchsorted(owner, owner, side="right") - first
            count = jnp.maximum(jnp.round(self.rate * size), 1)
            taken = (owner > 0) & (jnp.arange(length) - first < count)
            return jnp.zeros(length, bool).at[place].set(taken)

        return jax.vmap(row)(luck, segment)

    def most(self, length: int, samples: int = 1) -> int:
        """How many places of a row of so many places and samples can be chosen at once."""
        return min(length, int(self.rate * length) + samples)


class MaskText(nn.Module):
    """Masking inside a model: in training by the step's own randomness, in evaluation the same for every call."""

    masking: Masking

    def __call__(self, text: Text, *, train: bool = False) -> Masked:
        return self.masking(self.make_rng("dropout") if train else jax.random.key(0), text)


class MaskedLanguage(nn.Module):
    """Tells the hidden ids from their places' vectors: a map, a norm, and scores against the table (BERT's head).

    Only chosen places are judged, at most `most` in a row (see `Masking.most`; None: all T); more are left out. `table`
    is the embedding's, or None for one of its own. Gives {"masked": {"nll", "log_z" float32, "hit", "valid" bool
    [B M]}}; "valid" says which of the M are real."""

    vocab: int
    most: int | None = None
    activation: Callable[[Array], Array] = gelu_exact
    norm: nn.Module = slot(LayerNorm)
    execution: Execution = Auto()

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], text: Text, chosen: Bool[Array, "B T"], table: Float[Array, "V D"] | None = None
    ) -> dict[str, dict[str, Array]]:
        """`text` is the row before ids were hidden, `x` the encoded row after."""
        width, ids = x.shape[-1], text.ids
        if self.most is not None and self.most < x.shape[1]:
            places = jnp.argsort(~chosen, axis=1, stable=True)[:, : self.most]
            chosen, ids = (jnp.take_along_axis(part, places, axis=1) for part in (chosen, ids))
            x = jnp.take_along_axis(x, places[..., None], axis=1)
        x = self.norm(self.activation(Linear("btd,dD->btD", (width,), name="map")(x)))
        if table is None:
            table = declare(self, "table", Normal(width**-0.5), vocab=self.vocab, width=width)
        bias = declare(self, "bias", nn.initializers.zeros, vocab=table.shape[0])
        target, weight = jnp.where(chosen, ids, -1), chosen.astype(jnp.float32)
        told = cross_entropy(
            x, table, target, bias=bias, weight=weight, form=Form(self.vocab), execution=self.execution
        )
        return {"masked": {"nll": told.nll, "log_z": told.log_z, "hit": told.hit, "valid": chosen}}
