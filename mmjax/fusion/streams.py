"""Streams: each modality keeps a stack of its own, and they look at each other on the way.

B rows   S samples of a row   T tokens of a modality   F bottleneck tokens of a sample   D width

Fusions here map {modality: Tokens} to {modality: Tokens}. Their layers are blocks over dicts, {modality: [B T D]} at
{modality: Places}, with weights of their own for each modality and no memory beside, so that `Stack` and `Chain` hold
them like any block:

    ViLBERT   Streams(Stack(Chain((CoAttention(Attention(8)), Apart(Block(Attention(8))))), 6))
    MBT       Bottleneck(Stack(BottleneckLayer(Block(Attention(12))), 4), latents=4)

Who sees whom is a matter of places, as everywhere: samples are apart, invalid tokens are seen by nobody, and what
stands in a causal block does not leak to smaller ones through another modality.
"""

from __future__ import annotations

from collections.abc import Mapping

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array

from mmjax.core.batch import MODALITIES
from mmjax.core.errors import UserError, unknown_name
from mmjax.core.parameters import declare, slot
from mmjax.core.tokens import Places, Tokens
from mmjax.nn.feedforward import FeedForward
from mmjax.nn.linear import Normal
from mmjax.nn.norms import LayerNorm

Arrays = Mapping[str, Array]


class Streams(nn.Module):
    """A stack of layers over dicts of modalities, between Tokens."""

    stack: nn.Module

    def __call__(self, streams: Mapping[str, Tokens], samples: int = 1, *, train: bool = False) -> dict[str, Tokens]:
        streams = {name: tokens.clean() for name, tokens in streams.items()}
        x, places = _apart(streams)
        x = self.stack(x, places, train=train)
        return {name: tokens.with_x(x[name]) for name, tokens in streams.items()}


class Apart(nn.Module):
    """Each modality goes through its own copy of `block` and sees only itself."""

    block: nn.Module

    @nn.compact
    def __call__(
        self, x: Arrays, places: Mapping[str, Places], memory: None = None, *, train: bool = False
    ) -> dict[str, Array]:
        return {name: self.block.copy(name=name)(x[name], places[name], train=train) for name in x}


class CoAttention(nn.Module):
    """The queries of each modality attend to the keys and values of all others, then a feed-forward: the co-attentional
    transformer layer (ViLBERT, arXiv 1908.02265, figure 2b), with norms before the branches.

    Two modalities may have different widths; of three or more, all have one. Raises UserError for fewer than two."""

    attention: nn.Module
    feedforward: nn.Module = slot(FeedForward)
    norm: nn.Module = slot(LayerNorm)

    @nn.compact
    def __call__(
        self, x: Arrays, places: Mapping[str, Places], memory: None = None, *, train: bool = False
    ) -> dict[str, Array]:
        if len(x) < 2:
            raise UserError(f"co-attention needs two modalities at least; got {', '.join(x) or 'none'}")
        normed = {name: Tokens(self._norm(f"{name}_norm")(x[name]), places[name]) for name in x}
        return {name: self._stream(name, x[name], normed, train) for name in x}

    def _stream(self, name: str, x: Array, normed: Mapping[str, Tokens], train: bool) -> Array:
        others = Tokens.concat([tokens for other, tokens in normed.items() if other != name])
        own = normed[name]
        x = x + self.attention.copy(name=f"{name}_attention")(own.x, own.places, others.x, others.places)
        fed = self._norm(f"{name}_feedforward_norm")(x)
        return x + self.feedforward.copy(name=f"{name}_feedforward")(fed, train=train)

    def _norm(self, name: str) -> nn.Module:
        return self.norm.copy(name=name)


