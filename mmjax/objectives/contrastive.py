"""Objectives that pull the two modalities of a sample together and push different samples apart.

Each reads what towers give: `embeddings` {modality: [B E], unit length}, `present` {modality: [B]}, `scale` and `bias`;
rows of S samples ([B S E], [B S]) are B S samples.
Any two modalities do (two languages are two modalities' worth of text: give each its own name in the model's outputs).
A sample that lacks one of the two is still a negative for the others; null samples are nothing at all.

Which pairs are positive is a matter of labels (integers, one per sample; below 0 means unknown):
    InfoNCE()                                     the sample's own pair; all others are negatives (CLIP)
    InfoNCE(alike=("picture", "caption"))         others that show the same picture or caption are ignored
    InfoNCE(same="concept")                       all pairs of one concept are positives (supervised contrastive)
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxtyping import Array, Float

from mmjax.core.batch import Batch
from mmjax.core.errors import UserError, unknown_name
from mmjax.core.means import Mean
from mmjax.ops.pairwise import Automatic, Execution, Pairs, Relation, pairwise
from mmjax.ops.pairwise import Sigmoid as SigmoidLoss
from mmjax.ops.pairwise import Softmax as SoftmaxLoss
from mmjax.ops.pairwise_triplet import EveryNegative, Hardest, triplet


@dataclasses.dataclass(frozen=True)
class PairObjective(abc.ABC):
    """What the objectives below have in common: which pairs, by name.

    same: label whose equal values make a positive; None: only the sample itself.
    alike: labels whose equal values make a pair neither positive nor negative.
    Reports "{left}_to_{right}" and back: share of the batch whose best match is a positive; "cosine": of positives.
    Raises UserError for names that the outputs or the batch do not have.
    """

    left: str = "image"
    right: str = "text"
    same: str | None = None
    alike: tuple[str, ...] = ()

    @abc.abstractmethod
    def pairs(
        self, left: Float[Array, "B E"], right: Float[Array, "B E"], outputs: Mapping[str, Any], relation: Relation
    ) -> Pairs:
        """The loss and what is reported with it."""

    def __call__(self, outputs: Mapping[str, Any], batch: Batch) -> dict[str, Mean]:
        left, right = (self._embeddings(outputs, name) for name in (self.left, self.right))
        pairs = self.pairs(left, right, outputs, self._relation(outputs, batch))
        return {
            "loss": pairs.loss,
            f"{self.left}_to_{self.right}": pairs.left_accuracy,
            f"{self.right}_to_{self.left}": pairs.right_accuracy,
            "cosine": pairs.cosine,
        }

    def _embeddings(self, outputs: Mapping[str, Any], name: str) -> Array:
        if name not in outputs["embeddings"]:
            raise UserError(f"{type(self).__name__}: " + unknown_name("embedding", name, outputs["embeddings"]))
        x = outputs["embeddings"][name]
        return x.reshape(-1, x.shape[-1])

    def _relation(self, outputs: Mapping[str, Any], batch: Batch) -> Relation:
        left, right = (outputs["present"][name] for name in (self.left, self.right))
        try:
            return Relation.labelled(batch, left, right, self.same, self.alike)
        except UserError as error:
            raise UserError(f"{type(self).__name__}: {error}") from None


@dataclasses.dataclass(frozen=True)
class InfoNCE(PairObjective):
    """Softmax over the batch, both directions (CLIP, arXiv 2103.00020; several positives: arXiv 2004.11362, eq. 2)."""

    execution: Execution = Automatic()

    def pairs(self, left: Array, right: Array, outputs: Mapping[str, Any], relation: Relation) -> Pairs:
        """See `mmjax.ops.pairwise.Softmax`."""
        return pairwise(SoftmaxLoss(), left, right, outputs["scale"], outputs["bias"], relation, self.execution)


@dataclasses.dataclass(frozen=True)
class Sigmoid(PairObjective):
    """A decision on each pair by itself (SigLIP, arXiv 2303.15343). Start with scale 10 and bias -10."""

    execution: Execution = Automatic()

    def pairs(self, left: Array, right: Array, outputs: Mapping[str, Any], relation: Relation) -> Pairs:
        """See `mmjax.ops.pairwise.Sigmoid`."""
        return pairwise(SigmoidLoss(), left, right, outputs["scale"], outputs["bias"], relation, self.execution)


@dataclasses.dataclass(frozen=True)
class Triplet(PairObjective):
    """A margin between cosines (VSE++, arXiv 1707.05612); neither scale nor bias takes part."""

    margin: float = 0.2
    mining: Hardest | EveryNegative = Hardest()

    def pairs(self, left: Array, right: Array, outputs: Mapping[str, Any], relation: Relation) -> Pairs:
        """See `mmjax.ops.pairwise_triplet`."""
        return triplet(left, right, relation, self.margin, self.mining)
