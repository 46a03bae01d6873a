"""Cross fusion: the row stays what it is, and its blocks look at the media beside it.

B rows   T places of the row   M media tokens of a row   D, D2 width of the row and of the media
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mmjax.core.batch import MEDIA, MODALITIES, Text
from mmjax.core.errors import UserError
from mmjax.core.parameters import declare, slot
from mmjax.core.tokens import Fused, Live, Places, Tokens
from mmjax.fusion.early import LeftOut, NoTypes, check_kinds
from mmjax.nn.feedforward import FeedForward
from mmjax.nn.norms import LayerNorm


class CrossFusion(nn.Module):
    """The media of all kinds become the memory; text sees those of its sample (Flamingo, arXiv 2204.14198, section 2).

    A media item that has places in the row stands in the memory where the first of these stands: same block, so that
    text before it does not see it, and same position. An item without places is seen by its whole sample. The row may
    keep any number of places per item, one is enough; `empty` says what stands there, `LeftOut` or a learned
    `StandIn` (Flamingo's image marker). types: what tells modalities in the memory apart.
    """

    empty: nn.Module = slot(LeftOut)
    types: nn.Module = slot(NoTypes)

    def __call__(self, row: Tokens, text: Text, media: Mapping[str, Tokens]) -> Fused:
        check_kinds(media)
        laid, memory, modality = dict(text.per_item), [], row.places.modality
        first = jnp.zeros((row.x.shape[0], 1), jnp.int32)
        for kind in [kind for kind in MEDIA if kind in media or kind in laid]:
            if kind not in media:
                raise UserError(f"fusion: the row keeps places for {kind} tokens, but there are none")
            tokens, size = media[kind].clean(), laid.get(kind, 0)
            item = jnp.cumsum(tokens.places.position == 0, axis=1, dtype=jnp.int32) - 1  # tokens of one count from 0
            last = first + size * (item[:, -1:] + 1)
            here = (text.slot >= first) & (text.slot < last)
            landing = jnp.where(here, (text.slot - first) // max(size, 1), -1)
            stands = {name: _earliest(getattr(row.places, name), landing, item) for name in ("block", "position")}
            memory.append(Tokens(tokens.x, tokens.places.replace(**stands)))
            modality, first = jnp.where(here, MODALITIES.index(kind), modality), last
        row = self.empty(Tokens(row.x, row.places.replace(modality=modality)), text.slot >= 0)
        return Fused(row, self.types(Tokens.concat(memory)) if memory else None)


def _earliest(values: Int[Array, "B T"], landing: Int[Array, "B T"], item: Int[Array, "B M"]) -> Int[Array, "B M"]:
    """For each media token the smallest value where its item lands, 0 where it lands nowhere (`landing` -1)."""
    far = jnp.iinfo(jnp.int32).max
    least = jnp.full(item.shape, far, jnp.int32)
    where = jnp.where(landing < 0, item.shape[1], landing)
    least = least.at[jnp.arange(item.shape[0])[:, None], where].min(values, mode="drop")
    found = jnp.take_along_axis(least, item, axis=1)
    return jnp.where(found == far, 0, found)


@dataclasses.dataclass(frozen=True)
class LastItem:
    """A place sees the last item before it and no other (Flamingo, arXiv 2204.14198, section 2.3).

    (places of queries, of the memory) -> the same with segments that only these pairs share. For a memory whose tokens
    stand where their item does (see `CrossFusion`)."""

    def __call__(self, query: Places, key: Places) -> tuple[Places, Places]:
        before = key.valid[:, None] & (key.segment[:, None] == query.segment[..., None])
        before &= key.position[:, None] <= query.position[..., None]
        last = jnp.max(jnp.where(before, key.position[:, None], -1), axis=-1)
        span = 2**20  # positions of a sample; leaves 2047 samples in a row
        return (
            query.replace(segment=query.segment * span + last + 1),
            key.replace(segment=key.segment * span + key.position + 1),
        )


@dataclasses.dataclass(frozen=True)
class WholeRow:
    """All samples of a row see every item in it: several dialogues about one picture."""

    def __call__(self, query: Places, key: Places) -> tuple[Places, Places]:
        def one(places: Places) -> Places:
            return places.replace(segment=jnp.minimum(places.segment, 1))

        return one(query), one(key)


class Scoped(nn.Module):
    """Attention to a part of the memory: `Scoped(Attention(8), LastItem())` in the `cross` slot of a
    `Block`, or as the attention of a `GatedCross`."""

    attention: nn.Module
    part: LastItem | WholeRow = LastItem()

    def __call__(self, x: Array, places: Places, memory: Array, memory_places: Places) -> Float[Array, "B T D"]:
        asks = places.bare() if isinstance(places, Live) else places
        query, key = self.part(asks, memory_places)
        return self.attention(x, query, memory, key)


class GatedCross(nn.Module):
    """A block that adds what the memory says, each branch times the tanh of a learned gate that starts at 0: a trained
    language model begins as it was (Flamingo, arXiv 2204.14198, section 2.2, figure 4).

    For a `Chain` before every n-th block: `Chain((GatedCross(Attention(8)), block, block, block, block))`. Raises
    UserError when no memory is handed over.
    """

    attention: nn.Module
    feedforward: nn.Module = slot(FeedForward)
    norm: nn.Module = slot(LayerNorm)

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], places: Places | None, memory: Tokens | None = None, *, train: bool = False
    ) -> Float[Array, "B T D"]:
        if memory is None:
            raise UserError(
                "gated cross-attention needs a memory, and this model hands none over: its fusion must be CrossFusion, "
                "and the batch must have slots for media"
            )

        def gated(branch: str, y: Array) -> Array:
            gate = declare(self, f"{branch}_gate", nn.initializers.zeros)
            return x + jnp.tanh(gate).astype(x.dtype) * y

        def norm(branch: str, x: Array) -> Array:
            return self.norm.clone(parent=self, name=f"{branch}_norm")(x)

        x = gated("attention", self.attention(norm("attention", x), places, memory.x, memory.places))
        return gated("feedforward", self.feedforward(norm("feedforward", x), train=train))
