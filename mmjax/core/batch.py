"""The batch: one record for any mix of modalities in one compiled step.

B rows   S samples packed in a row (1 when not packed)   T text slots   N media items of a kind in a row
H, W image height and width   F frames   K waveform or sensor steps   C channels

A modality the experiment does not use is `None`. A modality that one sample lacks keeps its slots with `valid=False`:
presence is data, never shape. `segment` (1..S, 0 = padding) says which of the row's samples a text slot or a media item
belongs to. The same record holds numpy arrays (host), jax arrays (device) or ShapeDtypeStructs (`Batch.spec`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from mmjax.core.errors import UserError
from mmjax.core.pytrees import flatten_names, record, static

Array = Any  # numpy, jax, or ShapeDtypeStruct

FAULTS = ("none", "padding", "unreadable", "too_large", "missing_file", "bad_schema", "empty", "bad_value")
"""Why a sample is null, by the code it carries in `Batch.fault`. Codes are stable: append only."""


@record
class Text:
    """The token row: text ids, and places where media tokens land.

    Media tokens of a row are numbered through: kinds in the order of `MEDIA`, item by item (`Batch.landing`). Those of
    a valid item land exactly once, in order, among the places of the item's own segment.
    """

    ids: Int[Array, "B T"]  # token id where `slot` is -1
    slot: Int[Array, "B T"]  # number of the media token that lands here, -1 for text
    segment: Int[Array, "B T"]  # sample of the row, 1..S; 0 is padding
    block: Int[Array, "B T"]  # attention group: a place sees equal and smaller blocks of its segment
    position: Int[Array, "B T"]  # 0, 1, .. inside the sample, over text and media alike
    loss: Float[Array, "B T"]  # weight of predicting the id at this place
    per_item: tuple[tuple[str, int], ...] = static(())  # tokens that an item of each kind lands with, in MEDIA order

    @property
    def valid(self) -> Bool[Array, "B T"]:
        """Where the row is real."""
        return self.segment > 0


@record
class Images:
    """Still pictures, [0, 255]."""

    pixels: UInt8[Array, "B N H W 3"]
    valid: Bool[Array, "B N"]
    segment: Int[Array, "B N"]


@record
class Audio:
    """Mono waveforms in [-1, 1] at `rate_hz`; `length` steps of each are real."""

    samples: Float[Array, "B N K"]
    length: Int[Array, "B N"]
    valid: Bool[Array, "B N"]
    segment: Int[Array, "B N"]
    rate_hz: int = static(16_000)


@record
class Video:
    """Frames [0, 255] with their times in seconds; `length` frames of each are real."""

    frames: UInt8[Array, "B N F H W 3"]
    time_s: Float[Array, "B N F"]
    length: Int[Array, "B N"]
    valid: Bool[Array, "B N"]
    segment: Int[Array, "B N"]


@record
class Sensor:
    """Multi-channel series at `rate_hz`; a channel that a device lacks has `channel=False`."""

    values: Float[Array, "B N K C"]
    channel: Bool[Array, "B N C"]
    length: Int[Array, "B N"]
    valid: Bool[Array, "B N"]
    segment: Int[Array, "B N"]
    rate_hz: float = static(50.0)


MEDIA = ("image", "audio", "video", "sensor")
MODALITIES = ("text", *MEDIA)


@record
class Batch:
    """One global or host batch."""

    text: Text | None = None
    image: Images | None = None
    audio: Audio | None = None
    video: Video | None = None
    sensor: Sensor | None = None
    labels: Mapping[str, Array] = dataclasses.field(default_factory=dict)  # each [B S ...]
    id: Int[Array, "B S"] | None = None  # index of the example in its data set, -1 for padding
    fault: UInt8[Array, "B S"] | None = None  # 0, or why this sample is null: an index into FAULTS

    @property
    def valid(self) -> Bool[Array, "B S"]:
        """Samples that are real. A null sample has every slot invalid and counts in no loss or metric."""
        return self.fault == 0

    @property
    def rows(self) -> int:
        """B."""
        return jax.tree.leaves(self)[0].shape[0]

    def modalities(self) -> tuple[str, ...]:
        """Names of the modalities that have slots here."""
        return tuple(name for name in MODALITIES if getattr(self, name) is not None)

    def present(self, modality: str) -> Bool[Array, "B S"]:
        """Which samples have at least one real slot of `modality`."""
        part = getattr(self, modality)
        samples = self.fault.shape[1]
        owner = part.segment * part.valid  # 0 where not real
        numbers = np.arange(1, samples + 1)
        return (owner[:, None, :] == numbers[None, :, None]).any(-1) & self.valid

    def landing(self) -> dict[str, tuple[int, int, int]]:
        """Numbers of the media tokens that land in the row, of each kind that does: (first, N items, n per item)."""
        found, first = {}, 0
        for kind, size in self.text.per_item if self.text is not None else ():
            items = getattr(self, kind).valid.shape[1]
            found[kind] = (first, items, size)
            first += items * size
        return found

    def replace(self, **changes: Any) -> Batch:
        """A copy with fields changed."""
        return dataclasses.replace(self, **changes)

    @staticmethod
    def spec(
        rows: int,
        *,
        samples: int = 1,
        text: int | tuple[int, Mapping[str, int]] | None = None,
        image: tuple[int, int, int] | None = None,
        audio: tuple[int, int, int] | None = None,
        video: tuple[int, int, int, int] | None = None,
        sensor: tuple[int, int, int, float] | None = None,
        labels: Mapping[str, tuple[tuple[int, ...], Any]] | None = None,
    ) -> Batch:
        """The shapes of a batch of B=`rows`.

        text T, or (T, {kind: tokens that an item of it lands with}); image (N, H, W); audio (N, K, rate_hz);
        video (N, F, H, W); sensor (N, K, C, rate_hz); labels name -> (shape of one, dtype); the id and fault of each
        sample are always there. Raises UserError for a kind that lands and has no slots.
        """
        leaf = jax.ShapeDtypeStruct
        lead = (rows, samples)

        def items(count: int) -> dict[str, Array]:
            return {"valid": leaf((rows, count), np.bool_), "segment": leaf((rows, count), np.int32)}

        def timed(count: int) -> dict[str, Array]:
            return {"length": leaf((rows, count), np.int32), **items(count)}

        parts: dict[str, Any] = {}
        length, per_item = text if isinstance(text, tuple) else (text, {})
        sizes = tuple((kind, per_item[kind]) for kind in MEDIA if kind in per_item)
        if length is not None:
            whole = leaf((rows, length), np.int32)
            parts["text"] = Text(whole, whole, whole, whole, whole, leaf((rows, length), np.float32), sizes)
        if image is not None:
            n, h, w = image
            parts["image"] = Images(leaf((rows, n, h, w, 3), np.uint8), **items(n))
        if audio is not None:
            n, k, rate = audio
            parts["audio"] = Audio(leaf((rows, n, k), np.float32), **timed(n), rate_hz=rate)
        if video is not None:
            n, f, h, w = video
            frames, times = leaf((rows, n, f, h, w, 3), np.uint8), leaf((rows, n, f), np.float32)
            parts["video"] = Video(frames, times, **timed(n))
        if sensor is not None:
            n, k, c, rate = sensor
            values, channel = leaf((rows, n, k, c), np.float32), leaf((rows, n, c), np.bool_)
            parts["sensor"] = Sensor(values, channel, **timed(n), rate_hz=rate)
        if missing := [kind for kind, _ in sizes if kind not in parts]:
            raise UserError(f"{', '.join(missing)} cannot land in the row: the batch has no slots for it")
        named = {name: leaf((*lead, *shape), np.dtype(dtype)) for name, (shape, dtype) in (labels or {}).items()}
        return Batch(**parts, labels=named, id=leaf(lead, np.int32), fault=leaf(lead, np.uint8))

    @staticmethod
    def fake(spec: Batch, seed: int = 0, vocabulary: int = 256) -> Batch:
        """A valid random batch (numpy) of `spec`: every contract of this module holds, media present or absent at
        random (the first sample of each row has everything), rows packed with S samples when the spec says so."""
        from mmjax.core.batch_fake import fake  # beside this file: only tests, planning and export need it

        return fake(spec, seed, vocabulary)

    def describe(self) -> str:
        """A table of what is in the batch: leaf, shape, format, and how much of each modality is real."""
        lines = [f"{'leaf':28} {'shape':24} format"]
        for name, leaf in flatten_names(self).items():
            lines.append(f"{name:28} {'x'.join(map(str, leaf.shape)):24} {leaf.dtype}")
        if isinstance(self.fault, jax.ShapeDtypeStruct):
            return "\n".join(lines)
        real = int(np.sum(self.valid))
        lines.append(f"samples: {real} real of {np.size(self.fault)} slots")
        for name in self.modalities():
            part = getattr(self, name)
            lines.append(
                f"{name}: {np.mean(part.valid):.1%} of slots real, in {int(np.sum(self.present(name)))} samples"
            )
        return "\n".join(lines)

    def check(self) -> Batch:
        """Returns the (numpy) batch, or raises DataError naming each broken promise of this module's contract."""
        from mmjax.core.batch_check import check

        return check(self)
