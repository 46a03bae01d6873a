"""Averages of the parameters over the steps; evaluation and inference use them where a run keeps one."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class NoAverage:
    """The parameters themselves are what is evaluated."""

    def init(self, params: Any) -> None:
        """Nothing is kept."""
        return None

    def update(self, average: None, params: Any, step: jax.Array) -> None:
        """Nothing is kept."""
        return None

    def of(self, average: None, params: Any) -> Any:
        """The parameters to evaluate."""
        return params


@dataclasses.dataclass(frozen=True)
class Ema:
    """Exponential moving average: average <- d * average + (1 - d) * parameters after each step.

    d = min(decay, (1 + step) / (warmup + step)): the average forgets its start within about `warmup` steps."""

    decay: float = 0.999
    warmup: int = 10

    def init(self, params: Any) -> Any:
        """A float32 copy of the parameters."""
        return jax.tree.map(lambda x: x.astype(jnp.float32), params)

    def update(self, average: Any, params: Any, step: jax.Array) -> Any:
        """The average after `params`, the parameters that step `step` (from 0) has made."""
        d = jnp.minimum(self.decay, (1.0 + step) / (self.warmup + step))
        # As a step towards the parameters: where they are equal it stays exact.
        return jax.tree.map(lambda a, x: a + (1 - d) * (x.astype(jnp.float32) - a), average, params)

    def of(self, average: Any, params: Any) -> Any:
        """The parameters to evaluate, in the parameters' format."""
        return jax.tree.map(lambda a, x: a.astype(x.dtype), average, params)


Average = NoAverage | Ema
