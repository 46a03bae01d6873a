"""Nonlinearities as named values, so that a configuration can hold them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array


def gelu(x: Array) -> Array:
    """Gaussian error linear unit, tanh form (arXiv 1606.08415)."""
    return jax.nn.gelu(x, approximate=True)


def gelu_exact(x: Array) -> Array:
    """Gaussian error linear unit with the error function."""
    return jax.nn.gelu(x, approximate=False)


def gelu_quick(x: Array) -> Array:
    """x sigmoid(1.702 x), as in CLIP's released weights."""
    return x * jax.nn.sigmoid(1.702 * x)


def silu(x: Array) -> Array:
    """x sigmoid(x) (arXiv 1702.03118)."""
    return jax.nn.silu(x)


def relu(x: Array) -> Array:
    """max(x, 0)."""
    return jax.nn.relu(x)


def relu_squared(x: Array) -> Array:
    """max(x, 0) squared (Primer, arXiv 2109.08668)."""
    return jnp.square(jax.nn.relu(x))
