"""The same data where what many examples share is there once: a picture with five captions is encoded once."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
from jaxtyping import Int

from mmjax.core.batch import FAULTS, MODALITIES, Batch
from mmjax.core.protocols import specs_of
from mmjax.core.pytrees import joined, taken
from mmjax.evals.absent import Wrapped

Array = np.ndarray

FIRST = "first of its kind"
"""A label: the id of the example whose `shared` stands for this one's, -1 where it is null or lacks a modality."""


@dataclasses.dataclass(frozen=True)
class Once(Wrapped):
    """`data` in batches of two kinds, both with the label `FIRST`: the rows with all modalities but `shared`, in order,
    and the rows that are first of a value of `label` (or have none) with `shared` alone, as many to a batch. An example
    that lacks one of `modalities` is first of nothing; where there is no other modality, only the second kind comes."""

    modalities: tuple[str, ...]
    shared: str
    label: str

    def spec(self) -> Batch:
        """See `core.protocols.Data`."""
        return self.specs()[0]

    def specs(self) -> tuple[Batch, ...]:
        """See `core.protocols.Shapes`."""
        specs = [spec.replace(labels={**spec.labels, FIRST: spec.id}) for spec in specs_of(self.data)]
        return tuple(part for spec in specs for part in (self._rest(spec), self._shared(spec)) if part is not None)

    def batches(self, position: int = 0, process: int = 0, processes: int = 1) -> Iterator[Batch]:
        """See `core.protocols.Data`."""
        seen: dict[int, int] = {}
        waiting: list[Batch] = []
        for batch in self.data.batches(position, process, processes):
            first = self._first(batch, seen)
            batch = batch.replace(labels={**batch.labels, FIRST: first[:, None]})
            rest = self._rest(batch)
            if rest is not None:
                yield rest
            new = np.flatnonzero((first >= 0) & (first == np.asarray(batch.id)[:, 0]))
            waiting.append(taken(self._shared(batch), new))
            while sum(part.rows for part in waiting) >= batch.rows:
                whole = joined(waiting)
                yield taken(whole, np.arange(batch.rows))
                waiting = [taken(whole, np.arange(batch.rows, whole.rows))]
        if any(part.rows for part in waiting):
            yield _padded(joined(waiting), batch.rows)

    def _first(self, batch: Batch, seen: dict[int, int]) -> Int[Array, " B"]:
        real = np.asarray(batch.valid)[:, 0]
        for name in self.modalities:
            real = real & np.asarray(batch.present(name))[:, 0]
        values, ids = np.asarray(batch.labels[self.label])[:, 0], np.asarray(batch.id)[:, 0]
        keys = np.where(values < 0, -1 - ids, values)
        found = [
            seen.setdefault(*pair) if ok else -1 for *pair, ok in zip(keys.tolist(), ids.tolist(), real, strict=True)
        ]
        return np.array(found, np.int32)

    def _rest(self, batch: Batch) -> Batch | None:
        return batch.replace(**{self.shared: None}) if set(self.modalities) - {self.shared} else None

    def _shared(self, batch: Batch) -> Batch:
        return batch.replace(**{name: None for name in MODALITIES if name != self.shared})


def _padded(batch: Batch, rows: int) -> Batch:
    """Its last row is repeated, as padding."""
    real = np.arange(rows) < batch.rows
    whole = taken(batch, np.minimum(np.arange(rows), batch.rows - 1))
    labels = {**whole.labels, FIRST: np.where(real[:, None], whole.labels[FIRST], -1)}
    fault = np.where(real[:, None], whole.fault, FAULTS.index("padding")).astype(np.uint8)
    return whole.replace(labels=labels, fault=fault)
