"""A linear probe: how much of a label can be read from frozen features by one linear map.

N examples   C classes   D feature width
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float

from mmjax.core.protocols import Data, EvalContext
from mmjax.evals.classification import Judge
from mmjax.evals.results import Record, codes

Array = np.ndarray


@dataclasses.dataclass(frozen=True)
class Probe:
    """Ridge regression onto one-hot classes, in closed form, on standardised features.

    The penalty is the one of `penalties` that does best on a fifth of the training pictures (whole clusters, so that
    variants of one picture do not stand on both sides); the map is then fitted on all of them."""

    train: Data
    test: Data
    judge: Judge
    penalties: tuple[float, ...] = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # per training example
    same: str | None = None
    modality: str = "image"
    output: str = "pooled"

    def evaluate(self, context: EvalContext) -> Record:
        """`Judge.results`, and the chosen penalty."""
        train, test = (
            self.judge.embedded(context, data, self.modality, self.same, self.output)
            for data in (self.train, self.test)
        )
        truth = train.labels[self.judge.label]
        classes = int(max(truth.max(), test.labels[self.judge.label].max())) + 1
        scale = Scale.of(train.vectors[self.modality])
        x, y = scale(train.vectors[self.modality]), np.eye(classes)[truth]
        held = codes(train.identity(self.judge.cluster)) % 5 == 0
        penalty = self.penalties[0]
        if held.any() and not held.all():
            weights = ridge(x[~held], y[~held], self.penalties)
            right = [np.mean((x[held] @ w).argmax(1) == truth[held]) for w in weights]
            penalty = self.penalties[int(np.argmax(right))]
        (weight,) = ridge(x, y, (penalty,))
        scores = scale(test.vectors[self.modality]) @ weight
        return self.judge.results("probe", test, scores) | {"penalty": penalty, "trained_on": len(truth)}


@dataclasses.dataclass(frozen=True, eq=False)
class Scale:
    """Standardises features, and appends a 1 for the intercept."""

    mean: Float[Array, " D"]
    deviation: Float[Array, " D"]

    @classmethod
    def of(cls, features: Float[Array, "N D"]) -> Scale:
        """Mean and deviation of the training features; a constant feature becomes 0."""
        features = np.asarray(features, np.float64)
        deviation = features.std(0)
        return cls(features.mean(0), np.where(deviation > 1e-8, deviation, np.inf))

    def __call__(self, features: Float[Array, "N D"]) -> Float[Array, "N D+1"]:
        scaled = (np.asarray(features, np.float64) - self.mean) / self.deviation
        return np.concatenate([scaled, np.ones((len(scaled), 1))], axis=1)


def ridge(x: Float[Array, "N D"], y: Float[Array, "N C"], penalties: tuple[float, ...]) -> list[Float[Array, "D C"]]:
    """argmin |x w - y|^2 / N + penalty |w|^2 for each penalty, from one eigendecomposition."""
    values, vectors = np.linalg.eigh(x.T @ x / len(x))
    projected = vectors.T @ (x.T @ y / len(x))
    return [vectors @ (projected / (np.maximum(values, 0) + penalty)[:, None]) for penalty in penalties]
