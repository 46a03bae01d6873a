"""Update rules: from a gradient to a direction, before learning rate, decay and groups (`optim.py` adds those)."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import jax
import optax

from mmjax.core.parameters import is_declared

BATCHED = ("layers", "stack", "experts")
"""Dimensions that hold several weights side by side."""
TABLES = ("vocab", "position", "latents")
"""Dimensions that are looked up, not multiplied with."""


def matrix(dims: tuple[str | None, ...]) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """(input, output) dimension numbers of a weight that multiplies activations; None for biases, scales and tables.

    `("layers", "width", "heads", "head_dim")` -> `((1,), (2, 3))`: heads count as one output, layers as a batch."""
    if any(dim in TABLES for dim in dims):
        return None
    own = [i for i, dim in enumerate(dims) if dim not in BATCHED]
    ends_in_heads = len(own) >= 2 and dims[own[-1]] == "head_dim" and dims[own[-2]] in ("heads", "kv_heads")
    cut = len(own) - (2 if ends_in_heads else 1)
    return (tuple(own[:cut]), tuple(own[cut:])) if cut > 0 else None


class Rule(Protocol):
    """How gradients become directions of about unit size, to be multiplied with the learning rate and subtracted."""

    def direction(self, declared: Any) -> optax.GradientTransformation:
        """The transformation for parameters with these declarations."""
        ...


@dataclasses.dataclass(frozen=True)
class Adam:
    """Adam (arXiv 1412.6980), with decay AdamW (arXiv 1711.05101). Moments are kept in `moments` format."""

    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    moments: str = "float32"  # of the first moment; the second stays float32

    def direction(self, declared: Any) -> optax.GradientTransformation:
        return optax.scale_by_adam(self.b1, self.b2, self.eps, mu_dtype=self.moments)


@dataclasses.dataclass(frozen=True)
class Lion:
    """The sign of a momentum (arXiv 2302.06675). Wants a rate 3 to 10 times below Adam's and as much more decay."""

    b1: float = 0.9
    b2: float = 0.99
    moments: str = "float32"

    def direction(self, declared: Any) -> optax.GradientTransformation:
        return optax.scale_by_lion(self.b1, self.b2, mu_dtype=self.moments)


@dataclasses.dataclass(frozen=True)
class Adafactor:
    """Second moments as row and column means (arXiv 1804.04235), updates clipped to RMS `clip_rms`.

    Matrices with both sides at least `factor_from` are factored."""

    decay_exponent: float = 0.8
    clip_rms: float = 1.0
    factor_from: int = 128

    def direction(self, declared: Any) -> optax.GradientTransformation:
        factored = optax.scale_by_factored_rms(decay_rate=self.decay_exponent, min_dim_size_to_factor=self.factor_from)
        return optax.chain(factored, optax.clip_by_block_rms(self.clip_rms))


@dataclasses.dataclass(frozen=True)
class Muon:
    """Orthogonalised momentum for matrices, `rest` for everything else (Muon is Scalable, arXiv 2502.16982).

    `rms` is the size of a matrix's update; 0.2 is Adam's, so that both share one learning rate (their section 2.2).
    Stacked layers are orthogonalised one by one."""

    beta: float = 0.95
    rms: float = 0.2
    rest: Adam = Adam()

    def direction(self, declared: Any) -> optax.GradientTransformation:
        def numbers(leaf: Any) -> optax.contrib.MuonDimensionNumbers | None:
            found = matrix(leaf.dims) if is_declared(leaf) else None
            return found and optax.contrib.MuonDimensionNumbers(*found)

        dimensions = jax.tree.map(numbers, declared, is_leaf=is_declared)
        kinds = jax.tree.map(lambda leaf: "matrix" if numbers(leaf) else "rest", declared, is_leaf=is_declared)
        # Rate -1: optax subtracts, and `Optimizer` applies the sign and the rate to all rules alike. Its own Adam for
        # the rest would be a Nesterov one, so it is shown the matrices only.
        matrices = optax.contrib.muon(
            -1.0, beta=self.beta, consistent_rms=self.rms, muon_weight_dimension_numbers=dimensions
        )
        return optax.partition({"matrix": matrices, "rest": self.rest.direction(declared)}, kinds)
