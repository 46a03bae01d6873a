"""Learning rates over the steps of a run. The number of steps comes from the experiment and is never repeated here.

Each schedule is a value; `build(steps)` gives the function of the step (counted from 0, traced or not) that the
optimizer multiplies with.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp

from mmjax.core.errors import UserError

Rate = Callable[[jax.Array | int], jax.Array]


class Schedule(Protocol):
    """A learning rate over a run of any length."""

    def build(self, steps: int) -> Rate:
        """The function of the step for a run of `steps` steps. Raises UserError where the two do not fit."""
        ...


@dataclasses.dataclass(frozen=True)
class Constant:
    """`peak` after a linear warmup."""

    peak: float
    warmup: int = 0

    def build(self, steps: int) -> Rate:
        return _warmed(self.peak, self.warmup, steps, jnp.ones_like)


@dataclasses.dataclass(frozen=True)
class Cosine:
    """Linear warmup to `peak`, then half a cosine down to `end` at the last step (SGDR, arXiv 1608.03983, eq. 5)."""

    peak: float
    warmup: int = 0
    end: float = 0.0

    def build(self, steps: int) -> Rate:
        floor = self.end / self.peak if self.peak else 0.0

        def shape(done: jax.Array) -> jax.Array:
            return floor + (1 - floor) * 0.5 * (1 + jnp.cos(jnp.pi * _part(done, self.warmup, steps)))

        return _warmed(self.peak, self.warmup, steps, shape)


@dataclasses.dataclass(frozen=True)
class Linear:
    """Linear warmup to `peak`, then a straight line down to `end` at the last step."""

    peak: float
    warmup: int = 0
    end: float = 0.0

    def build(self, steps: int) -> Rate:
        floor = self.end / self.peak if self.peak else 0.0
        return _warmed(self.peak, self.warmup, steps, lambda done: 1 - (1 - floor) * _part(done, self.warmup, steps))


@dataclasses.dataclass(frozen=True)
class Rsqrt:
    """Linear warmup to `peak`, then peak / sqrt(step / timescale), and a linear cooldown to 0 over the last `cooldown`
    steps (Scaling Vision Transformers, arXiv 2106.04560, section 3.4)."""

    peak: float
    warmup: int = 0
    timescale: int = 10_000
    cooldown: int = 0

    def build(self, steps: int) -> Rate:
        def shape(done: jax.Array) -> jax.Array:
            decay = jnp.sqrt(self.timescale / (jnp.maximum(done - self.warmup, 0.0) + self.timescale))
            left = (steps - done) / max(self.cooldown, 1)
            return decay * (jnp.clip(left, 0.0, 1.0) if self.cooldown else 1.0)

        return _warmed(self.peak, self.warmup + self.cooldown, steps, shape, ramp=self.warmup)


@dataclasses.dataclass(frozen=True)
class StepDecay:
    """Linear warmup to `peak`, multiplied by `factor` at each of `boundaries` (steps)."""

    peak: float
    boundaries: tuple[int, ...]
    factor: float = 0.1
    warmup: int = 0

    def build(self, steps: int) -> Rate:
        late = [step for step in self.boundaries if step >= steps]
        if late:
            raise UserError(
                f"step decay: boundary {late[0]} lies beyond the last of {steps} steps; name an earlier step"
            )

        def shape(done: jax.Array) -> jax.Array:
            return self.factor ** sum((done >= step).astype(jnp.float32) for step in self.boundaries)

        return _warmed(self.peak, self.warmup, steps, shape if self.boundaries else jnp.ones_like)


@dataclasses.dataclass(frozen=True)
class ReduceOnPlateau:
    """`schedule`, multiplied by `factor` each time the mean training loss of `window` steps has not got better by the
    fraction `tolerance` for `patience` windows in a row. The optimizer keeps count of it (see `optim.Optimizer`)."""

    schedule: Constant | Cosine | Linear | Rsqrt | StepDecay
    factor: float = 0.5
    patience: int = 5
    window: int = 100
    tolerance: float = 1e-3
    smallest: float = 1e-3  # of the scheduled rate

    def build(self, steps: int) -> Rate:
        return self.schedule.build(steps)


def _part(done: jax.Array, warmup: int, steps: int) -> jax.Array:
    """How much of the run after the warmup is done, 0..1."""
    return jnp.clip((done - warmup) / max(steps - warmup, 1), 0.0, 1.0)


def _warmed(peak: float, busy: int, steps: int, shape: Callable, ramp: int | None = None) -> Rate:
    """peak * shape(step), rising linearly from 0 (exclusive) over `ramp` steps (default: the `busy` ones).

    Raises UserError when the run is not longer than the steps that are spoken for."""
    ramp = busy if ramp is None else ramp
    if busy < 0 or (busy and busy >= steps):
        raise UserError(
            f"learning rate: {busy} steps of warmup and cooldown do not fit into a run of {steps}; "
            f"set them to fewer than {steps}"
        )

    def rate(step: jax.Array | int) -> jax.Array:
        done = jnp.asarray(step, jnp.float32)
        rise = jnp.minimum((done + 1) / ramp, 1.0) if ramp else 1.0
        return peak * rise * shape(done)

    return rate
