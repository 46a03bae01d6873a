"""Some rows of a batch while they are being built: raw columns in, faults out."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from data_pipelines.protocols import BadRecord, Gathers, Source
from data_pipelines.randomness import named, uniform
from mmjax.core.errors import ExitCode, UserError

_PATIENCE_S = (0.1, 1.0, 4.0)  # waits between attempts at storage that may recover


@dataclasses.dataclass(frozen=True)
class Chunk:
    """n raw records as columns. `keys` [n] are what randomness may depend on (a function of seed and position)."""

    columns: Mapping[str, Sequence[Any]]
    keys: np.ndarray
    names: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    errors: dict[int, BadRecord] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.keys)

    def column(self, field: str) -> Sequence[Any]:
        """n values of `field`, None where a record lacks it."""
        return self.columns.get(field, [None] * len(self))

    def fail(self, row: int, error: BadRecord) -> None:
        """Makes row `row` a null example; the first error of a row is the one that is told."""
        self.errors.setdefault(row, error)

    def uniform(self, name: str) -> np.ndarray:
        """A float64 in [0, 1) per row; each name is a stream of its own."""
        return uniform(named(self.keys, name))

    def rng(self, row: int, name: str) -> np.random.Generator:
        """A numpy generator for one row (10 to 20 us: for work that decodes anyway)."""
        return np.random.default_rng(int(named(self.keys[row], name)))

    @property
    def fault(self) -> np.ndarray:
        """[n] uint8 codes."""
        codes = np.zeros(len(self), np.uint8)
        for row, error in self.errors.items():
            codes[row] = error.code
        return codes


def read(source: Source, indices: np.ndarray, keys: np.ndarray) -> Chunk:
    """The records `indices` of `source` as a chunk; bad ones are marked, storage that stumbles is asked again."""
    names = source.names()
    if isinstance(source, Gathers):
        try:
            return Chunk(_patiently(lambda: source.gather(indices)), keys, names)
        except BadRecord:
            pass  # one by one, to learn which
    errors: dict[int, BadRecord] = {}
    records = [_record(source, int(index), row, errors) for row, index in enumerate(indices)]
    fields = dict.fromkeys(field for record in records for field in record)
    return Chunk({field: [record.get(field) for record in records] for field in fields}, keys, names, errors)


def _record(source: Source, index: int, row: int, errors: dict[int, BadRecord]) -> Mapping[str, Any]:
    try:
        return _patiently(lambda: source[index])
    except BadRecord as error:
        errors[row] = error
    except FileNotFoundError as error:
        errors[row] = BadRecord("missing_file", str(error))
    return {}


def _patiently(read: Callable[[], Any]) -> Any:
    """Retries what may pass (a stale handle, a busy server), then stops the run: skipping would give two runs of one
    experiment different data."""
    for wait in (*_PATIENCE_S, None):
        try:
            return read()
        except FileNotFoundError:
            raise
        except OSError as error:
            if wait is None:
                raise UserError(
                    f"reading data failed {len(_PATIENCE_S) + 1} times: {error}", code=ExitCode.RETRY
                ) from error
            time.sleep(wait)
