"""`Bucketed`: samples of like length in batches of their own, so that short ones are not padded to the longest.

A bucket's batches have one shape, and a run compiles its step once for each. A batch of short rows may hold more of
them: with as many slots in each batch, steps cost alike and tokens weigh alike in the loss.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from data_pipelines.budget import Budget
from data_pipelines.cache import fingerprint_of
from data_pipelines.delivery import Crew, in_order
from data_pipelines.mixture import Mixture
from data_pipelines.order import permuted
from data_pipelines.packed import grown, measured, row_of
from data_pipelines.packing import Windows
from data_pipelines.pipeline import Pipeline
from data_pipelines.randomness import fold
from mmjax.core.batch import Batch
from mmjax.core.config import to_json
from mmjax.core.errors import UserError
from mmjax.core.pytrees import map_names

Array = np.ndarray
Dealt = tuple["Bucket", Array]
"""A batch: its shape, and the positions of its samples."""


@dataclasses.dataclass(frozen=True)
class Bucket:
    """Batches of `rows` rows of `length` slots, for samples that fit and are too long for the bucket before."""

    length: int
    rows: int

    def __post_init__(self):
        if self.length < 1 or self.rows < 1:
            raise UserError(f"a bucket needs length and rows of at least 1; got {self.length} and {self.rows}")


def buckets_of(tokens: int, lengths: Sequence[int], multiple: int = 1) -> tuple[Bucket, ...]:
    """Buckets of these lengths whose batches have about `tokens` slots, never more. multiple: what all numbers of rows
    must be multiples of, such as devices times `accumulate`. Raises UserError where not even one multiple fits."""
    needed = max(lengths, default=1) * multiple
    if tokens < needed or multiple < 1:
        raise UserError(
            f"tokens={tokens} hold no {multiple} rows of {max(lengths, default=1)} slots; give at least {needed}"
        )
    return tuple(Bucket(length, tokens // (length * multiple) * multiple) for length in lengths)


@dataclasses.dataclass(frozen=True)
class Bucketed:
    """Implements `mmjax.core.protocols.Data` and `Shapes`: the samples of `data` (whose own `batch` is not looked at),
    each in a batch of the first bucket that is long enough for it.

    `window` consecutive samples (fewer at the end of a pass) are dealt to the buckets together, and their batches come
    in an order that `shuffle` draws (None: short before long). What fills no batch of its own bucket moves up into
    longer ones; fewer samples than the last bucket has rows wait for the next window. Every sample comes exactly once,
    and only the last batch of finite data is padded.

    Positions count rows. The lengths of all records are measured once and kept in the cache; all batches follow from
    them, so that a stream starts anywhere, the same on any number of processes. A position inside a batch (that of a
    run with other buckets) starts with that batch.
    """

    data: Pipeline | Mixture
    buckets: tuple[Bucket, ...]
    window: int = 65_536
    shuffle: int | None = 0
    threads: int = 0
    workers: int = 0
    budget: Budget = Budget()

    def __post_init__(self):
        lengths = [bucket.length for bucket in self.buckets]
        if not lengths or lengths != sorted(set(lengths)):
            raise UserError(f"buckets must be there and become longer from one to the next; got lengths {lengths}")
        if self.window < 1:
            raise UserError(f"window must be at least 1; got {self.window}")

    # ---------------------------------------------------------------------------------- core.protocols.Data and Shapes

    def spec(self) -> Batch:
        """The global batch of the longest bucket as ShapeDtypeStructs."""
        return self.specs()[-1]

    def specs(self) -> tuple[Batch, ...]:
        """The global batch of each bucket. Raises UserError where the samples of `data` do not fit the buckets."""
        one = self._one

        def shaped(name: str, leaf: jax.ShapeDtypeStruct, bucket: Bucket) -> jax.ShapeDtypeStruct:
            inner = (bucket.length,) if name.startswith("text/") else leaf.shape[1:]
            return jax.ShapeDtypeStruct((bucket.rows, *inner), leaf.dtype)

        return tuple(map_names(functools.partial(shaped, bucket=bucket), one) for bucket in self.buckets)

    def fingerprint(self) -> Mapping[str, str]:
        """Those of `data`, and how it is dealt."""
        how = {name: to_json(getattr(self, name)) for name in ("buckets", "window", "shuffle")}
        return {**self.data.fingerprint(), "buckets": fingerprint_of(how)}

    def batches(self, position: int = 0, process: int = 0, processes: int = 1) -> Iterator[Batch]:
        """See `Data`. Raises DataError when the budget for bad records is spent, and UserError for buckets that the
        processes cannot share."""
        self.specs()
        shares, odd = np.divmod([bucket.rows for bucket in self.buckets], processes)
        if odd.any() or not 0 <= process < processes:
            rows = ", ".join(str(bucket.rows) for bucket in self.buckets)
            raise UserError(f"batches of {rows} rows cannot be shared by {processes} processes (this is {process})")
        crew = Crew(self.threads, self.workers)
        parts = min(map(crew.parts, shares.tolist()))
        first, total = self._number(position), self._windows.total()
        work = _Chunks(self, first, process, processes, parts)
        return self.budget.watch(in_order(work, None if total is None else total - first, crew, parts), self)

    def names(self) -> Mapping[str, tuple[str, ...]]:
        """Those of `data`."""
        return self.data.names()

    def example(self, index: int) -> Mapping[str, Any]:
        """See `Data`."""
        return self.data.example(index)

    # ------------------------------------------------------------------------------------------------ for the others

    def faults(self, batch: Batch) -> list[dict[str, Any]]:
        """What a batch's null examples are about, as `Pipeline.faults` tells."""
        return self.data.faults(batch)

    def useful(self, batches: int = 1_000) -> float:
        """The share of slots that hold something, in the first `batches` batches; decodes nothing."""
        total = self._windows.total()
        found = [self.dealt(number) for number in range(batches if total is None else min(batches, total))]
        held = sum(self._lengths(self._real(places)).sum() for _, places in found)
        return float(held / sum(bucket.rows * bucket.length for bucket, _ in found))

    def dealt(self, number: int) -> Dealt:
        """Batch number `number`, before any end; positions beyond the end of `data` are padding."""
        ((_, found),) = self._windows.bins(np.array([number]))
        return found

    def rows(self, bucket: Bucket, places: Int[Array, " n"]) -> Batch:
        """The samples at `places` of `data`, in rows of a bucket."""
        made = self.data.rows(places)
        beyond = made.text.valid[:, bucket.length :].any(1)
        if beyond.any():
            raise grown(int(made.id[beyond.argmax(), 0]), "text")
        return made.replace(text=jax.tree.map(lambda leaf: leaf[:, : bucket.length].copy(), made.text))

    # -------------------------------------------------------------------------------------------------------- inside

    @functools.cached_property
    def _one(self) -> Batch:
        """The shapes of a sample's own row."""
        one, last, faults = row_of(self.data), self.buckets[-1], []
        slots = 0 if one.text is None else one.text.ids.shape[1]
        if slots != last.length:
            faults.append(f"the last one must be as long as the rows of data ({slots} slots); got {last.length}")
        if isinstance(self.data, Pipeline) and self.data.total is None and self.data.epoch < last.rows:
            faults.append(f"the last one must have at most as many rows as a pass of the data ({self.data.epoch})")
        if faults:
            raise UserError("buckets do not fit the data: " + "; ".join(faults))
        return one

    @functools.cached_property
    def _spans(self) -> tuple[int, int]:
        """(positions of a pass, windows of a pass): no window reaches into another pass."""
        if isinstance(self.data, Mixture):
            return self.window, 1
        return self.data.epoch, -(-self.data.epoch // self.window)

    @functools.cached_property
    def _windows(self) -> Windows:
        """The batches of each window. What a window leaves to the next is remembered: it depends on all before it."""
        left = [np.zeros(0, np.int64)]
        epoch, per_epoch = self._spans
        count = None if self.data.total is None else self.data.total // epoch * per_epoch

        def pack(window: int) -> list[Dealt]:
            found, rest = self._deal(np.concatenate([left[window], self._window(window)]))
            if self.shuffle is not None:
                turn = permuted(np.arange(len(found)), len(found), fold(self.shuffle, window))
                found = [found[number] for number in turn]
            if window + 1 == count and rest.size:
                empty = self.data.total + np.arange(self.buckets[-1].rows - rest.size)
                return [*found, (self.buckets[-1], np.concatenate([rest, empty]))]
            if window + 1 == len(left):
                left.append(rest)
            return found

        return Windows(pack, count)

    def _window(self, number: int) -> Int[Array, " n"]:
        epoch, per_epoch = self._spans
        turn, part = divmod(number, per_epoch)
        return turn * epoch + np.arange(part * self.window, min((part + 1) * self.window, epoch))

    def _deal(self, places: Int[Array, " n"]) -> tuple[list[Dealt], Int[Array, " k"]]:
        """Full batches of the samples at `places`, and those that are left; the oldest of a bucket come first."""
        home = np.searchsorted([bucket.length for bucket in self.buckets], self._lengths(places))
        found, waiting = [], np.zeros(0, np.int64)
        for number, bucket in enumerate(self.buckets):
            waiting = np.sort(np.concatenate([waiting, places[home == number]]))
            full = waiting.size // bucket.rows * bucket.rows
            found += [(bucket, batch) for batch in waiting[:full].reshape(-1, bucket.rows)]
            waiting = waiting[full:]
        return found, waiting

    def _number(self, position: int) -> int:
        """Of the batch that `position` is in."""
        total, number, seen = self._windows.total(), 0, 0
        while number != total and (seen := seen + self.dealt(number)[0].rows) <= position:
            number += 1
        return number

    def _lengths(self, places: Int[Array, " n"]) -> Int[Array, " n"]:
        """Slots of the samples at `places`."""
        return self._sizes[self.data.indices(places), 0]

    def _real(self, places: Int[Array, " n"]) -> Int[Array, " n"]:
        return places if self.data.total is None else places[places < self.data.total]

    @functools.cached_property
    def _sizes(self) -> Int[Array, "records 1+kinds"]:
        return measured(self.data)


@dataclasses.dataclass(frozen=True)
class _Chunks:
    """Chunk number -> rows: of each batch from number `first` on, a process's share, in `parts` chunks."""

    data: Bucketed
    first: int
    process: int
    processes: int
    parts: int

    def __call__(self, number: int) -> Batch:
        step, part = divmod(int(number), self.parts)
        bucket, places = self.data.dealt(self.first + step)
        share = np.split(places, self.processes)[self.process]
        return self.data.rows(bucket, np.array_split(share, self.parts)[part])
