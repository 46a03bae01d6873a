"""How many bad records a run may meet before it stops."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from mmjax.core.batch import FAULTS, Batch
from mmjax.core.errors import DataError

_SHOWN = 5


@dataclasses.dataclass(frozen=True)
class Budget:
    """A run stops when more than `ratio` of the examples seen were bad (but not before `least` of them were), or when
    `most` different records are bad."""

    ratio: float = 0.05
    least: int = 20
    most: int = 10_000

    def watch(self, batches: Iterable[Batch], data: Any) -> Iterator[Batch]:
        """The same batches, until the budget is spent: then DataError, with counts by reason and the first records.
        `data.faults(batch)` explains."""
        counts: collections.Counter[str] = collections.Counter()
        bad, seen, first = set(), 0, []
        for batch in batches:
            ids, codes = _examples(batch)
            seen += int((codes != PADDING).sum())
            if (codes > PADDING).any():
                counts.update(FAULTS[code] for code in codes[codes > PADDING])
                bad.update(ids[codes > PADDING].tolist())
                first += data.faults(batch)[: _SHOWN - len(first)]
                if len(bad) > self.most or counts.total() > max(self.least, self.ratio * seen):
                    raise DataError(self._message(counts, seen, len(bad), first))
            yield batch

    def _message(self, counts: Mapping[str, int], seen: int, different: int, first: list[Mapping[str, Any]]) -> str:
        reasons = ", ".join(f"{count} {reason}" for reason, count in counts.items())
        shown = "\n".join(f"- {entry['where']}: {entry['fault']}: {entry['reason']}" for entry in first)
        return (
            f"too many bad records: {sum(counts.values())} of {seen} examples seen ({reasons}), {different} "
            f"different ones. The budget allows ratio={self.ratio:g} beyond least={self.least}, and most={self.most}.\n"
            f"The first:\n{shown}\n"
            "Repair or remove them (`mmjax data check` lists all), or raise the pipeline's budget."
        )


PADDING = FAULTS.index("padding")


def bad_rows(batch: Batch) -> np.ndarray:
    """Numbers of the rows whose example is null because its record is bad."""
    return np.flatnonzero(batch.fault[:, 0] > PADDING)


def _examples(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """Ids and faults of the different examples of each row: its samples are parts of one, or examples packed."""
    first = np.diff(batch.id, axis=1, prepend=-2) != 0
    return batch.id[first], batch.fault[first]
