"""From a function `positions -> rows` to a stream of host batches: by threads or processes, in order, from anywhere.

Grain reads ahead. What it is given to do are chunks of rows, not single examples, because its threads cost more per
element than a picture from memory does: a whole batch where the source gathers, else a batch's share of each thread.
"""

from __future__ import annotations

import atexit
import dataclasses
import itertools
import math
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import grain
import numpy as np

from mmjax.core.batch import Batch
from mmjax.core.config import changed, fields_of, is_node
from mmjax.core.errors import UserError
from mmjax.core.pytrees import joined

_AHEAD = 2  # batches


class Rows(Protocol):
    """What can be delivered."""

    @property
    def total(self) -> int | None:
        """Number of positions; None is without end."""
        ...

    def rows(self, positions: np.ndarray) -> Batch:
        """The rows at these positions; beyond the end, rows of fault "padding"."""
        ...


@dataclasses.dataclass(frozen=True)
class Crew:
    """Who builds batches. threads: 0 is as many as there are cores (decoders release the GIL, so more only crowd).
    workers: processes, each with that many threads; for work in Python that threads cannot share. whole: a batch is one
    piece of work, for data that is read many records at once."""

    threads: int = 0
    workers: int = 0
    whole: bool = False

    @property
    def hands(self) -> int:
        """Threads per process, resolved."""
        return self.threads or len(os.sched_getaffinity(0))

    def parts(self, share: int) -> int:
        """In how many pieces `share` rows are built."""
        return 1 if self.whole else math.ceil(share / math.ceil(share / (self.hands * max(1, self.workers))))


@dataclasses.dataclass(frozen=True)
class _Chunks:
    """Chunk number -> rows. `share` rows of each batch from `offset` on, in `parts` chunks."""

    data: Any
    batch: int
    position: int
    offset: int
    share: int
    parts: int

    def __call__(self, number: int) -> Batch:
        step, part = divmod(int(number), self.parts)
        size = math.ceil(self.share / self.parts)
        first = self.position + step * self.batch + self.offset
        return self.data.rows(first + np.arange(part * size, min((part + 1) * size, self.share)))


def deliver(data: Rows, batch: int, crew: Crew, position: int, process: int, processes: int) -> Iterator[Batch]:
    """Host batches from `position` on: rows [share * process, share * (process + 1)) of each global batch.

    Raises UserError for a batch that the processes cannot share."""
    if batch % processes or not 0 <= process < processes:
        raise UserError(f"a batch of {batch} cannot be shared by {processes} processes (this is number {process})")
    share = batch // processes
    parts = crew.parts(share)
    steps = None if data.total is None else max(0, math.ceil((data.total - position) / batch))
    yield from in_order(_Chunks(data, batch, position, process * share, share, parts), steps, crew, parts)


def in_order(work: Callable[[int], Batch], steps: int | None, crew: Crew, parts: int) -> Iterator[Batch]:
    """Host batches 0, 1, .. up to `steps` (None: without end), each joined from what `work`, a dataclass, makes of the
    numbers of its `parts` chunks."""
    count = sys.maxsize // 2 if steps is None else steps * parts
    threads = grain.ReadOptions(num_threads=crew.hands, prefetch_buffer_size=_AHEAD * parts)
    chunks = grain.MapDataset.range(count).map(fresh(work) if crew.workers else work).to_iter_dataset(threads)
    if crew.workers:
        _parse_flags()
        chunks = chunks.mp_prefetch(grain.MultiprocessingOptions(crew.workers, per_worker_buffer_size=_AHEAD * parts))
    stream = iter(chunks)
    atexit.register(stream.close)  # threads and processes must be gone before the interpreter is taken apart
    try:
        while pieces := list(itertools.islice(stream, parts)):
            yield pieces[0] if len(pieces) == 1 else joined(pieces)
    finally:
        atexit.unregister(stream.close)
        stream.close()


def fresh(value: Any) -> Any:
    """The same frozen value without what it has opened and remembered since, so that it can travel to a process."""
    if is_node(value):
        return changed(value, **{name: fresh(getattr(value, name)) for name in fields_of(value)})
    return tuple(fresh(item) for item in value) if isinstance(value, tuple) else value


def _parse_flags() -> None:
    """Grain's workers read absl flags, which fail unless somebody parsed them."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
