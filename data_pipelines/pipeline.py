"""`Pipeline`: a source and features as a stream of batches.

The batch at any position is a pure function of the pipeline's value: nothing but the position has to be stored to go on
after a restart, with another batch size, or on another number of hosts.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from data_pipelines.budget import PADDING, Budget, bad_rows
from data_pipelines.cache import fingerprint_of
from data_pipelines.chunks import Chunk, read
from data_pipelines.delivery import Crew, deliver
from data_pipelines.features import absent
from data_pipelines.order import EachOnce, InOrder, Order, Plan
from data_pipelines.protocols import BadRecord, Feature, Gathers, Source
from data_pipelines.randomness import fold
from data_pipelines.spans import proven
from mmjax.core.batch import Batch
from mmjax.core.config import to_json
from mmjax.core.errors import DataError, UserError
from mmjax.core.pytrees import map_names


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """Implements `mmjax.core.protocols.Data`.

    batch: rows of the global batch. shuffle: a seed, or None for the order of the source. epochs: passes, or None for
    no end. order: what shuffling means (each once, clusters that share a label, ...). threads and workers (processes)
    read ahead and change no byte; 0 threads is as many as there are cores. A finite stream ends with a padded batch; an
    endless one needs at least `batch` records. A record that is bad becomes a null example in its place.
    """

    source: Source
    features: tuple[Feature, ...]
    batch: int
    shuffle: int | None = None
    epochs: int | None = None
    order: Order = EachOnce()
    threads: int = 0
    workers: int = 0
    budget: Budget = Budget()

    def __post_init__(self):
        for name, value in (("batch", self.batch), ("epochs", self.epochs)):
            if value is not None and value < 1:
                raise UserError(f"{name} must be at least 1; got {value}")
        if self.shuffle is not None and not 0 <= self.shuffle < 2**63:
            raise UserError(f"shuffle is a seed, 0 .. 2**63-1, or none; got {self.shuffle}")

    # ------------------------------------------------------------------------------------------- core.protocols.Data

    def spec(self) -> Batch:
        """The global batch as ShapeDtypeStructs. Raises DataError for a source that cannot fill it."""
        self._check_size()
        return Batch.spec(self.batch, **self._parts)

    def fingerprint(self) -> Mapping[str, str]:
        """Source, features and order."""
        found = {f"source {name}": value for name, value in self.source.fingerprint().items()}
        for feature in self.features:
            found |= feature.fingerprint() if hasattr(feature, "fingerprint") else {}
        order = None if self.shuffle is None else [self.shuffle, to_json(self.order)]
        return found | {"features": fingerprint_of(to_json(self.features)), "order": fingerprint_of(order)}

    def batches(self, position: int = 0, process: int = 0, processes: int = 1) -> Iterator[Batch]:
        """See `Data`. Raises DataError when the budget for bad records is spent."""
        self._check_size()
        crew = Crew(self.threads, self.workers, whole=isinstance(self.source, Gathers))
        return self.budget.watch(deliver(self, self.batch, crew, position, process, processes), self)

    def names(self) -> Mapping[str, tuple[str, ...]]:
        """The source's names of the labels that the features make."""
        return {name: words for name, words in self.source.names().items() if name in self._parts.get("labels", {})}

    def example(self, index: int) -> Mapping[str, Any]:
        """Pixels and texts as the model gets them, texts of the record as they are, names of labels."""
        chunk = read(self.source, np.array([index]), np.zeros(1, np.uint64))
        parts, shown = self._built(chunk), {}
        for feature in self.features:
            shown |= feature.show(parts, 0)
        for name, words in self.names().items():
            shown[name] = _named(shown.get(name), words)
        raw = {field: column[0] for field, column in chunk.columns.items()}
        return shown | {field: value for field, value in raw.items() if _is_text(value)} | self._fault_of(chunk, index)

    # ------------------------------------------------------------------------------------------------ for the others

    @property
    def total(self) -> int | None:
        """Number of positions; None is without end."""
        return None if self.epochs is None else self.epochs * self.epoch

    @property
    def epoch(self) -> int:
        """Number of positions of one pass."""
        return self._plan.epoch

    def rows(self, positions: np.ndarray) -> Batch:
        """The rows at `positions` [n], with n rows; beyond the end, padding."""
        inside = positions if self.total is None else positions[positions < self.total]
        real = inside if inside.size else np.zeros(1, np.int64)  # one row to learn the shapes from
        indices = self.indices(real)
        chunk = read(self.source, indices, fold(fold(self.shuffle or 0, 0), real))
        parts = self._built(chunk)
        samples = self._parts.get("samples", 1)
        fault, number = chunk.fault, indices.astype(np.int32)
        parts["labels"] = {name: _spread(label, samples) for name, label in parts.get("labels", {}).items()}
        batch = Batch(**parts, id=_spread(number[:, None], samples), fault=_spread(fault[:, None], samples))
        return proven(_blanked(_padded(batch, inside.size, positions.size)), self.source)

    def indices(self, positions: np.ndarray) -> np.ndarray:
        """Which records [n] stand at `positions` [n], before any end."""
        return self._plan.indices(positions)

    def faults(self, batch: Batch) -> list[dict[str, Any]]:
        """What a batch's null examples are about, for `bad_records.jsonl`: id, fault, reason, where. Empty, and free of
        cost, for a batch without one."""
        found = []
        for row in bad_rows(batch):
            index = int(batch.id[row, 0])
            chunk = read(self.source, np.array([index]), np.zeros(1, np.uint64))
            self._built(chunk)
            found.append({"id": index} | self._fault_of(chunk, index))
        return found

    # -------------------------------------------------------------------------------------------------------- inside

    @functools.cached_property
    def _plan(self) -> Plan:
        order = InOrder() if self.shuffle is None else self.order
        return order.plan(self.source, self.shuffle or 0)

    @functools.cached_property
    def _parts(self) -> Mapping[str, Any]:
        """Keywords of Batch.spec."""
        found: dict[str, Any] = {"samples": 1}
        for feature in self.features:
            for name, part in feature.spec().items():
                if name == "labels":
                    found["labels"] = found.get("labels", {}) | part
                elif name == "samples":
                    found[name] = max(found[name], part)
                elif name in found:
                    raise UserError(f"two features make {name!r}; a batch has room for one")
                else:
                    found[name] = part
        if len(found) == 1:
            raise UserError("a pipeline needs at least one feature that makes a modality or a label")
        return found

    def _built(self, chunk: Chunk) -> dict[str, Any]:
        parts: dict[str, Any] = {}
        for feature in self.features:
            for name, part in feature.build(chunk).items():
                parts[name] = parts[name] | part if name == "labels" and name in parts else part
        return parts

    def _fault_of(self, chunk: Chunk, index: int) -> dict[str, Any]:
        error: BadRecord | None = chunk.errors.get(0)
        if error is None:
            return {}
        where = self.source.locate(index) if hasattr(self.source, "locate") else f"record {index}"
        return {"fault": error.fault, "reason": error.reason, "where": where}

    def _check_size(self) -> None:
        size = len(self.source)
        if size == 0:
            raise DataError(f"the data set is empty: {self.source!r} has no records")
        if self.epochs is None and size < self.batch:
            raise DataError(
                f"a batch of {self.batch} is larger than the data set ({size} records): choose batch={size} or less, "
                "or give more data"
            )


