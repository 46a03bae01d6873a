"""What a pipeline is put together from: sources of raw records, and features that turn them into parts of a batch.

Any class with these methods fits; nothing is registered and nothing is inherited. Make both frozen dataclasses, so that
they can be stored in an experiment's JSON, and open files lazily (`functools.cached_property`), never in `__init__`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from mmjax.core.batch import FAULTS
from mmjax.core.errors import UserError, unknown_name

if TYPE_CHECKING:
    from data_pipelines.chunks import Chunk

Record = Mapping[str, Any]
"""A raw example: encoded media as bytes (or decoded arrays), text as str, labels as numbers or names. A field that is
None or not there is a modality that this example lacks."""


class BadRecord(Exception):
    """One record cannot be used; the others can. A source or a feature raises it, and the pipeline puts a null example
    with this fault in the record's place, so that no other example moves.

    fault: a name of `mmjax.core.batch.FAULTS`; reason: one line for the person who will repair the file.
    """

    def __init__(self, fault: str, reason: str):
        if fault not in FAULTS[2:]:
            raise UserError(unknown_name("fault", fault, FAULTS[2:]))
        super().__init__(fault, reason)
        self.fault, self.reason = fault, reason

    @property
    def code(self) -> int:
        """What `Batch.fault` carries."""
        return FAULTS.index(self.fault)


@runtime_checkable
class Source(Protocol):
    """Raw records under a number.

    `__getitem__` raises `BadRecord` for a record that is damaged on its own, `DataError` when the source as a whole
    cannot be trusted (a damaged shard), and `OSError` for what may pass: the pipeline tries again, then stops the run.
    It is called from several threads.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...

    def fingerprint(self) -> Mapping[str, str]:
        """What changes when the records or their order change, as short strings; cheap, reads no media."""
        ...

    def names(self) -> Mapping[str, tuple[str, ...]]:
        """What the integers of a label mean: `{"language": ("en", "es")}`; `{}` when there is nothing to say."""
        ...


@runtime_checkable
class Gathers(Protocol):
    """A source that reads many records at once faster than one by one."""

    def gather(self, indices: np.ndarray) -> Mapping[str, Sequence[Any]]:
        """The records `indices` [n] by columns: field -> n values (an array where values have one shape), None where a
        record lacks the field. Raises like `__getitem__`; after BadRecord the pipeline reads one by one."""
        ...


@runtime_checkable
class Locates(Protocol):
    """A source that can say where a record lies, for messages and `bad_records.jsonl`."""

    def locate(self, index: int) -> str:
        """Such as `shard-00003.tar: 0017.jpg`."""
        ...


@runtime_checkable
class Feature(Protocol):
    """Turns a field of raw records into a part of the batch: a modality or labels."""

    def spec(self) -> Mapping[str, Any]:
        """Its keywords for `Batch.spec`: `{"image": (1, 224, 224)}`, `{"labels": {"score": ((), "float32")}}`."""
        ...

    def build(self, chunk: Chunk) -> Mapping[str, Any]:
        """The parts of a batch for the n rows of `chunk`, by field of Batch: `{"image": Images(...)}` (numpy, leading
        n). Rows that cannot be built are told with `chunk.fail(row, error)` and may hold anything; a field that a
        record lacks gives slots that are not valid. Randomness comes from `chunk.uniform` or `chunk.rng` alone."""
        ...

    def show(self, part: Mapping[str, Any], row: int) -> Mapping[str, Any]:
        """For human eyes: what `build` made of row `row`, as pixels [H W 3], text or numbers, by a name to show."""
        ...
