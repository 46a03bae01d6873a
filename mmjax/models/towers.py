"""Two or more towers that meet in one space: CLIP, ALIGN, SigLIP, CLAP, ImageBind.

B rows   S samples of a row   D width of a tower   E shared width
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
from jaxtyping import Array

from mmjax.core.batch import MODALITIES, Batch
from mmjax.core.errors import UserError
from mmjax.core.parameters import slot
from mmjax.nn.norms import Identity
from mmjax.nn.pooling import Mean


class Tower(nn.Module):
    """An encoder (modality slot -> Tokens), a pool (Tokens, S -> one vector per sample [B S D]), what comes `after`."""

    encoder: nn.Module
    pool: nn.Module = slot(Mean)
    after: nn.Module = slot(Identity)

    def __call__(self, media: Any, samples: int = 1, *, train: bool = False) -> Any:
        return self.after(self.pool(self.encoder(media, train=train), samples))


class Towers(nn.Module):
    """A tower for each modality that the model knows, and the head in which they meet.

    Outputs: `embeddings` {modality: float32 [B E], unit length}, `pooled` {modality: [B D]}, `present` {modality:
    bool [B]}, `scale` and `bias` (scalars of the loss). Rows of several samples (packed ones, or a picture with several
    captions) give [B S E], [B S D] and [B S]. A tower whose modality has no slots in the batch is skipped. Raises
    UserError when the batch has none of the modalities.
    """

    head: nn.Module
    image: nn.Module | None = None
    text: nn.Module | None = None
    audio: nn.Module | None = None
    video: nn.Module | None = None
    sensor: nn.Module | None = None

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool = False) -> dict[str, Any]:
        known = [name for name in MODALITIES if getattr(self, name) is not None]
        used = [name for name in known if getattr(batch, name) is not None]
        if not used:
            has = ", ".join(batch.modalities()) or "no modality"
            raise UserError(f"the towers know {', '.join(known) or 'no modality'}; the batch has {has}")
        samples = batch.fault.shape[1]
        pooled = {name: getattr(self, name)(getattr(batch, name), samples, train=train) for name in used}
        present = {name: batch.present(name) for name in used}
        return met(self.head, pooled, present)


def met(head: nn.Module, pooled: Mapping[str, Array], present: Mapping[str, Array]) -> dict[str, Any]:
    """What `head` makes of vectors [B S D] of each modality, with these and with which samples have one [B S]; without
    the S where it is 1."""
    outputs = head(pooled) | {"pooled": pooled, "present": present}
    packed = any(there.shape[1] > 1 for there in present.values())
    return outputs if packed else jax.tree.map(lambda x: x[:, 0] if x.ndim else x, outputs)
