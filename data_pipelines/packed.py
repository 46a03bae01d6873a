"""`Packed`: samples of a pipeline as rows that several of them share, of one fixed shape.

R rows, T slots, S samples of a row, N media items of a row   m samples, in rows of their own   K tokens of them all
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import math
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from data_pipelines.budget import PADDING, Budget
from data_pipelines.cache import cached, fingerprint_of
from data_pipelines.chunks import read
from data_pipelines.delivery import Crew, deliver
from data_pipelines.features import absent
from data_pipelines.mixture import Mixture
from data_pipelines.order import permuted
from data_pipelines.packing import BestFit, Packer, Windows
from data_pipelines.pipeline import Pipeline
from data_pipelines.randomness import fold
from data_pipelines.spans import moved, proven
from mmjax.core.batch import MEDIA, Batch
from mmjax.core.config import to_json
from mmjax.core.errors import DataError, UserError
from mmjax.core.pytrees import map_names

Array = np.ndarray
_AT_ONCE = 512  # records measured by a thread at a time


@dataclasses.dataclass(frozen=True)
class Packed:
    """Implements `mmjax.core.protocols.Data`: `batch` rows of `length` slots, in each up to `samples` samples of `data`
    and `items` media items of each kind that it has.

    The samples of `window` consecutive positions of `data` are packed together by `packer`; their rows come in an order
    that `shuffle` draws (None: as they were opened). Positions count rows. The lengths of all records are measured once
    and kept in the cache; the rows of a window are a function of them and of its number, so that a stream starts
    anywhere, and the same on any number of processes. Every sample of `data` stands in one row of its window.
    """

    data: Pipeline | Mixture
    batch: int
    length: int
    samples: int = 16
    items: Mapping[str, int] = dataclasses.field(default_factory=dict)
    window: int = 4_096
    packer: Packer = BestFit()
    shuffle: int | None = 0
    threads: int = 0
    workers: int = 0
    budget: Budget = Budget()

    def __post_init__(self):
        for name in ("batch", "length", "samples", "window"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1; got {getattr(self, name)}")

    # ------------------------------------------------------------------------------------------- core.protocols.Data

    def spec(self) -> Batch:
        """The global batch as ShapeDtypeStructs. Raises UserError where a sample of `data` alone may not fit a row."""
        one = self._one
        shapes = {"text": self.length, **self._items, "labels": self.samples, "id": self.samples, "fault": self.samples}

        def widened(name: str, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((self.batch, shapes[name.split("/")[0]], *leaf.shape[2:]), leaf.dtype)

        return map_names(widened, one)

    def fingerprint(self) -> Mapping[str, str]:
        """Those of `data`, and how it is packed."""
        how = {
            name: to_json(getattr(self, name)) for name in ("length", "samples", "items", "window", "packer", "shuffle")
        }
        return {**self.data.fingerprint(), "packing": fingerprint_of(how)}

    def batches(self, position: int = 0, process: int = 0, processes: int = 1) -> Iterator[Batch]:
        """See `Data`. Raises DataError when the budget for bad records is spent."""
        self.spec()
        crew = Crew(self.threads, self.workers)
        return self.budget.watch(deliver(self, self.batch, crew, position, process, processes), self)

    def names(self) -> Mapping[str, tuple[str, ...]]:
        """Those of `data`."""
        return self.data.names()

    def example(self, index: int) -> Mapping[str, Any]:
        """See `Data`."""
        return self.data.example(index)

    # ------------------------------------------------------------------------------------------------ for the others

    @property
    def total(self) -> int | None:
        """Number of rows; None is without end."""
        return self._windows.total()

    def rows(self, positions: Array) -> Batch:
        """The rows at `positions` [R]; beyond the end, padding."""
        total = self.total
        inside = positions if total is None else positions[positions < total]
        bins = self._windows.bins(inside)
        places = [window * self.window + samples for window, samples in bins]
        counts = np.array([len(samples) for samples in places], np.int64)
        all_places = np.concatenate([*places, np.zeros(0, np.int64)]) if places else np.zeros(0, np.int64)
        made = self.data.rows(all_places if all_places.size else np.zeros(1, np.int64))
        if not all_places.size:  # one row to learn the shapes from
            made = jax.tree.map(lambda leaf: leaf[:0], made)
        return proven(self._shared(made, np.repeat(np.arange(len(bins)), counts), positions.size), self.data)

    def faults(self, batch: Batch) -> list[dict[str, Any]]:
        """What a batch's null samples are about, as `Pipeline.faults` tells."""
        alone = Batch(id=batch.id.reshape(-1, 1), fault=batch.fault.reshape(-1, 1))
        return self.data.faults(alone)

    def useful(self, rows: int = 1_000) -> float:
        """The share of slots that hold something, in the first `rows` rows; decodes nothing."""
        count = rows if self.total is None else min(rows, self.total)
        bins = self._windows.bins(np.arange(count))
        return float(sum(self._needs(window)[samples, 0].sum() for window, samples in bins) / (count * self.length))

    # -------------------------------------------------------------------------------------------------------- inside

    @functools.cached_property
    def _one(self) -> Batch:
        """The shapes of a sample's own row."""
        one, faults = row_of(self.data), []
        if one.fault.shape[1] != 1:
            faults.append(f"data with one sample per row; got {one.fault.shape[1]}")
        if one.text is None or one.text.ids.shape[1] > self.length:
            slots = "none" if one.text is None else one.text.ids.shape[1]
            faults.append(f"samples of 1 to length={self.length} slots; those of data have {slots}")
        kinds = {kind: getattr(one, kind).valid.shape[1] for kind in MEDIA if getattr(one, kind) is not None}
        for kind in sorted(kinds.keys() | self.items.keys()):
            if not 0 < kinds.get(kind, 0) <= self.items.get(kind, 0):
                faults.append(
                    f"room for a sample's items of {kind}: it may have {kinds.get(kind, 0)}, "
                    f"a row has items[{kind!r}] = {self.items.get(kind, 0)}"
                )
        if faults:
            raise UserError("packing needs " + "; ".join(faults))
        return one

    @property
    def _items(self) -> dict[str, int]:
        return {kind: self.items[kind] for kind in MEDIA if kind in self.items}

    @functools.cached_property
    def _windows(self) -> Windows:
        total = self.data.total
        return Windows(self._packed, None if total is None else math.ceil(total / self.window))

    def _packed(self, window: int) -> list[Array]:
        room = np.array([self.length, self.samples, *self._items.values()])
        bins = self.packer.bins(self._needs(window), room)
        if self.shuffle is None:
            return bins
        turn = permuted(np.arange(len(bins)), len(bins), fold(self.shuffle, window))
        return [bins[number] for number in turn]

    def _needs(self, window: int) -> Int[Array, "n 2+kinds"]:
        """Slots, samples (1) and media items of the samples of a window."""
        end = (
            (window + 1) * self.window if self.data.total is None else min((window + 1) * self.window, self.data.total)
        )
        sizes = self._sizes[self.data.indices(np.arange(window * self.window, end))]
        kinds = [1 + MEDIA.index(kind) for kind in self._items]
        return np.concatenate([sizes[:, :1], np.ones_like(sizes[:, :1]), sizes[:, kinds]], axis=1)

    @functools.cached_property
    def _sizes(self) -> Int[Array, "records 1+kinds"]:
        return measured(self.data)

    def _shared(self, made: Batch, row: Int[Array, " m"], rows: int) -> Batch:
        """The samples `made` in rows of their own, sample i moved to row `row[i]` (ascending)."""
        number = _rank(row)  # of each sample in its row, from 0
        spec = map_names(lambda _, leaf: jax.ShapeDtypeStruct((rows, *leaf.shape[1:]), leaf.dtype), self.spec())
        batch = map_names(_empty, spec)
        for name, label in made.labels.items():
            batch.labels[name][row, number] = label[:, 0]
        batch.id[row, number], batch.fault[row, number] = made.id[:, 0], made.fault[:, 0]
        start = {kind: self._move_items(made, batch, kind, row, number) for kind in self._items}
        self._move_text(made, batch, row, number, start)
        return batch

    def _move_items(self, made: Batch, batch: Batch, kind: str, row: Array, number: Array) -> Int[Array, " m"]:
        """Puts the media of one kind in place; where in its row each sample's items begin."""
        source, target = getattr(made, kind), getattr(batch, kind)
        start = _before(source.valid.sum(1), row)
        sample, item = np.nonzero(source.valid)
        place = start[sample] + item
        self._check(place, target.valid.shape[1], made, sample, kind)

        def move(into: Array, leaf: Array) -> None:
            into[row[sample], place] = leaf[sample, item]

        jax.tree.map(move, target, source)
        target.segment[row[sample], place] = number[sample] + 1
        return start

    def _move_text(self, made: Batch, batch: Batch, row: Array, number: Array, start: Mapping[str, Array]) -> None:
        sample, place = np.nonzero(made.text.segment)  # [K] each
        at = _before(made.text.valid.sum(1), row)[sample] + place
        self._check(at, self.length, made, sample, "text")
        for name in ("ids", "block", "position", "loss"):
            getattr(batch.text, name)[row[sample], at] = getattr(made.text, name)[sample, place]
        slot = moved(made.text.slot[sample, place], sample, made.landing(), batch.landing(), start)
        batch.text.slot[row[sample], at] = slot
        batch.text.segment[row[sample], at] = number[sample] + 1

    def _check(self, place: Array, room: int, made: Batch, sample: Array, what: str) -> None:
        if (place >= room).any():
            raise grown(int(made.id[sample[place >= room][0], 0]), what)


