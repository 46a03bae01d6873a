"""The proof that a host batch keeps its contract; run by collators in debug mode and by `mmjax data check`."""

from __future__ import annotations

import numpy as np

from mmjax.core.batch import FAULTS, MEDIA, Batch
from mmjax.core.errors import DataError


def check(batch: Batch) -> Batch:
    """See `Batch.check`: all faults are gathered before one DataError."""
    faults: list[str] = []
    if batch.fault is None or batch.id is None:
        raise DataError("a batch needs `id` and `fault` [B S]; one was built without them")
    rows, samples = batch.fault.shape
    valid = np.asarray(batch.valid)
    if (np.asarray(batch.fault) >= len(FAULTS)).any():
        faults.append(f"fault: a code is above {len(FAULTS) - 1}, the last known reason")
    for name in batch.modalities():
        part = getattr(batch, name)
        segment, real = np.asarray(part.segment), np.asarray(part.valid)
        faults += _segments(name, segment, real, rows, samples, valid)
    for name in MEDIA:
        part = getattr(batch, name)
        if part is not None and hasattr(part, "length"):
            faults += _lengths(name, part)
    if batch.text is not None:
        faults += _text(batch)
    for name, label in batch.labels.items():
        if label.shape[:2] != (rows, samples):
            faults.append(f"labels[{name!r}] has shape {label.shape}; it must lead with [B S] = [{rows} {samples}]")
    if faults:
        raise DataError("the batch breaks its contract:\n- " + "\n- ".join(faults))
    return batch


def _segments(name, segment, real, rows, samples, valid) -> list[str]:
    if segment.shape[0] != rows:
        return [f"{name}: {segment.shape[0]} rows where the batch has {rows}"]
    faults = []
    if segment.min() < 0 or segment.max() > samples:
        faults.append(f"{name}.segment: values must lie in 0..{samples}; found {segment.min()}..{segment.max()}")
    elif (real & (segment == 0)).any():
        faults.append(f"{name}: a valid slot has segment 0 (padding) in row {np.argwhere(real & (segment == 0))[0][0]}")
    else:
        owner = np.take_along_axis(valid, np.maximum(segment - 1, 0), axis=1)
        if (real & ~owner).any():
            faults.append(f"{name}: a null sample has a valid slot in row {np.argwhere(real & ~owner)[0][0]}")
    return faults


def _lengths(name, part) -> list[str]:
    longest = next(getattr(part, n) for n in ("samples", "frames", "values") if hasattr(part, n)).shape[2]
    length, real = np.asarray(part.length), np.asarray(part.valid)
    wrong = (length < 0) | (length > longest) | (real & (length == 0))
    return [f"{name}.length must be 1..{longest} where valid (row {np.argwhere(wrong)[0][0]})"] if wrong.any() else []


def _text(batch: Batch) -> list[str]:
    text, faults = batch.text, []
    segment, position = np.asarray(text.segment), np.asarray(text.position)
    if (np.asarray(text.loss)[segment == 0] != 0).any():
        faults.append("text.loss: padding carries a loss weight")
    for row in range(segment.shape[0]):
        numbers = segment[row][segment[row] > 0]
        if (np.diff(numbers) < 0).any():
            faults.append(f"text.segment: samples of row {row} are not in order")
        for number in np.unique(numbers):
            places = position[row][segment[row] == number]
            if (np.diff(places) != 1).any() and not (np.asarray(text.slot)[row] >= 0).any():
                faults.append(f"text.position: sample {number} of row {row} does not count up by one")
    return faults
