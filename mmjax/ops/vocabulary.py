"""A vocabulary that is too large to look at whole: cut in chunks, split over devices.

N places   D width   V vocabulary entries (on this device)   C entries of a chunk
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from mmjax.core.errors import UserError
from mmjax.core.layout import axes_of
from mmjax.core.pytrees import record
from mmjax.ops.few import times_few

LANES = 128  # an accelerator's matrix unit pads the last dimension to a multiple of this
FLOAT32 = {"preferred_element_type": jnp.float32}


@record
class Words:
    """What scores are taken against: a vector for each entry, and perhaps an offset."""

    table: Float[Array, "V D"]
    bias: Float[Array, " V"] | None = None


def first_best(scores: Float[Array, "*n V"], top: Float[Array, "*n"], number: Int[Array, " V"]) -> Int[Array, "*n"]:
    """The smallest number whose score is the `top` one: two plain reductions, where an argmax would be one that
    compilers do not vectorise (eight rows of 49,152 scores: 1 ms). The largest int32 where there is none."""
    return jnp.min(jnp.where(scores == top[..., None], number, jnp.iinfo(jnp.int32).max), axis=-1)


def likeliest(scores: Float[Array, "*n V"]) -> Int[Array, "*n"]:
    """The first of the entries with the best score; where scores are not numbers, the last entry."""
    entry = jnp.arange(scores.shape[-1], dtype=jnp.int32)
    return jnp.minimum(first_best(scores, jnp.max(scores, axis=-1), entry), entry[-1])


@dataclasses.dataclass(frozen=True)
class Form:
    """What a score is. vocab: entries that are real; a table may hold more of them, as padding. cap: scores become
    cap tanh(score / cap) (Gemma 2, arXiv 2408.00118, section 2)."""

    vocab: int
    cap: float | None = None

    def scores(self, x: Float[Array, "*n D"], words: Words) -> Float[Array, "*n V"]:
        """float32 scores of every entry; the product runs in the format of `x`."""
        return self._bent(jnp.einsum("...d,vd->...v", x, words.table.astype(x.dtype), **FLOAT32), words)

    def scores_of_few(self, x: Float[Array, "*n D"], words: Words) -> Float[Array, "*n V"]:
        """The same, as is quickest for a few places (`ops.few`)."""
        z = times_few(x.reshape(-1, x.shape[-1]), words.table.astype(x.dtype))
        return self._bent(z.reshape(*x.shape[:-1], -1), words)

    def _bent(self, z: Float[Array, "*n V"], words: Words) -> Float[Array, "*n V"]:
        if words.bias is not None:
            z = z + words.bias.astype(jnp.float32)
        return z if self.cap is None else self.cap * jnp.tanh(z / self.cap)

    def uncap(self, slope: Float[Array, "N V"], z: Float[Array, "N V"]) -> Float[Array, "N V"]:
        """The slope in what the cap was put on, from that in the capped scores `z`."""
        return slope if self.cap is None else slope * (1 - jnp.square(z / self.cap))


@record
class Chunk:
    """Some entries. The last chunk of a vocabulary that chunks do not divide begins early: `fresh` is False at entries
    that stood in the chunk before. Nothing is padded, so the table is never copied."""

    words: Any  # Words, or a tree of them that are cut together
    number: Int[Array, " C"]  # of each entry, over all devices
    fresh: Bool[Array, " C"]
    start: Int[Array, ""]

    def pull(
        self, slope: Float[Array, "N C"], x: Float[Array, "N D"], words: Words, wide: Array
    ) -> tuple[Words, Float[Array, "N D"]]:
        """Writes this chunk's gradient into that of all `words`, and adds to the gradient `wide` of `x` (float32)."""
        mine = slopes_of(slope, x, self.words)
        words = jax.tree.map(
            lambda all_, some: jax.lax.dynamic_update_slice_in_dim(all_, some.astype(all_.dtype), self.start, 0),
            words,
            mine,
        )
        table = jnp.where(self.fresh[:, None], self.words.table, 0).astype(x.dtype)
        return words, wide + jnp.einsum("nv,vd->nd", slope.astype(x.dtype), table, preferred_element_type=jnp.float32)


