"""Mergeable means: a sum and a count, never a mean of means."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mmjax.core.pytrees import record


@record
class Mean:
    """A weighted mean kept as `total` and `count` (float32 scalars), so that parts merge exactly."""

    total: jax.Array
    count: jax.Array

    @classmethod
    def of(cls, values: jax.Array, where: jax.Array | None = None) -> Mean:
        """The mean of `values` [...], each counted with weight `where` (bool or float of the same shape)."""
        values = jnp.asarray(values, jnp.float32)
        weight = jnp.ones_like(values) if where is None else jnp.broadcast_to(where, values.shape).astype(jnp.float32)
        # `where` and not a product: a masked NaN must not reach the sum, nor its gradient.
        return cls(jnp.sum(jnp.where(weight > 0, values, 0.0) * weight), jnp.sum(weight))

    def __add__(self, other: Mean) -> Mean:
        return Mean(self.total + other.total, self.count + other.count)

    @property
    def value(self) -> jax.Array:
        """total / count, and 0 where nothing was counted."""
        return jnp.where(self.count > 0, self.total / jnp.where(self.count > 0, self.count, 1.0), 0.0)