def row_of(data: Pipeline | Mixture) -> Batch:
    """The shapes of one row of `data`, or of a batch of its own."""
    return dataclasses.replace(data, batch=1).spec() if isinstance(data, Pipeline) else data.spec()


def grown(example: int, what: str) -> DataError:
    """What is wrong when an example is larger than its record was."""
    return DataError(
        f"example {example} has more {what} than when the lengths of all records were measured: the data have changed "
        "and their fingerprint has not. Delete lengths-*.npy from the cache and start again"
    )


def measured(data: Pipeline | Mixture) -> Int[Array, "records 1+kinds"]:
    """Slots of every record, and its items of each kind of `MEDIA`; made once and kept in the cache."""
    if isinstance(data, Mixture):
        return np.concatenate([measured(part) for part in data.parts])
    measuring = [feature for feature in data.features if hasattr(feature, "sizes")]
    if len(measuring) != 1:
        raise UserError(f"packing needs one feature that can tell sizes, such as ChatFeature; got {len(measuring)}")
    feature, source = measuring[0], data.source

    def sizes(start: int) -> Array:
        indices = np.arange(start, min(start + _AT_ONCE, len(source)))
        return feature.sizes(read(source, indices, np.zeros(indices.size, np.uint64)))

    def make(path: pathlib.Path) -> None:
        with concurrent.futures.ThreadPoolExecutor(Crew(data.threads).hands) as pool:
            found = np.concatenate(list(pool.map(sizes, range(0, len(source), _AT_ONCE))))
        with open(path, "wb") as file:
            np.save(file, found, allow_pickle=False)

    made_from = {"source": dict(source.fingerprint()), "feature": to_json(feature), **feature.fingerprint()}
    return np.load(cached("lengths.npy", made_from, make), allow_pickle=False)


def _empty(name: str, leaf: jax.ShapeDtypeStruct) -> Array:
    """What stands where there is no sample."""
    fill = {"id": -1, "fault": PADDING, "text/slot": -1}.get(name, 0)
    return np.full(leaf.shape, absent(leaf.dtype) if name.startswith("labels/") else fill, leaf.dtype)


def _rank(row: Int[Array, " m"]) -> Int[Array, " m"]:
    """0, 1, .. within each run of equal values."""
    return np.arange(row.size) - np.searchsorted(row, row)


def _before(size: Int[Array, " m"], row: Int[Array, " m"]) -> Int[Array, " m"]:
    """What the samples before each one in its row take."""
    ahead = np.cumsum(size) - size
    return ahead - ahead[np.searchsorted(row, row)]
