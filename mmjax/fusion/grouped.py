"""Layers with weights of their own for each group of tokens: an expert each, chosen by a router or by the modality.

N tokens   X experts   D width   M hidden width   B rows   T tokens of a row
"""

from __future__ import annotations

import math
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mmjax.core.batch import MODALITIES
from mmjax.core.errors import UserError, unknown_name
from mmjax.core.parameters import declare
from mmjax.core.tokens import Places
from mmjax.nn.activations import gelu, silu
from mmjax.nn.linear import LETTERS, Normal
from mmjax.ops.routing import Dispatch, Everywhere


class GroupedLinear(nn.Module):
    """A linear map for each expert: `GroupedLinear("d->hk", (12, 64), experts=2)` takes [N D] to [N 12 64].

    Letters as in `nn.linear.Linear`; `out` are the sizes after the arrow."""

    equation: str
    out: tuple[int, ...]
    experts: int
    bias: bool = True
    gain: float = 1.0
    dispatch: Dispatch = Everywhere()

    @nn.compact
    def __call__(self, x: Float[Array, "N *in"], expert: Int[Array, " N"]) -> Float[Array, " N *out"]:
        inputs, outputs = self.equation.split("->")
        fan_in = math.prod(x.shape[1:])
        before = {_dim(letter): size for letter, size in zip(inputs, x.shape[1:], strict=True)}
        after = {_dim(letter): size for letter, size in zip(outputs, self.out, strict=True)}
        kernel = declare(self, "kernel", Normal(self.gain * fan_in**-0.5), experts=self.experts, **before, **after)
        flat = kernel.astype(x.dtype).reshape(self.experts, fan_in, -1)
        y = self.dispatch(x.reshape(-1, fan_in), expert, flat)
        if self.bias:
            bias = declare(self, "bias", nn.initializers.zeros, experts=self.experts, **after)
            y += jnp.take(bias.astype(x.dtype).reshape(self.experts, -1), expert, axis=0)
        return y.reshape(-1, *self.out)


def _dim(letter: str) -> str:
    return LETTERS[letter.lower()] + "_" * letter.isupper()


class GroupedFeedForward(nn.Module):
    """`nn.feedforward.FeedForward` with weights for each expert. `mlp` is M; None means 4 D."""

    mlp: int | None = None
    activation: Callable[[Array], Array] = gelu
    bias: bool = True
    gain: float = 1.0
    dispatch: Dispatch = Everywhere()

    @nn.compact
    def __call__(self, x: Float[Array, "N D"], expert: Int[Array, " N"], experts: int) -> Float[Array, "N D"]:
        width = x.shape[-1]
        sizes = {"experts": experts, "bias": self.bias, "dispatch": self.dispatch}
        hidden = GroupedLinear("d->m", (self.mlp or 4 * width,), **sizes, name="up")(x, expert)
        return GroupedLinear("m->d", (width,), **sizes, gain=self.gain, name="down")(self.activation(hidden), expert)


class GroupedGatedFeedForward(nn.Module):
    """`nn.feedforward.GatedFeedForward` with weights for each expert: the experts of Mixtral (arXiv 2401.04088). `mlp`
    is M; None means 8/3 D, rounded up to a multiple of 64."""

    mlp: int | None = None
    activation: Callable[[Array], Array] = silu
    bias: bool = False
    gain: float = 1.0
    dispatch: Dispatch = Everywhere()

    @nn.compact
    def __call__(self, x: Float[Array, "N D"], expert: Int[Array, " N"], experts: int) -> Float[Array, "N D"]:
        width = x.shape[-1]
        mlp = self.mlp or -(-8 * width // (3 * 64)) * 64
        sizes = {"experts": experts, "bias": self.bias, "dispatch": self.dispatch}
        gate = self.activation(GroupedLinear("d->m", (mlp,), **sizes, name="gate")(x, expert))
        hidden = gate * GroupedLinear("d->m", (mlp,), **sizes, name="up")(x, expert)
        return GroupedLinear("m->d", (width,), **sizes, gain=self.gain, name="down")(hidden, expert)


Groups = tuple[tuple[str, ...], ...]

EACH: Groups = (("text",), ("image", "video"), ("audio",), ("sensor",))
"""Weights for text, for what is seen, for what is heard and for what is felt."""

TEXT_AND_MEDIA: Groups = (("text",), ("image", "video", "audio", "sensor"))
"""Weights for text and for all media."""


def group_of(places: Places, groups: Groups) -> Int[Array, "B T"]:
    """Which of `groups` the modality of each place is in. Raises UserError unless each modality is in one of them."""
    named = [name for group in groups for name in group]
    for name in named:
        if name not in MODALITIES:
            raise UserError("groups of modalities: " + unknown_name("modality", name, MODALITIES))
    if sorted(named) != sorted(MODALITIES):
        raise UserError(
            f"groups of modalities: each of {', '.join(MODALITIES)} must be in one group; got "
            + "; ".join(", ".join(group) for group in groups)
        )
    table = [next(i for i, group in enumerate(groups) if name in group) for name in MODALITIES]
    return jnp.take(jnp.asarray(table, jnp.int32), places.modality, axis=0)
