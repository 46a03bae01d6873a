"""How a model writes for an evaluation.  B rows   T places"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Protocol

import jax
import numpy as np

from mmjax.core.batch import Batch, Text
from mmjax.core.protocols import Data, EvalContext
from mmjax.core.pytrees import joined, taken
from mmjax.decoding.generate import generate
from mmjax.decoding.samplers import Greedy, Sampler

MOST_WAITING = 16
"""Batches that may wait for their rows to be written."""


class Speller(Protocol):
    """What knows how ids are written; a chat feature of a data pipeline does."""

    def answers(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """The text of each row of ids."""
        ...

    @property
    def stops(self) -> tuple[int, ...]:
        """Ids that end an answer."""
        ...


@dataclasses.dataclass(frozen=True)
class Writer:
    """Continues each row's prompt with `mmjax.decoding.generate`: the generator of the evaluators of written text.

    steps: how many ids an answer may have; seed: of samplers that draw. Where nothing is drawn, prompts that are alike
    to the last bit are continued once: without their pictures, questions are few."""

    speller: Speller
    steps: int = 32
    sampler: Sampler = Greedy()
    seed: int = 0

    def __call__(self, context: EvalContext, data: Data) -> Iterator[tuple[Sequence[str], Batch]]:
        """See `mmjax.evals.generation.Generator`."""
        with jax.transfer_guard("allow"):
            queue = _Queue(lambda batch, number: self._written(context, batch, number))
            for number, batch in enumerate(data.batches()):
                context.poll()
                asked = prompts(batch)
                drawn = not isinstance(self.sampler, Greedy)
                keys = [(number, row) for row in range(batch.rows)] if drawn else _digests(asked)
                yield from queue.add(batch, asked, keys)
            yield from queue.emptied()

    def _written(self, context: EvalContext, batch: Batch, number: int) -> list[str]:
        key = jax.random.fold_in(jax.random.key(self.seed), number)
        model, params, end = context.model, context.params, self.speller.stops
        made = generate(model, params, batch, self.sampler, self.steps, end=end, rng=key)
        ids, lengths = np.asarray(made.ids), np.asarray(made.lengths)
        return self.speller.answers([row[:length].tolist() for row, length in zip(ids, lengths, strict=True)])


class _Queue:
    """Batches that wait until all of their rows are written, and rows of them that still have to be: each key once, as
    many at a time as a batch has rows."""

    def __init__(self, write: Callable[[Batch, int], list[str]]) -> None:
        self._write, self._calls, self._rows = write, 0, 0
        self._texts: dict[Hashable, str] = {}
        self._unwritten: dict[Hashable, Batch] = {}
        self._waiting: deque[tuple[Batch, list[Hashable]]] = deque()

    def add(self, batch: Batch, asked: Batch, keys: list[Hashable]) -> Iterator[tuple[Sequence[str], Batch]]:
        """The batches that are ready, now that `batch` has come, whose prompts are `asked`."""
        if self._unwritten and _shapes(next(iter(self._unwritten.values()))) != _shapes(asked):
            yield from self.emptied()
        self._rows = batch.rows
        for row, key in enumerate(keys):
            if key not in self._texts and key not in self._unwritten:
                self._unwritten[key] = taken(asked, [row])
        self._waiting.append((batch, keys))
        while len(self._unwritten) >= batch.rows or (self._unwritten and len(self._waiting) > MOST_WAITING):
            self._some()
        yield from self._ready()

    def emptied(self) -> Iterator[tuple[Sequence[str], Batch]]:
        """The batches that are left."""
        while self._unwritten:
            self._some()
        yield from self._ready()

    def _some(self) -> None:
        keys = list(itertools.islice(self._unwritten, self._rows))
        rows = [self._unwritten.pop(key) for key in keys]
        whole = joined(rows + rows[-1:] * (self._rows - len(rows)))
        self._texts |= zip(keys, self._write(whole, self._calls), strict=False)  # what fills up the batch is left
        self._calls += 1

    def _ready(self) -> Iterator[tuple[Sequence[str], Batch]]:
        while self._waiting and all(key in self._texts for key in self._waiting[0][1]):
            batch, keys = self._waiting.popleft()
            yield [self._texts[key] for key in keys], batch


def _digests(batch: Batch) -> list[Hashable]:
    """What a model sees of each row, in short."""
    seen = jax.tree.map(np.asarray, [batch.fault, *(getattr(batch, name) for name in batch.modalities())])
    leaves = [np.ascontiguousarray(leaf) for leaf in jax.tree.leaves(seen)]
    return [hashlib.sha256(b"".join(leaf[row].tobytes() for leaf in leaves)).digest() for row in range(batch.rows)]


def _shapes(batch: Batch) -> list[tuple[int, ...]]:
    return [leaf.shape[1:] for leaf in jax.tree.leaves(batch)]


def prompts(batch: Batch) -> Batch:
    """The batch (numpy) with each row cut before its first place that carries a loss weight."""
    text = batch.text
    given = np.cumsum(np.asarray(text.loss) > 0, axis=1) == 0

    def cut(name: str, empty: int) -> np.ndarray:
        return np.where(given, getattr(text, name), empty)

    kept = {name: cut(name, 0) for name in ("ids", "segment", "block", "position")}
    return batch.replace(text=Text(**kept, slot=cut("slot", -1), loss=np.zeros_like(text.loss), per_item=text.per_item))
