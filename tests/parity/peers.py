"""One comparison for all models."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import torch

from mmjax.core.pytrees import flatten_names

Renaming = Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]
"""From our flat parameters, or their gradients, to the peer's."""

OUTPUTS, GRADIENTS = 2e-5, 1e-4  # of the largest number: float32, and sums in another order


def assert_same(
    ours: Callable[[Any], jax.Array],
    params: Any,
    peer: torch.nn.Module,
    theirs: Callable[[], torch.Tensor],
    renaming: Renaming,
    counts: np.ndarray | None = None,
    unlike: str = "",
) -> None:
    """The peer gets our parameters, and none of its own is left; outputs agree where `counts`, and so do the gradients
    of a random weighting of them.

    unlike: names of what the peer has and does not use, or has two of where we have one (a regular expression)."""

    def translated(tree: Any) -> dict[str, np.ndarray]:
        flat = {name: np.asarray(x) for name, x in flatten_names(tree).items()}
        return {name: np.array(x) for name, x in renaming(flat).items()}

    own = {name: x for name, x in peer.named_parameters() if not (unlike and re.fullmatch(unlike, name))}
    given = translated(params)
    assert given.keys() >= own.keys(), f"the peer's {sorted(own.keys() - given.keys())} got nothing"
    told = peer.eval().load_state_dict({name: torch.from_numpy(x) for name, x in given.items()}, strict=False)
    assert not told.unexpected_keys, f"the peer does not know {told.unexpected_keys}"

    shape = jax.eval_shape(ours, params).shape
    weight = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    weight *= 1 if counts is None else counts[..., None]

    def weighted(params: Any) -> tuple[jax.Array, jax.Array]:
        y = ours(params)
        return (y * weight).sum(), y

    (_, mine), slopes = jax.jit(jax.value_and_grad(weighted, has_aux=True))(params)
    said = theirs()
    assert_close("outputs", np.asarray(mine) * (weight != 0), said.detach().numpy() * (weight != 0), OUTPUTS)
    (said * torch.from_numpy(weight)).sum().backward()
    slopes = translated(slopes)
    steepest = max(float(np.max(np.abs(slopes[name]))) for name in own)
    for name, x in own.items():
        expected = np.zeros(x.shape, np.float32) if x.grad is None else x.grad.numpy()
        # A bias of all keys has no effect: what is left of its gradient is rounding.
        assert_close(f"gradient of {name}", slopes[name], expected, GRADIENTS, 1e-3 * steepest)


def assert_close(what: str, mine: np.ndarray, theirs: np.ndarray, tolerance: float, at_least: float = 0.0) -> None:
    """Raises where two arrays differ by more than `tolerance` of the largest number, or of `at_least`."""
    scale = max(float(np.max(np.abs(theirs))), at_least)
    np.testing.assert_allclose(mine / scale, theirs / scale, rtol=0, atol=tolerance, err_msg=what)
