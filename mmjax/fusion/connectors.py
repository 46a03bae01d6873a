"""Connectors: the tokens of an encoder become tokens of the row, fewer or wider.

B rows   N items of a kind in a row   t tokens of an item before, n after   D, D2 width before and after   F fold

A connector is called with tokens [B N*t D] and N, and gives [B N*n D2] with positions 0..n-1 in each item. Items do not
see each other. What stands at invalid tokens never matters, and an item without a valid token stays invalid.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from mmjax.core.errors import UserError
from mmjax.core.parameters import slot
from mmjax.core.tokens import Places, Tokens
from mmjax.nn.activations import gelu_exact
from mmjax.nn.linear import Linear
from mmjax.nn.norms import Identity


def per_item(tokens: Tokens, items: int) -> int:
    """t. Raises UserError when the tokens are not those of so many items."""
    count = tokens.x.shape[1]
    if items < 1 or count % items:
        raise UserError(f"connector: {count} tokens are not those of {items} items, so many for each")
    return count // items


class AsIs(nn.Module):
    """The encoder's tokens as they are."""

    def __call__(self, tokens: Tokens, items: int) -> Tokens:
        per_item(tokens, items)
        return tokens.clean()


class SkipFirst(nn.Module):
    """Each item without its first `count` tokens: the cells of a picture without the class token before them (LLaVA,
    arXiv 2304.08485). Raises UserError when nothing would be left."""

    count: int = 1

    def __call__(self, tokens: Tokens, items: int) -> Tokens:
        size = per_item(tokens, items)
        if not 0 <= self.count < size:
            raise UserError(f"connector: {self.count} of the {size} tokens of an item cannot go; some must stay")

        def cut(x: Array) -> Array:
            rows, *rest = x.shape[0], *x.shape[2:]
            return x.reshape(rows, items, size, *rest)[:, :, self.count :].reshape(rows, -1, *rest)

        valid, segment, modality = map(cut, (tokens.valid, tokens.places.segment, tokens.places.modality))
        return Tokens(cut(tokens.clean().x), item_places(valid, segment, modality, items))


class Placed(nn.Module):
    """What `positions` adds for a token's number in its item, `Placed(LearnedPositions(49))`: for cells of an encoder
    that tells no places (the location features of UNITER, arXiv 1909.11740)."""

    positions: nn.Module

    def __call__(self, tokens: Tokens, items: int) -> Tokens:
        size = per_item(tokens, items)
        x, position = (part.reshape(-1, size, *part.shape[2:]) for part in (tokens.clean().x, tokens.places.position))
        return tokens.with_x(self.positions(x, position).reshape(tokens.x.shape))


class Project(nn.Module):
    """A linear map (Frozen, arXiv 2106.13884; LLaVA, arXiv 2304.08485, equation 1)."""

    width: int
    norm: nn.Module = slot(Identity)

    @nn.compact
    def __call__(self, tokens: Tokens, items: int) -> Tokens:
        per_item(tokens, items)
        return tokens.with_x(Linear("btd,dm->btm", (self.width,), name="map")(self.norm(tokens.clean().x)))


class MLP(nn.Module):
    """Two linear maps with a nonlinearity between (LLaVA-1.5, arXiv 2310.03744). hidden: M; None is `width`."""

    width: int
    hidden: int | None = None
    activation: Callable[[Array], Array] = gelu_exact
    norm: nn.Module = slot(Identity)

    @nn.compact
    def __call__(self, tokens: Tokens, items: int) -> Tokens:
        per_item(tokens, items)
        x = Linear("btd,dm->btm", (self.hidden or self.width,), name="up")(self.norm(tokens.clean().x))
        return tokens.with_x(Linear("btm,md->btd", (self.width,), name="down")(self.activation(x)))


class InTurn(nn.Module):
    """Connectors one after the other: `InTurn((PixelShuffle(2), MLP(2048)))` is InternVL's."""

    parts: tuple[nn.Module, ...]

    def __call__(self, tokens: Tokens, items: int) -> Tokens:
        for part in self.parts:
            tokens = part(tokens, items)
        return tokens


class PixelShuffle(nn.Module):
    """Each `fold` x `fold` square of cells becomes one token that holds them all: n = t / F^2, D2 = F^2 D (InternVL
    1.5, arXiv 2404.16821; Idefics3, arXiv 2408.12637). grid: rows and columns of cells; None is a square."""

    fold: int = 2
    grid: tuple[int, int] | None = None

    def __call__(self, tokens: Tokens, items: int) -> Tokens:
        cells = _squares(tokens.clean().x, items, self.grid, self.fold)
        x = cells.reshape(*cells.shape[:2], -1)
        return Tokens(x, _merged(tokens.places, items, self.grid, self.fold))


class GridPool(nn.Module):
    """The mean of each `fold` x `fold` square of cells, over its valid ones (Gemma 3, arXiv 2503.19786).
    grid: rows and columns of cells; None is a square."""

    fold: int = 2
    grid: tuple[int, int] | None = None

    def __call__(self, tokens: Tokens, items: int) -> Tokens:
        real = _squares(tokens.valid[..., None], items, self.grid, self.fold)
        share = real / jnp.maximum(jnp.sum(real, axis=2, keepdims=True), 1)
        cells = _squares(tokens.clean().x, items, self.grid, self.fold)
        x = jnp.sum(cells * share.astype(cells.dtype), axis=2)
        return Tokens(x, _merged(tokens.places, items, self.grid, self.fold))


def _squares(
    x: Float[Array, "B Nt D"], items: int, grid: tuple[int, int] | None, fold: int
) -> Float[Array, "B Nn FF D"]:
    """The cells of each square side by side. Raises UserError where the squares do not tile the grid."""
    size = x.shape[1] // items
    rows, columns = grid or (math.isqrt(size), math.isqrt(size))
    if x.shape[1] != items * rows * columns or rows % fold or columns % fold:
        raise UserError(
            f"connector: squares of {fold} x {fold} do not tile {x.shape[1] / items:g} tokens of an item as a grid of "
            f"{rows} x {columns}; say its `grid`, take another `fold`, and drop class tokens in the encoder"
        )
    cells = x.reshape(x.shape[0], items, rows // fold, fold, columns // fold, fold, -1)
    return jnp.swapaxes(cells, 3, 4).reshape(x.shape[0], -1, fold * fold, x.shape[-1])


def _merged(places: Places, items: int, grid: tuple[int, int] | None, fold: int) -> Places:
    """Places of the squares: real where any cell is, numbered in each item."""

    def most(x: Array) -> Array:
        return jnp.max(_squares(x[..., None], items, grid, fold), axis=(2, 3))

    valid, segment = most(places.valid), most(places.segment)
    return item_places(valid, segment, most(places.modality), items)


def item_places(valid: Array, segment: Array, modality: Array, items: int) -> Places:
    """Mutually visible places [B N*n], numbered 0..n-1 in each of N items."""
    number = jnp.tile(jnp.arange(valid.shape[1] // items, dtype=jnp.int32), items)
    return Places(valid, jnp.zeros_like(segment), segment, jnp.broadcast_to(number, segment.shape), modality)
