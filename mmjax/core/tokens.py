"""Embedded tokens on their way through a model, and the one function that says who sees whom.

B batch   T tokens   D width
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mmjax.core.batch import MODALITIES
from mmjax.core.errors import UserError
from mmjax.core.pytrees import record


@record
class Places:
    """Where tokens stand: five small integer vectors from which every attention pattern follows."""

    valid: Bool[Array, "B T"]
    block: Int[Array, "B T"]  # sees equal and smaller blocks; all 0 = bidirectional, 0 1 2 .. = causal
    segment: Int[Array, "B T"]  # sees its own sample only; 0 = padding
    position: Int[Array, "B T"]  # for positions and sliding windows
    modality: Int[Array, "B T"]  # index into MODALITIES

    @classmethod
    def all_of(cls, modality: str, batch: int, length: int) -> Places:
        """`length` valid, mutually visible places of one sample per row."""
        zeros = jnp.zeros((batch, length), jnp.int32)
        position = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), (batch, length))
        kind = jnp.full((batch, length), MODALITIES.index(modality), jnp.int32)
        return cls(jnp.ones((batch, length), bool), zeros, zeros + 1, position, kind)

    def causal(self) -> Places:
        """The same places where each sees itself and what stands before it."""
        return self.replace(block=self.position)

    def replace(self, **changes: Array) -> Places:
        """A copy with vectors changed."""
        return dataclasses.replace(self, **changes)


@record
class Live(Places):
    """Places of tokens that continue a row of which a cache holds the rest (see `nn.cache`).

    All rows write at one slot, the `cursor`: what a row has fewer tokens than others is invalid slots before its first.
    """

    slots: Places  # [B S] places of all slots, these tokens among them
    cursor: Int[Array, ""]  # the slot of the first of these tokens

    def bare(self) -> Places:
        """The same places without the rest of the row."""
        return Places(self.valid, self.block, self.segment, self.position, self.modality)


@record
class Tokens:
    """`x` [B T D] with the places it stands at."""

    x: Float[Array, "B T D"]
    places: Places

    @property
    def valid(self) -> Bool[Array, "B T"]:
        """Which tokens are real."""
        return self.places.valid

    def with_x(self, x: Float[Array, "B T D2"]) -> Tokens:
        """Other values at the same places."""
        return Tokens(x, self.places)

    def clean(self) -> Tokens:
        """Zeros where nothing is real, so that what stands there, NaN too, reaches neither values nor gradients."""
        return self.with_x(jnp.where(self.valid[..., None], self.x, 0))

    @staticmethod
    def concat(parts: Sequence[Tokens]) -> Tokens:
        """One row out of several, in order. Raises when widths differ."""
        widths = {part.x.shape[-1] for part in parts}
        if len(widths) != 1:
            raise UserError(f"tokens of different widths cannot be joined: {sorted(widths)}; project them first")
        if len(parts) == 1:
            return parts[0]
        return jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis=1), *parts)

    def split(self, lengths: Sequence[int]) -> list[Tokens]:
        """The inverse of `concat`."""
        if sum(lengths) != self.x.shape[1]:
            raise UserError(f"cannot split {self.x.shape[1]} tokens into {list(lengths)} (sum {sum(lengths)})")
        starts = [sum(lengths[:i]) for i in range(len(lengths))]
        return [jax.tree.map(lambda a, s=s, n=n: a[:, s : s + n], self) for s, n in zip(starts, lengths, strict=True)]

    def mask(self, pattern: Pattern | None = None) -> Bool[Array, "B T T"]:
        """Who sees whom among these tokens (reference; kernels use `visible` on blocks)."""
        return visible(self.places, self.places, pattern or Pattern())


@record
class Fused:
    """What a fusion hands to a decoder: the row, and what its blocks may look at beside the row (None: nothing)."""

    row: Tokens
    memory: Tokens | None = None


@dataclasses.dataclass(frozen=True)
class Pattern:
    """What narrows visibility beyond the places: a window, or modalities that must not see each other.

    window: a query sees keys at most `window - 1` positions away, before or after (Longformer, arXiv 2004.05150, 3.1).
    hidden: pairs (query modality, key modality) that are blind, such as ("text", "image").
    """

    window: int | None = None
    hidden: tuple[tuple[str, str], ...] = ()

    def __post_init__(self):
        unknown = [name for pair in self.hidden for name in pair if name not in MODALITIES]
        if unknown:
            raise UserError(f"no modality is called {unknown[0]!r}; there are: {', '.join(MODALITIES)}")
        if self.window is not None and self.window < 1:
            raise UserError(f"an attention window must be at least 1; got {self.window}")


def visible(query: Places, key: Places, pattern: Pattern = Pattern()) -> Bool[Array, "B Q K"]:
    """True where query place q may see key place k: both real, one sample, block not larger, pattern allows it.

    Causal, prefix-LM, bidirectional, block-causal, packed, cross-modal and sliding-window attention are all this
    function of five vectors (the block rule is that of PaliGemma, arXiv 2407.07726).
    """

    def pair(name: str):
        return getattr(query, name)[:, :, None], getattr(key, name)[:, None, :]

    q_valid, k_valid = pair("valid")
    q_segment, k_segment = pair("segment")
    q_block, k_block = pair("block")
    seen = q_valid & k_valid & (q_segment == k_segment) & (k_block <= q_block)
    if pattern.window is not None:
        q_position, k_position = pair("position")
        seen &= jnp.abs(q_position - k_position) < pattern.window
    q_kind, k_kind = pair("modality")
    for blind, to in pattern.hidden:
        seen &= ~((q_kind == MODALITIES.index(blind)) & (k_kind == MODALITIES.index(to)))
    return seen