def slopes_of(slope: Float[Array, "N C"], x: Float[Array, "N D"], words: Words) -> Words:
    """float32 gradient of `words`, given that of their scores."""
    table = jnp.einsum("nv,nd->vd", slope.astype(x.dtype), x, preferred_element_type=jnp.float32)
    return Words(table, None if words.bias is None else jnp.sum(slope, 0))


def over_chunks(words: Any, size: int, first: Array | int, visit: Callable[[Any, Chunk], Any], state: Any) -> Any:
    """`visit` carries `state` over chunks of about `size` entries; `first` is the number of the first entry here."""
    entries = jax.tree.leaves(words)[0].shape[0]
    count = math.ceil(entries / size)
    size = min(entries, math.ceil(math.ceil(entries / count) / LANES) * LANES)

    def step(state: Any, index: Array) -> tuple[Any, None]:
        start = jnp.minimum(index * size, entries - size)
        here = start + jnp.arange(size)
        part = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, size), words)
        return visit(state, Chunk(part, first + here, here >= index * size, start)), None

    return jax.lax.scan(step, state, jnp.arange(math.ceil(entries / size)))[0]


@dataclasses.dataclass(frozen=True)
class Spread:
    """Mesh axes over which places (by dimension: rows, tokens) and vocabulary are split; () is not split."""

    places: tuple[tuple[str, ...], ...] = ()
    vocab: tuple[str, ...] = ()

    @classmethod
    def of(cls, shape: tuple[int, ...], entries: int) -> Spread:
        """Where we are traced, for places of this shape. What its axes do not divide stays whole."""
        sizes = dict(jax.sharding.get_abstract_mesh().shape)

        def fit(dim: str, size: int) -> tuple[str, ...]:
            axes = axes_of(dim)
            return axes if size % math.prod(sizes[axis] for axis in axes) == 0 else ()

        places = tuple(fit(dim, size) for dim, size in zip(("batch", "tokens"), shape, strict=False))
        return cls(places, fit("vocab", entries))

    @property
    def axes(self) -> tuple[str, ...]:
        """All axes of the places."""
        return tuple(axis for axes in self.places for axis in axes)

    def run(self, function: Callable[..., Any], inputs: tuple[Any, ...], outputs: Any) -> Callable[..., Any]:
        """`function` on each device's share. `inputs` and `outputs` are the words `PLACES` and `WORDS`, one for each
        argument: what lies along the places, what along the vocabulary."""
        if not self.axes and not self.vocab:
            return function
        kinds = {
            PLACES: PartitionSpec(*(axes or None for axes in self.places)),
            WORDS: PartitionSpec(self.vocab or None),
        }
        specs = jax.tree.map(kinds.__getitem__, (inputs, outputs))
        return jax.shard_map(function, in_specs=specs[0], out_specs=specs[1], check_vma=False)

    def first(self, entries: int) -> Array | int:
        """Number of the first of this device's `entries`."""
        return jax.lax.axis_index(self.vocab) * entries if self.vocab else 0

    def over_places(self, tree: Any) -> Any:
        """Sums over the devices that share the places."""
        return jax.lax.psum(tree, self.axes) if self.axes else tree

    def over_vocab(self, tree: Any) -> Any:
        """Sums over the devices that share the vocabulary."""
        return jax.lax.psum(tree, self.vocab) if self.vocab else tree


PLACES, WORDS = "places", "words"


def words_of(table: Float[Array, "V D"], bias: Float[Array, " V"] | None, vocab: int | None, width: int) -> Words:
    """Checks and pairs up table and offset. Raises UserError for shapes that do not fit."""
    if table.ndim != 2 or table.shape[1] != width:
        raise UserError(f"the vocabulary's table must be [V {width}], one vector per entry; got {tuple(table.shape)}")
    if bias is not None and bias.shape != table.shape[:1]:
        raise UserError(f"the vocabulary's offset must be {list(table.shape[:1])}; got {list(bias.shape)}")
    if vocab is not None and not 1 <= vocab <= table.shape[0]:
        raise UserError(f"a table of {table.shape[0]} entries cannot hold a vocabulary of {vocab}")
    return Words(table, bias)
