"""Objectives over what was hidden: ids of a row, patches of a picture."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from mmjax.core.batch import Batch
from mmjax.core.means import Mean


@dataclasses.dataclass(frozen=True)
class MaskedLanguage:
    """Mean negative log-likelihood of the hidden ids (BERT, arXiv 1810.04805, section 3.1); needs "masked" of
    `heads.masked.MaskedLanguage`. Reports "accuracy"."""

    def __call__(self, outputs: Mapping[str, Any], batch: Batch) -> dict[str, Mean]:
        masked = outputs["masked"]
        return {"loss": Mean.of(masked["nll"], masked["valid"]), "accuracy": Mean.of(masked["hit"], masked["valid"])}


@dataclasses.dataclass(frozen=True)
class MaskedImage:
    """Mean error over the hidden patches, and only these (MAE, arXiv 2111.06377, section 3); needs "patches" of
    `heads.masked_image`. Reports "seen": the error of what was visible, which is not trained."""

    def __call__(self, outputs: Mapping[str, Any], batch: Batch) -> dict[str, Mean]:
        patches = outputs["patches"]
        real = batch.image.valid[..., None]
        return {
            "loss": Mean.of(patches["error"], patches["hidden"]),
            "seen": Mean.of(patches["error"], real & ~patches["hidden"]),
        }
