"""Tokens of made-up items, and what every test of a fusion does with them."""

from __future__ import annotations

import functools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.core.batch import MODALITIES
from mmjax.core.config import from_json, to_json
from mmjax.core.tokens import Places, Tokens
from tests.drawn import drawn


def items(kind: str, segment: Any, size: int, width: int = 16, seed: int = 0) -> Tokens:
    """`size` random tokens for each item; segment [B N] says whose it is, 0: absent."""
    segment = np.asarray(segment, np.int32)
    rows, count = segment.shape
    x = np.random.default_rng(seed).normal(size=(rows, count * size, width)).astype(np.float32)
    owner = jnp.repeat(jnp.asarray(segment), size, axis=1)
    position = jnp.broadcast_to(jnp.tile(jnp.arange(size), count), owner.shape)
    modality = jnp.full_like(owner, MODALITIES.index(kind))
    return Tokens(jnp.asarray(x), Places(owner > 0, jnp.zeros_like(owner), owner, position, modality))


def row_of(segment: Any, width: int = 16, seed: int = 9) -> Tokens:
    """A causal text row; segment [B T]."""
    tokens = items("text", segment, 1, width, seed)
    owner = np.asarray(segment)
    position = np.array([[int(np.sum(row[:t] == row[t])) for t in range(len(row))] for row in owner], np.int32)
    return Tokens(tokens.x, tokens.places.replace(position=jnp.asarray(position), block=jnp.asarray(position)))


def spoiled(tokens: Tokens) -> Tokens:
    """The same tokens with NaN wherever nothing is real."""
    return tokens.with_x(jnp.where(tokens.valid[..., None], tokens.x, jnp.nan))


def parameters(module: Any, *inputs: Any) -> Any:
    """Random parameters, also where a module starts with zeros."""
    return {"params": drawn(module, *inputs).get("params", {})}


def run(module: Any, params: Any, *inputs: Any) -> Any:
    """Outputs; whole numbers among the inputs come last."""
    arrays, counts = _parted(inputs)
    return _compiled(module, counts)[0](params, *arrays)


def values_and_gradient(module: Any, params: Any, *inputs: Any) -> tuple[Any, Any]:
    """(outputs, gradient of the sum of the sines of all real ones)."""
    arrays, counts = _parted(inputs)
    (_, out), gradient = _compiled(module, counts)[1](params, *arrays)
    return out, gradient


def _parted(inputs: tuple[Any, ...]) -> tuple[list[Any], tuple[int, ...]]:
    counts = tuple(x for x in inputs if isinstance(x, int))
    return list(inputs[: len(inputs) - len(counts)]), counts


@functools.lru_cache
def _compiled(module: Any, counts: tuple[int, ...]) -> tuple[Any, Any]:
    def forward(params, *arrays):
        return module.apply(params, *arrays, *counts)

    def loss(params, *arrays):
        out = forward(params, *arrays)
        return sum(jnp.sum(jnp.sin(x)) for x in jax.tree.leaves(real(out)) if x.dtype == jnp.float32), out

    return jax.jit(forward), jax.jit(jax.value_and_grad(loss, has_aux=True))


def real(tree: Any) -> Any:
    """Zeros where tokens are not real, so that outputs can be compared."""
    return jax.tree.map(
        lambda x: x.clean().x if isinstance(x, Tokens) else x, tree, is_leaf=lambda x: isinstance(x, Tokens)
    )


def assert_same(a: Any, b: Any, atol: float = 2e-5) -> None:
    """Equal trees of finite numbers."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert np.isfinite(np.asarray(x, np.float64)).all()
        np.testing.assert_allclose(x, y, atol=atol)


def through_json(value: Any) -> Any:
    return from_json(json.loads(json.dumps(to_json(value), allow_nan=False)))
