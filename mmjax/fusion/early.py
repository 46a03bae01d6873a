"""Early fusion: media and text are one row, and the stack mixes them from its first block on.

B rows   T places of the row   M media tokens of a row   D width

A fusion is called with the row (text embedded, at its places), the batch's `Text` and the tokens of each media kind,
and gives `Fused`. Places of the row that wait for media (`text.slot` is not -1) and get none are *empty*; what stands
there is a part: `LeftOut` or `StandIn`. A fusion that needs rows laid out for the tokens of an item says so with a
method `check_sizes`; others take any number of places per item.
"""

from __future__ import annotations

from collections.abc import Mapping

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool

from mmjax.core.batch import MEDIA, MODALITIES, Text
from mmjax.core.errors import UserError, unknown_name
from mmjax.core.parameters import declare, slot
from mmjax.core.tokens import Fused, Tokens
from mmjax.nn.linear import Normal
from mmjax.ops.masks import Order, bidirectional


class LeftOut(nn.Module):
    """Nobody sees an empty place."""

    def __call__(self, row: Tokens, empty: Bool[Array, "B T"]) -> Tokens:
        return Tokens(row.x, row.places.replace(valid=row.valid & ~empty))


class StandIn(nn.Module):
    """A learned vector of the missing modality stands at an empty place (as in missing-aware
    prompts, arXiv 2303.03369)."""

    @nn.compact
    def __call__(self, row: Tokens, empty: Bool[Array, "B T"]) -> Tokens:
        return row.with_x(jnp.where(empty[..., None], _vectors(self, row), row.x))


class NoTypes(nn.Module):
    """Nothing tells the modalities apart but what their tokens are."""

    def __call__(self, tokens: Tokens) -> Tokens:
        return tokens


class ModalityTypes(nn.Module):
    """A learned vector per modality is added to its tokens (ViLT, arXiv 2102.03334)."""

    @nn.compact
    def __call__(self, tokens: Tokens) -> Tokens:
        return tokens.with_x(tokens.x + _vectors(self, tokens))


def _vectors(module: nn.Module, tokens: Tokens) -> Array:
    """A learned vector for the modality of each token [B T D]."""
    table = declare(module, "table", Normal(0.02), latents=len(MODALITIES), width=tokens.x.shape[-1])
    return jnp.take(table, tokens.places.modality, axis=0).astype(tokens.x.dtype)


class TextOnly(nn.Module):
    """The row alone: the language-only twin of any model. Places that wait for media are `empty`."""

    empty: nn.Module = slot(LeftOut)

    def __call__(self, row: Tokens, text: Text, media: Mapping[str, Tokens]) -> Fused:
        return Fused(self.empty(row, text.slot >= 0))


class Interleave(nn.Module):
    """Media tokens stand in the row where the collator kept places for them, in any order and number (Frozen, arXiv
    2106.13884; LLaVA, arXiv 2304.08485; Kosmos-1, arXiv 2302.14045; PaLM-E, arXiv 2303.03378).

    empty: what stands where the media item is absent. types: what tells the modalities apart. Raises UserError when the
    row was laid out for other sizes than the media have, and when widths differ.
    """

    empty: nn.Module = slot(LeftOut)
    types: nn.Module = slot(NoTypes)

    def check_sizes(self, text: Text, given: Mapping[str, int]) -> None:
        """Raises UserError unless the row keeps as many places for an item of each kind as it has tokens (`given`)."""
        for kind, size in text.per_item:
            if given.get(kind, size) != size:
                raise UserError(
                    f"the row was laid out for {size} tokens per {kind}, but the model makes {given[kind]} of each; "
                    f"lay out the data for {given[kind]}, or change the encoder or its connector"
                )

    def __call__(self, row: Tokens, text: Text, media: Mapping[str, Tokens]) -> Fused:
        check_layout(text, media)
        waits = text.slot >= 0
        if media:
            given = Tokens.concat([media[kind].clean() for kind in MEDIA if kind in media])
            check_width(row, given)
            row, lacking = _landed(row, text, given)
        else:
            lacking = waits
        return Fused(self.types(self.empty(row, lacking)))


