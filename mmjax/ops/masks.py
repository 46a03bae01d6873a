"""Ways to see a row of tokens: functions from places to places, one line each (see `core.tokens.visible`).

Pass one as a value: `TextEncoder(order=causal)`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp

from mmjax.core.tokens import Places

Order = Callable[[Places], Places]


def as_laid_out(places: Places) -> Places:
    """The blocks the collator chose: bidirectional prefix, then causal, per sample."""
    return places


def bidirectional(places: Places) -> Places:
    """Every token sees its whole sample."""
    return dataclasses.replace(places, block=jnp.zeros_like(places.block))


def causal(places: Places) -> Places:
    """Every token sees itself and what stands before it in its sample."""
    return places.causal()
