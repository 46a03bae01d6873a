"""Two or more towers that meet in one space: CLIP, ALIGN, SigLIP, CLAP, ImageBind.

B batch   D width of a tower   E shared width
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn

from mmjax.core.batch import MODALITIES, Batch
from mmjax.core.errors import UserError
from mmjax.nn.pooling import Mean


class Tower(nn.Module):
    """An encoder (modality slot -> Tokens) and a pool (Tokens -> one vector per row)."""

    encoder: nn.Module
    pool: nn.Module = Mean()

    def __call__(self, slot: Any, *, train: bool = False) -> Any:
        return self.pool(self.encoder(slot, train=train))


class Towers(nn.Module):
    """A tower for each modality that the model knows, and the head in which they meet.

    Reads the modality slots of unpacked batches (S = 1). Outputs: `embeddings` {modality: float32 [B E], unit length},
    `pooled` {modality: [B D]}, `present` {modality: bool [B]}, `scale` and `bias` (scalars of the loss). A tower whose
    modality has no slots in the batch is skipped. Raises UserError when the batch is packed or has none of them.
    """

    head: nn.Module
    image: nn.Module | None = None
    text: nn.Module | None = None
    audio: nn.Module | None = None
    video: nn.Module | None = None
    sensor: nn.Module | None = None

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool = False) -> dict[str, Any]:
        if batch.fault is not None and batch.fault.shape[1] != 1:
            raise UserError(f"towers read one sample per row; this batch packs up to {batch.fault.shape[1]}")
        known = [name for name in MODALITIES if getattr(self, name) is not None]
        used = [name for name in known if getattr(batch, name) is not None]
        if not used:
            has = ", ".join(batch.modalities()) or "no modality"
            raise UserError(f"the towers know {', '.join(known) or 'no modality'}; the batch has {has}")
        pooled = {name: getattr(self, name)(getattr(batch, name), train=train) for name in used}
        present = {name: batch.present(name)[:, 0] for name in used}
        return self.head(pooled) | {"pooled": pooled, "present": present}
