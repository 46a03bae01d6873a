"""The proof that a host batch keeps its contract; run by collators in debug mode and by `mmjax data check`."""

from __future__ import annotations

import dataclasses

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


@dataclasses.dataclass(frozen=True)
class Misplaced:
    """A media item whose tokens do not stand in the row as they must."""

    row: int
    segment: int  # of the item, or of the place where the token was found
    kind: str
    item: int
    what: str

    def __str__(self) -> str:
        return f"{self.kind} {self.item} of row {self.row}, segment {self.segment}: {self.what}"


def misplaced(batch: Batch, most: int = 8) -> list[Misplaced]:
    """Which media items break the promise of `Text.slot`, `most` at most: each token of a valid item lands exactly once
    (of an absent one at most once), inside the item's own segment, and tokens of one kind land in their order."""
    kinds = batch.landing()
    if not kinds:
        return []
    slot, segment = np.asarray(batch.text.slot), np.asarray(batch.text.segment)
    owner = np.concatenate([_owners(batch, kind, size) for kind, (_, _, size) in kinds.items()], axis=1)  # [B M]
    rows, total = owner.shape
    names = [(kind, item) for kind, (_, items, size) in kinds.items() for item in range(items) for _ in range(size)]
    row, place = np.nonzero((slot >= 0) & (slot < total) & (segment > 0))
    token, sample = slot[row, place], segment[row, place]
    times = np.bincount(row * total + token, minlength=rows * total).reshape(rows, total)
    owned = owner[row, token]

    def told(b: int, m: int, number: int, what: str) -> Misplaced:
        kind, item = names[m]
        return Misplaced(
            int(b), int(number), kind, item, f"its token {m - kinds[kind][0] - item * kinds[kind][2]} {what}"
        )

    found = [told(b, m, owner[b, m], "does not land") for b, m in np.argwhere((times == 0) & (owner > 0))[:most]]
    found += [told(b, m, owner[b, m], f"lands {times[b, m]} times") for b, m in np.argwhere(times > 1)[:most]]
    strangers = np.flatnonzero((owned > 0) & (owned != sample))[:most]
    found += [told(row[i], token[i], owned[i], f"lands in segment {sample[i]}") for i in strangers]
    for first, items, size in kinds.values():
        of_kind = np.flatnonzero((token >= first) & (token < first + items * size) & (owned > 0))
        before, after = of_kind[:-1], of_kind[1:]
        together = (row[before] == row[after]) & (sample[before] == sample[after])
        late = after[together & (token[after] < token[before])][:most]
        found += [told(row[i], token[i], sample[i], "lands behind a later one") for i in late]
    return found[:most]


def _owners(batch: Batch, kind: str, size: int) -> np.ndarray:
    """[B N*n] the segment that each token of a kind belongs to; 0 where its item is absent."""
    part = getattr(batch, kind)
    return np.repeat(np.asarray(part.segment) * np.asarray(part.valid), size, axis=1)


def _slots(batch: Batch) -> list[str]:
    text = batch.text
    kinds = [kind for kind, _ in text.per_item]
    if kinds != [kind for kind in MEDIA if kind in kinds]:
        return [f"text.per_item: kinds must come once each, in the order {', '.join(MEDIA)}; found {kinds}"]
    if missing := [kind for kind in kinds if getattr(batch, kind) is None]:
        return [f"text.per_item: the batch has no slots for {', '.join(missing)}"]
    if empty := [kind for kind, size in text.per_item if size < 1]:
        return [f"text.per_item: an item of {', '.join(empty)} lands with less than one token"]
    slot, real = np.asarray(text.slot), np.asarray(text.segment) > 0
    total = sum(items * size for _, items, size in batch.landing().values())
    faults = []
    if (real & ((slot < -1) | (slot >= total))).any():
        faults.append(f"text.slot: values must lie in -1..{total - 1}; found {slot[real].min()}..{slot[real].max()}")
    if (np.asarray(text.loss)[slot >= 0] != 0).any():
        faults.append("text.loss: a place where media lands carries a loss weight")
    return faults + [f"text.slot: {fault}" for fault in misplaced(batch)]


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
            if (np.diff(places) != 1).any():
                faults.append(f"text.position: sample {number} of row {row} does not count up by one")
    return faults + _slots(batch)
