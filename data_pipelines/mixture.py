"""Several pipelines as one, in exact proportions."""

from __future__ import annotations

import dataclasses
import fractions
import functools
import operator
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from data_pipelines.budget import Budget, bad_rows
from data_pipelines.cache import fingerprint_of
from data_pipelines.delivery import Crew, deliver
from data_pipelines.pipeline import Pipeline
from data_pipelines.protocols import Gathers
from mmjax.core.batch import Batch
from mmjax.core.errors import UserError
from mmjax.core.pytrees import flatten_names


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Implements `mmjax.core.protocols.Data`: examples of `parts` dealt out in proportion to `weights`.

    Of any first p examples, each part has its share of p to within (number of parts) examples; each part's own examples
    come in its own order. Parts are endless, have the same features and the same batch. `Batch.id` counts on through
    the parts' sources.
    """

    parts: tuple[Pipeline, ...]
    weights: tuple[float, ...]
    threads: int = 0
    workers: int = 0
    budget: Budget = Budget()

    def __post_init__(self):
        faults = []
        if len(self.parts) != len(self.weights) or not self.parts:
            faults.append(f"as many weights as parts, and at least one: got {len(self.weights)} and {len(self.parts)}")
        if any(weight <= 0 for weight in self.weights):
            faults.append(f"weights above 0; got {self.weights}")
        if any(part.epochs is not None for part in self.parts):
            faults.append("endless parts: leave their `epochs` at none")
        if len({part.batch for part in self.parts}) > 1:
            faults.append(f"parts with one batch size; got {[part.batch for part in self.parts]}")
        if faults:
            raise UserError("a mixture needs " + "; ".join(faults))

    @property
    def batch(self) -> int:
        """Rows of the global batch."""
        return self.parts[0].batch

    @property
    def total(self) -> None:
        """Without end."""
        return None

    def spec(self) -> Batch:
        """The global batch as ShapeDtypeStructs. Raises UserError when parts make different batches."""
        specs = [part.spec() for part in self.parts]
        leaves = [flatten_names(spec) for spec in specs]
        for number, other in enumerate(leaves[1:], 1):
            odd = [name for name in {**leaves[0], **other} if leaves[0].get(name) != other.get(name)]
            if odd:
                raise UserError(f"parts 0 and {number} of a mixture differ in {', '.join(odd)}: give the same features")
        return specs[0]

    def fingerprint(self) -> Mapping[str, str]:
        """Those of the parts, and the weights."""
        found = {"weights": fingerprint_of([str(share) for share in self._shares])}
        for number, part in enumerate(self.parts):
            found |= {f"part {number} {name}": value for name, value in part.fingerprint().items()}
        return found

    def batches(self, position: int = 0, process: int = 0, processes: int = 1) -> Iterator[Batch]:
        """See `Data`."""
        self.spec()
        crew = Crew(self.threads, self.workers, whole=all(isinstance(part.source, Gathers) for part in self.parts))
        return self.budget.watch(deliver(self, self.batch, crew, position, process, processes), self)

    def names(self) -> Mapping[str, tuple[str, ...]]:
        """The parts' names, which must agree."""
        found: dict[str, tuple[str, ...]] = {}
        for number, part in enumerate(self.parts):
            for label, words in part.names().items():
                if found.setdefault(label, words) != words:
                    raise UserError(
                        f"part {number} of a mixture names the values of {label!r} otherwise than parts before it"
                    )
        return found

    def example(self, index: int) -> Mapping[str, Any]:
        """See `Data`."""
        part, inner = self._owner(index)
        return self.parts[part].example(inner)

    def faults(self, batch: Batch) -> list[dict[str, Any]]:
        """See `Pipeline.faults`."""
        found = []
        for row in bad_rows(batch):
            part, inner = self._owner(int(batch.id[row, 0]))
            one = jax.tree.map(lambda leaf, row=row: leaf[row : row + 1], batch)
            for entry in self.parts[part].faults(one.replace(id=np.full_like(one.id, inner))):
                found.append(entry | {"id": int(batch.id[row, 0])})
        return found

    def rows(self, positions: np.ndarray) -> Batch:
        """The rows at `positions` [n]."""
        owner, places = self.dealt(positions)
        whole: Batch | None = None
        for number, part in enumerate(self.parts):
            mine = np.flatnonzero(owner == number)
            if mine.size == 0:
                continue
            some = part.rows(places[mine])
            some = some.replace(id=np.where(some.id >= 0, some.id + self._starts[number], some.id).astype(np.int32))
            if mine.size == positions.size:
                return some
            whole = _room(some, positions.size) if whole is None else whole
            jax.tree.map(lambda into, leaf, mine=mine: operator.setitem(into, mine, leaf), whole, some)
        return whole

    def indices(self, positions: np.ndarray) -> np.ndarray:
        """Which records [n] stand at `positions` [n], numbered on through the parts' sources."""
        owner, places = self.dealt(positions)
        found = np.empty(positions.shape, np.int64)
        for number, part in enumerate(self.parts):
            mine = owner == number
            found[mine] = self._starts[number] + part.indices(places[mine])
        return found

    def dealt(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(which part stands at each position, at which of its own positions).

        One part is split off after the other: of the first q places that are left, it has floor(q * share). This is the
        rule of Bresenham's line, in whole numbers, so it holds at any position without counting up to it."""
        owner, places = np.full(positions.shape, len(self.parts) - 1), positions.astype(np.int64)
        left = np.ones(positions.shape, bool)
        for number, share in enumerate(self._shares[:-1]):
            before, after = (_times(places + more, share) for more in (0, 1))
            mine = left & (after > before)
            owner[mine] = number
            left &= ~mine
            places = np.where(mine, before, np.where(left, places - before, places))
        return owner, places

    @functools.cached_property
    def _shares(self) -> list[fractions.Fraction]:
        """Of what the parts before it leave, what each takes; to six digits."""
        weights = [fractions.Fraction(str(weight)) for weight in self.weights]
        return [(weight / sum(weights[number:])).limit_denominator(1_000_000) for number, weight in enumerate(weights)]

    @functools.cached_property
    def _starts(self) -> np.ndarray:
        return np.cumsum([0, *(len(part.source) for part in self.parts)])

    def _owner(self, index: int) -> tuple[int, int]:
        part = int(np.searchsorted(self._starts, index, side="right")) - 1
        return part, index - int(self._starts[part])


def _room(some: Batch, rows: int) -> Batch:
    """An unwritten batch of `rows` rows, otherwise like `some`."""
    return jax.tree.map(lambda leaf: np.empty((rows, *leaf.shape[1:]), leaf.dtype), some)


def _times(count: np.ndarray, share: fractions.Fraction) -> np.ndarray:
    """floor(count * share), without overflow for counts below 10**15."""
    whole, rest = np.divmod(count, share.denominator)
    return whole * share.numerator + rest * share.numerator // share.denominator
