"""Objectives over classes.  B rows   S samples of a row   C classes"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from mmjax.core.batch import Batch
from mmjax.core.errors import UserError
from mmjax.core.means import Mean


@dataclasses.dataclass(frozen=True)
class Softmax:
    """One class of C: cross entropy with the label, an integer [B S]; below 0 means unknown and counts nothing.

    smoothing: share of the truth that is spread over all classes (arXiv 1512.00567, section 7). weights: what each
    class counts, () for all alike; the mean is over these weights. gamma: easy samples count (1 - p) ** gamma of
    themselves (focal loss, arXiv 1708.02002, equation 4). logits: name of the output, [B S C] or [B C].
    Reports "accuracy". Raises UserError when weights or logits do not fit."""

    label: str
    smoothing: float = 0.0
    weights: tuple[float, ...] = ()
    gamma: float = 0.0
    logits: str = "logits"

    def __call__(self, outputs: Mapping[str, Any], batch: Batch) -> dict[str, Mean]:
        label = batch.labels[self.label]
        logits = _fitting(self, outputs, label.size)
        label = label.reshape(-1)
        real = (label >= 0) & batch.valid.reshape(-1)
        score = jax.nn.log_softmax(logits, axis=-1)
        own = jnp.take_along_axis(score, jnp.maximum(label, 0)[:, None], axis=-1)[:, 0]
        loss = -(1 - self.smoothing) * own - self.smoothing * jnp.mean(score, axis=-1)
        loss = loss * _ease(own, self.gamma)
        weight = real * _weights(self, logits.shape[-1])[jnp.maximum(label, 0)]
        right = jnp.argmax(logits, axis=-1) == label
        return {"loss": Mean.of(loss, weight), "accuracy": Mean.of(right, real)}


@dataclasses.dataclass(frozen=True)
class Sigmoid:
    """Any of C classes: binary cross entropy of each with the label [B S C], 1, 0, or below 0 for unknown.

    gamma, alpha: focal loss (arXiv 1708.02002, equation 5; 2 and 0.25 there): easy decisions count less, and positives
    count alpha, negatives 1 - alpha; None counts both alike. weights: what each class counts, () for all alike.
    Reports "accuracy" over decisions. Raises UserError when weights or logits do not fit."""

    label: str
    gamma: float = 0.0
    alpha: float | None = None
    weights: tuple[float, ...] = ()
    logits: str = "logits"

    def __call__(self, outputs: Mapping[str, Any], batch: Batch) -> dict[str, Mean]:
        label = batch.labels[self.label]
        label = label.reshape(-1, label.shape[-1]).astype(jnp.float32)
        logits = _fitting(self, outputs, label.shape[0], label.shape[1])
        real = (label >= 0) & batch.valid.reshape(-1, 1)
        # An unknown label is judged as a 0 that counts nothing: "probabilities" beyond 1 would poison the gradient.
        loss = optax.sigmoid_binary_cross_entropy(logits, jnp.maximum(label, 0))
        share = 1.0 if self.alpha is None else jnp.where(label > 0, self.alpha, 1 - self.alpha)
        loss = share * loss * _ease(-loss, self.gamma)
        weight = real * _weights(self, logits.shape[-1])
        return {"loss": Mean.of(loss, weight), "accuracy": Mean.of((logits > 0) == (label > 0), real)}


def _fitting(
    objective: Softmax | Sigmoid, outputs: Mapping[str, Any], samples: int, classes: int | None = None
) -> Float[Array, "N C"]:
    logits = outputs[objective.logits]
    flat = logits.reshape(-1, logits.shape[-1])
    if flat.shape[0] != samples or classes not in (None, flat.shape[1]):
        name, what = type(objective).__name__, f"{samples} samples" + (f" of {classes} classes" if classes else "")
        raise UserError(f"{name}: output {objective.logits} is {logits.shape}; label {objective.label} has {what}")
    return flat.astype(jnp.float32)


def _ease(log_p: Array, gamma: float) -> Array:
    """(1 - p) ** gamma. From the log, so that neither p = 1 nor its gradient is trouble."""
    if gamma == 0:
        return jnp.ones_like(log_p)
    return jnp.power(jnp.maximum(-jnp.expm1(log_p), 1e-12), gamma)


def _weights(objective: Softmax | Sigmoid, classes: int) -> Float[Array, " C"]:
    given = len(objective.weights)
    if given not in (0, classes):
        raise UserError(f"{type(objective).__name__}: {given} class weights for {classes} classes; give one each")
    return jnp.array(objective.weights or (1.0,) * classes, jnp.float32)
