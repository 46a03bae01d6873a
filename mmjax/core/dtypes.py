"""Which number format is used where."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from mmjax.core.errors import UserError, unknown_name

_FLOATS = ("float32", "bfloat16", "float16", "float64")


@dataclasses.dataclass(frozen=True)
class Dtypes:
    """Formats of a model. Layers compute in the format of what they are given; the encoder at the entrance casts to
    `compute`, heads leave in `output`. Softmax, norms and losses accumulate in float32 whatever is said here."""

    params: str = "float32"
    compute: str = "float32"
    output: str = "float32"

    def __post_init__(self):
        for name in (self.params, self.compute, self.output):
            if name not in _FLOATS:
                raise UserError(unknown_name("number format", str(name), _FLOATS))

    def enter(self, x):
        """Casts what enters a model."""
        return jnp.asarray(x, self.compute)

    def leave(self, x):
        """Casts what leaves a model."""
        return jnp.asarray(x, self.output)
