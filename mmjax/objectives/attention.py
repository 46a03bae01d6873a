"""Objectives over where a model looked.  B rows   T places of the row   M vectors of the memory"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from mmjax.core.batch import MEDIA, Batch
from mmjax.core.errors import UserError, unknown_name
from mmjax.core.means import Mean
from mmjax.objectives.language import counted


@dataclasses.dataclass(frozen=True)
class DoublyStochastic:
    """sum over the cells of (1 - how much the whole caption looked at the cell) ** 2, the mean over pictures: each part
    of a picture shall be looked at (arXiv 1502.03044, section 4.2.1, equation 14). Looks that predict nothing (weight 0
    in `text.loss`) do not count, nor do absent items.

    Needs "attention" [B T M] of `models.seq2seq.ShowAttendTell`, whose memory are the items of one `kind`. Reports
    "looked": how much a cell was looked at. Raises UserError when there is no such output."""

    kind: str = "image"

    def __post_init__(self):
        if self.kind not in MEDIA:
            raise UserError("DoublyStochastic: " + unknown_name("kind of media", self.kind, MEDIA))

    def __call__(self, outputs: Mapping[str, Any], batch: Batch) -> dict[str, Mean]:
        if "attention" not in outputs:
            raise UserError(
                f"DoublyStochastic: the outputs hold no attention; they have {', '.join(outputs)}. It is for "
                "mmjax.models.seq2seq.ShowAttendTell"
            )
        valid, told = getattr(batch, self.kind).valid, counted(batch.text) > 0
        looked = jnp.sum(jnp.where(told[..., None], outputs["attention"], 0), axis=1)
        real = jnp.repeat(valid, looked.shape[1] // valid.shape[1], axis=1)
        missed = Mean.of(jnp.square(1 - looked), real)
        return {"loss": Mean(missed.total, jnp.sum(valid, dtype=jnp.float32)), "looked": Mean.of(looked, real)}
