"""Objectives that a teacher sets.  B rows   S samples of a row   T places   C classes   D width

What the teacher said is a label of the data set or an output of the model; no gradient flows into it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mmjax.core.batch import Batch
from mmjax.core.errors import UserError
from mmjax.core.means import Mean
from mmjax.objectives.language import counted


@dataclasses.dataclass(frozen=True)
class Logits:
    """temperature ** 2 * KL(teacher || student) of softened class distributions, per sample (arXiv 1503.02531, section
    2). student: an output, [B S C] or [B C]; teacher: an output or label of as many numbers. Reports "agreement": how
    often both have the same best class."""

    student: str = "logits"
    teacher: str = "teacher"
    temperature: float = 1.0

    def __call__(self, outputs: Mapping[str, Any], batch: Batch) -> dict[str, Mean]:
        ours, theirs = _pair(self, outputs, batch)
        log_p, log_q = (jax.nn.log_softmax(z / self.temperature, axis=-1) for z in (theirs, ours))
        apart = self.temperature**2 * jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)
        real = batch.valid.reshape(-1)
        same = jnp.argmax(ours, axis=-1) == jnp.argmax(theirs, axis=-1)
        return {"loss": Mean.of(apart, real), "agreement": Mean.of(same, real)}


@dataclasses.dataclass(frozen=True)
class Words:
    """The same for the next id at every place of the row, weighted by `text.loss`; needs the output `divergence`
    [B T], which `heads.language.Language.divergence` computes without holding all scores."""

    divergence: str = "divergence"

    def __call__(self, outputs: Mapping[str, Any], batch: Batch) -> dict[str, Mean]:
        return {"loss": Mean.of(outputs[self.divergence], counted(batch.text))}


def squared(student: Float[Array, "N D"], teacher: Float[Array, "N D"]) -> Float[Array, " N"]:
    """Mean squared difference (FitNets, arXiv 1412.6550, equation 3)."""
    return jnp.mean(jnp.square(student - teacher), axis=-1)


def cosine(student: Float[Array, "N D"], teacher: Float[Array, "N D"]) -> Float[Array, " N"]:
    """1 - cosine."""

    def unit(x: Array) -> Array:
        return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-12))

    return 1 - jnp.sum(unit(student) * unit(teacher), axis=-1)


@dataclasses.dataclass(frozen=True)
class Features:
    """How far the student's vectors are from the teacher's, per sample. student: an output, [B S D] or [B D], already
    of the teacher's width; teacher: an output or label; distance: (student, teacher) -> one number per sample."""

    student: str
    teacher: str
    distance: Callable[[Array, Array], Array] = cosine

    def __call__(self, outputs: Mapping[str, Any], batch: Batch) -> dict[str, Mean]:
        ours, theirs = _pair(self, outputs, batch)
        return {"loss": Mean.of(self.distance(ours, theirs), batch.valid.reshape(-1))}


def _pair(objective: Logits | Features, outputs: Mapping[str, Any], batch: Batch) -> tuple[Array, Array]:
    """Student's and teacher's numbers, float32 [B S, ...]; those of null samples are zero."""
    ours = outputs[objective.student]
    theirs = outputs[objective.teacher] if objective.teacher in outputs else batch.labels[objective.teacher]
    real = batch.valid.reshape(-1, 1)
    flat = [x.reshape(-1, x.shape[-1]) for x in (ours, jax.lax.stop_gradient(theirs))]
    if flat[0].shape != flat[1].shape or flat[0].shape[0] != real.shape[0]:
        raise UserError(
            f"{type(objective).__name__}: {objective.student} {ours.shape} and {objective.teacher} {theirs.shape} must "
            f"have one vector of the same width for each of the {real.shape[0]} samples"
        )
    ours, theirs = (jnp.where(real, x.astype(jnp.float32), 0) for x in flat)
    return ours, theirs