class Guided(nn.Module):
    """One modality is encoded first and guides the others through their whole stacks: MCAN's encoder-decoder of
    self-attention and guided attention (arXiv 1906.10770, figure 5b).

    encoder: the stack of the `guide`. decoder: the stack of each other modality, of blocks with a `cross` slot:
    `Guided("text", Stack(Block(Attention(8)), 6), Stack(Block(Attention(8), cross=Attention(8)), 6))`.
    Raises UserError when the guide is not among the streams.
    """

    guide: str
    encoder: nn.Module
    decoder: nn.Module

    @nn.compact
    def __call__(self, streams: Mapping[str, Tokens], samples: int = 1, *, train: bool = False) -> dict[str, Tokens]:
        if self.guide not in streams:
            raise UserError("guided attention: " + unknown_name("stream", self.guide, streams))
        streams = {name: tokens.clean() for name, tokens in streams.items()}
        guide = streams[self.guide]
        guide = guide.with_x(self.encoder(guide.x, guide.places, train=train))
        fused = {self.guide: guide}
        for name in [name for name in streams if name != self.guide]:
            tokens, decoder = streams[name], self.decoder.copy(name=f"{name}_decoder")
            fused[name] = tokens.with_x(decoder(tokens.x, tokens.places, guide, train=train))
        return fused


BOTTLENECK = "bottleneck"
"""The key under which a layer finds the tokens that all modalities share."""


class Bottleneck(nn.Module):
    """Modalities exchange what `latents` tokens per sample can carry: attention bottlenecks (MBT, arXiv 2107.00135).
    stack: of `BottleneckLayer`. `samples` is S. All streams have one width."""

    stack: nn.Module
    latents: int = 4

    @nn.compact
    def __call__(self, streams: Mapping[str, Tokens], samples: int = 1, *, train: bool = False) -> dict[str, Tokens]:
        streams = {name: tokens.clean() for name, tokens in streams.items()}
        some = next(iter(streams.values())).x
        table = declare(self, "latents_table", Normal(0.02), latents=self.latents, width=some.shape[-1])
        shared = jnp.tile(table.astype(some.dtype), (some.shape[0], samples, 1))
        spots = Places.all_of(MODALITIES[0], some.shape[0], samples * self.latents)
        spots = spots.replace(segment=spots.position // self.latents + 1)
        x, places = _apart(streams | {BOTTLENECK: Tokens(shared, spots)})
        x = self.stack(x, places, train=train)
        return {name: tokens.with_x(x[name]) for name, tokens in streams.items()}


class BottleneckLayer(nn.Module):
    """Each modality goes through its own copy of `block` together with the bottleneck, which becomes the mean of what
    the modalities made of it (MBT, arXiv 2107.00135), over those that the sample has."""

    block: nn.Module

    @nn.compact
    def __call__(
        self, x: Arrays, places: Mapping[str, Places], memory: None = None, *, train: bool = False
    ) -> dict[str, Array]:
        shared, out, told = Tokens(x[BOTTLENECK], places[BOTTLENECK]), {}, []
        for name in [name for name in x if name != BOTTLENECK]:
            joint = Tokens.concat([Tokens(x[name], places[name]), shared])
            y = self.block.copy(name=name)(joint.x, joint.places, train=train)
            own, seen = joint.with_x(y).split([x[name].shape[1], shared.x.shape[1]])
            out[name] = own.x
            told.append((seen.x, _present(places[name], shared.places)[..., None].astype(seen.x.dtype)))
        count = sum(weight for _, weight in told)
        mean = sum(y * weight for y, weight in told) / jnp.maximum(count, 1)
        return out | {BOTTLENECK: jnp.where(count > 0, mean, shared.x)}


def _present(modality: Places, of: Places) -> Array:
    """For each place of `of` whether its sample has a real token of the modality [B F]."""
    return jnp.any(modality.valid[:, None] & (modality.segment[:, None] == of.segment[..., None]), axis=-1)


def _apart(streams: Mapping[str, Tokens]) -> tuple[dict[str, Array], dict[str, Places]]:
    return {name: t.x for name, t in streams.items()}, {name: t.places for name, t in streams.items()}