def _landed(row: Tokens, text: Text, media: Tokens) -> tuple[Tokens, Array]:
    """The row with media tokens at its slots, and which of its places got none."""
    waits, index = text.slot >= 0, jnp.maximum(text.slot, 0)

    def pick(x: Array, otherwise: Array) -> Array:
        landing = index.reshape(*index.shape, *[1] * (x.ndim - 2))
        found = jnp.take_along_axis(x, landing, axis=1)
        return jnp.where(waits.reshape(landing.shape), found.astype(otherwise.dtype), otherwise)

    real = pick(media.valid, jnp.ones_like(waits))
    modality = pick(media.places.modality, row.places.modality)
    return Tokens(pick(media.x, row.x), row.places.replace(modality=modality)), ~real


class Concatenate(nn.Module):
    """All media tokens, then the text: one stream (VisualBERT, arXiv 1908.03557; UNITER, arXiv 1909.11740; ViLT, arXiv
    2102.03334). The row becomes M + T long; the text is its last T places.

    order: who sees whom. `bidirectional`: everybody. `as_laid_out`: media join the bidirectional prefix of their sample
    and the text keeps its blocks (prefix-LM: PaliGemma, arXiv 2407.07726). Positions stay those of each
    by itself. Places of the text that wait for media are `empty`.
    """

    order: Order = bidirectional
    empty: nn.Module = slot(LeftOut)
    types: nn.Module = slot(ModalityTypes)

    def __call__(self, row: Tokens, text: Text, media: Mapping[str, Tokens]) -> Fused:
        check_kinds(media)
        given = [media[kind].clean() for kind in MEDIA if kind in media]
        for tokens in given:
            check_width(row, tokens)
        front = [Tokens(part.x, bidirectional(part.places)) for part in given]
        row = self.empty(row, text.slot >= 0)
        whole = Tokens.concat([*front, row]) if front else row
        return Fused(self.types(Tokens(whole.x, self.order(whole.places))))


def check_kinds(media: Mapping[str, Tokens]) -> None:
    """Raises UserError for a kind that no row knows."""
    for kind in media:
        if kind not in MEDIA:
            raise UserError("fusion: " + unknown_name("kind of media", kind, MEDIA))


def check_width(row: Tokens, media: Tokens) -> None:
    """Raises UserError unless media tokens are as wide as the row."""
    if row.x.shape[-1] != media.x.shape[-1]:
        raise UserError(
            f"fusion: the row is {row.x.shape[-1]} wide, the media tokens {media.x.shape[-1]}; give their encoder a "
            f"connector to the row's width, such as mmjax.fusion.connectors.Project({row.x.shape[-1]})"
        )


def check_layout(text: Text, media: Mapping[str, Tokens]) -> None:
    """Raises UserError, with all faults at once, unless the row was laid out for media of just these kinds and sizes.

    Shapes alone tell sizes up to a multiple; whoever knows the number of items asks `Interleave.check_sizes`, too."""
    check_kinds(media)
    laid, faults = dict(text.per_item), []
    for kind in MEDIA:
        count, size = media[kind].x.shape[1] if kind in media else 0, laid.get(kind, 0)
        if kind in media and not size:
            faults.append(f"there are {kind} tokens, but the row keeps no places for any")
        elif size and kind not in media:
            faults.append(f"each {kind} was laid out with {size} places, but there are no {kind} tokens")
        elif size and count % size:
            faults.append(f"each {kind} was laid out with {size} places, but {count} tokens are no multiple of it")
    if faults:
        raise UserError(
            "fusion: the token row and the media disagree: " + "; ".join(faults) + ". Lay the row out with as many "
            "tokens per item as encoder and connector give"
        )
