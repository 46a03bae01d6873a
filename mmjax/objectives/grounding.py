"""Objective of boxes that are numbers.  B rows   S samples of a row   Q boxes of a sample"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from mmjax.core.batch import Batch
from mmjax.core.errors import UserError
from mmjax.core.means import Mean
from mmjax.ops.boxes import area, giou, iou, to_centre


@dataclasses.dataclass(frozen=True)
class Boxes:
    """l1 * |centre and size differ| + giou * (1 - GIoU), per box (DETR, arXiv 2005.12872, section 3.1; MDETR, arXiv
    2104.12763); needs "boxes" of `heads.grounding.Boxes` and a label of as many boxes, [B S 4] or [B S Q 4].

    A label box without area is no box and counts nothing. Reports "iou", and "found": share of boxes with IoU of at
    least `enough`. Raises UserError when boxes and label do not pair up."""

    label: str = "boxes"
    l1: float = 5.0
    giou: float = 2.0
    enough: float = 0.5

    def __call__(self, outputs: Mapping[str, Any], batch: Batch) -> dict[str, Mean]:
        found, truth = outputs["boxes"], batch.labels[self.label]
        if found.size != truth.size:
            raise UserError(f"Boxes: the model tells boxes {found.shape}, label {self.label} holds {truth.shape}")
        real = jnp.broadcast_to(batch.valid.reshape(*batch.fault.shape, *(1,) * (truth.ndim - 3)), truth.shape[:-1])
        found = found.reshape(truth.shape)
        real &= area(truth) > 0
        apart = jnp.sum(jnp.abs(to_centre(found) - to_centre(truth)), axis=-1)
        overlap = iou(found, truth)
        return {
            "loss": Mean.of(self.l1 * apart + self.giou * (1 - giou(found, truth)), real),
            "iou": Mean.of(overlap, real),
            "found": Mean.of(overlap >= self.enough, real),
        }
