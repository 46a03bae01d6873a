"""Randomness as a function of (seed, step, name): nothing is threaded, nothing is lost at a restart."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import jax


def named(key: jax.Array, name: str) -> jax.Array:
    """The key of stream `name`; the same name gives the same stream in every process and version."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def at_step(seed: int | jax.Array, step: int | jax.Array, names: Sequence[str]) -> dict[str, jax.Array]:
    """One key per name for training step `step` (traced or not)."""
    key = jax.random.fold_in(jax.random.key(seed), step)
    return {name: named(key, name) for name in names}