def _spread(values: np.ndarray, samples: int) -> np.ndarray:
    """[n 1 ...] -> [n S ...]."""
    return np.repeat(values, samples, axis=1) if values.shape[1] != samples else values


def _padded(batch: Batch, real: int, rows: int) -> Batch:
    """The first `real` rows, and padding up to `rows`."""
    if real == rows:
        return batch

    def pad(name: str, leaf: np.ndarray) -> np.ndarray:
        fill = {"id": -1, "fault": PADDING, "text/slot": -1}.get(name, 0)
        return np.concatenate([leaf[:real], np.full((rows - real, *leaf.shape[1:]), fill, leaf.dtype)])

    return map_names(pad, batch)


def _blanked(batch: Batch) -> Batch:
    """Null examples have no valid slot, no loss and no label."""
    null = np.flatnonzero(batch.fault[:, 0])
    if null.size == 0:
        return batch

    def blank(name: str, leaf: np.ndarray) -> np.ndarray:
        if name in ("id", "fault"):
            return leaf
        leaf = np.array(leaf)
        leaf[null] = -1 if name == "text/slot" else absent(leaf.dtype) if name.startswith("labels/") else 0
        return leaf

    return map_names(blank, batch)


def _named(value: Any, words: tuple[str, ...]) -> Any:
    """Names for a label's integers; None where there is none."""
    if value is None:
        return None
    found = [words[number] if 0 <= number < len(words) else None for number in np.ravel(value).tolist()]
    return found[0] if len(found) == 1 else tuple(found)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, tuple) and all(isinstance(item, str) for item in value))
