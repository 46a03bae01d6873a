"""Models that read all modalities of a sample together and say one thing of it: ViLT, UNITER, ViLBERT, MCAN, MBT, GMU.

B rows   S samples of a row   T text slots   D width
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
from jaxtyping import Array, Float

from mmjax.core.batch import MODALITIES, Batch
from mmjax.core.errors import UserError
from mmjax.core.parameters import slot
from mmjax.core.tokens import Tokens
from mmjax.nn.norms import LayerNorm
from mmjax.nn.pooling import Mean


class Joint(nn.Module):
    """What a head says of samples, each read with all its modalities at once.

    Slots: `encoders` {modality: module from its slot to Tokens}, where one whose modality has no slots in the batch is
    skipped; `reader` ({modality: Tokens}, batch -> one vector per sample [B S D]): `RowReader`, `StreamReader`, or your
    own; `norm`; `head` ([B S D] -> outputs). Raises UserError when the batch has none of the modalities.
    """

    encoders: Mapping[str, nn.Module]
    reader: nn.Module
    head: nn.Module
    norm: nn.Module = slot(LayerNorm)

    def __call__(self, batch: Batch, *, train: bool = False) -> dict[str, Any]:
        used = [name for name in MODALITIES if name in self.encoders and getattr(batch, name) is not None]
        if not used:
            has = ", ".join(batch.modalities()) or "nothing"
            raise UserError(f"the model reads {', '.join(self.encoders) or 'nothing'}; the batch has {has}")
        tokens = {name: self.encoders[name](getattr(batch, name), train=train) for name in used}
        return self.head(self.norm(self.reader(tokens, batch, train=train)))


class Untouched(nn.Module):
    """Streams that stay apart: the no-op in the place of a fusion of streams."""

    def __call__(self, streams: Mapping[str, Tokens], samples: int = 1, *, train: bool = False) -> dict[str, Tokens]:
        return dict(streams)


class RowReader(nn.Module):
    """A row of text with media in it or beside it goes through a stack; what its text has become is pooled.

    Slots: `fusion` (row, text, media -> Fused: `fusion.early`, `fusion.cross`); `stack`; `connectors` {kind: from an
    encoder's tokens to the row's}, as they are where there is none; `streams` ({modality: Tokens} -> the same), before
    any of this; `pool`. Raises UserError for a batch without text.
    """

    fusion: nn.Module
    stack: nn.Module
    connectors: Mapping[str, nn.Module] = dataclasses.field(default_factory=dict)
    streams: nn.Module = slot(Untouched)
    pool: nn.Module = slot(Mean)

    def __call__(self, tokens: Mapping[str, Tokens], batch: Batch, *, train: bool = False) -> Float[Array, "B S D"]:
        if "text" not in tokens:
            raise UserError(f"a row is made of text; the model has read {', '.join(tokens)} alone")
        samples, length = batch.fault.shape[1], batch.text.ids.shape[1]
        tokens = self.streams(tokens, samples, train=train)
        media = {kind: self._connected(kind, tokens[kind], batch) for kind in tokens if kind != "text"}
        words = tokens["text"]
        row = Tokens(words.x, words.places.replace(valid=batch.text.valid))  # places that wait for media are real
        fused = self.fusion(row, batch.text, media)
        x = self.stack(fused.row.x, fused.row.places, fused.memory, train=train)
        told = fused.row.with_x(x).split([x.shape[1] - length, length])[1]  # media may stand before the text
        spoken = told.valid & (batch.text.slot < 0)
        return self.pool(Tokens(told.x, told.places.replace(valid=spoken)), samples)

    def _connected(self, kind: str, tokens: Tokens, batch: Batch) -> Tokens:
        connector = self.connectors.get(kind)
        return tokens if connector is None else connector(tokens, getattr(batch, kind).valid.shape[1])


class StreamReader(nn.Module):
    """Each modality keeps a stream of its own; each is pooled, and the vectors are joined.

    Slots: `join` ({modality: [B S D]}, {modality: present} -> [B S E]: `fusion.late`); `streams` ({modality: Tokens} ->
    the same: `fusion.streams`, `fusion.gating`); `pool`, of which each modality has a copy.
    """

    join: nn.Module
    streams: nn.Module = slot(Untouched)
    pool: nn.Module = slot(Mean)

    @nn.compact
    def __call__(self, tokens: Mapping[str, Tokens], batch: Batch, *, train: bool = False) -> Float[Array, "B S E"]:
        samples = batch.fault.shape[1]
        streams = self.streams(tokens, samples, train=train)
        pooled = {name: self.pool.copy(name=f"{name}_pool")(part, samples) for name, part in streams.items()}
        return self.join(pooled, {name: batch.present(name) for name in streams})
