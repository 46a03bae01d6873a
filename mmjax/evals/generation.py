"""Texts that a model writes for the examples of a data set, and what is right for each.

N real examples   B rows of a batch
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from mmjax.core.batch import Batch
from mmjax.core.errors import DataError, UserError, unknown_name
from mmjax.core.protocols import Data, EvalContext
from mmjax.evals.embeddings import Embedded, wanted_labels


class Generator(Protocol):
    """How text is made of a model: a frozen dataclass whose fields say how to decode (sampler, steps, tokenizer)."""

    def __call__(self, context: EvalContext, data: Data) -> Iterator[tuple[Sequence[str], Batch]]:
        """(one text per row, host batch) over one pass of `data`, in order, padding rows included, as
        `EvalContext.outputs` does. The row up to its first place with a loss weight is the prompt."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """One value per real example of the data, in its order; `about` knows ids, labels and their names."""

    values: Sequence[Any]
    about: Embedded

    def of(self, ids: Iterable[int]) -> list[Any]:
        """The values of these examples."""
        known = dict(zip(self.about.id.tolist(), self.values, strict=True))
        return [known[int(index)] for index in ids]


def rows_of(data: Data, labels: Sequence[str | None], stream: Iterable[tuple[Sequence[Any], Batch]]) -> Rows:
    """Gathers a stream of (one value per row, batch); padding and null examples are left out. Raises UserError for a
    label that is not there, DataError when no example is left."""
    wanted, values, columns = wanted_labels(data, labels), [], []
    for found, batch in stream:
        real = np.asarray(batch.valid)[:, 0]
        if len(found) != len(real):
            raise UserError(
                f"a generator gave {len(found)} texts for a batch of {len(real)} rows; it must give one each"
            )
        values += [value for value, keep in zip(found, real, strict=True) if keep]
        columns.append([np.asarray(column)[real, 0] for column in (*(batch.labels[name] for name in wanted), batch.id)])
    if not values:
        raise DataError("nothing to evaluate: every example of the data is padding or could not be read")
    *merged, ids = (np.concatenate(parts) for parts in zip(*columns, strict=True))
    return Rows(values, Embedded({}, dict(zip(wanted, merged, strict=True)), ids, data.names()))


@dataclasses.dataclass(frozen=True)
class Field:
    """What is right stands in the examples' own texts: one, or a sequence of equally right ones."""

    name: str

    def labels(self) -> tuple[str, ...]:
        """Labels that `of` reads."""
        return ()

    def of(self, data: Data, about: Embedded) -> list[tuple[str, ...]]:
        """For each example, everything that is right."""
        return [self._texts(data.example(int(index))) for index in about.id]

    def _texts(self, example: Any) -> tuple[str, ...]:
        if self.name not in example:
            raise UserError(unknown_name("field of this data's examples", self.name, example))
        value = example[self.name]
        return (value,) if isinstance(value, str) else tuple(map(str, value))


@dataclasses.dataclass(frozen=True)
class Label:
    """What is right is a label of the batch: the name of its value, or its numbers (a box [4], or several [.. 4])."""

    name: str

    def labels(self) -> tuple[str, ...]:
        """Labels that `of` reads."""
        return (self.name,)

    def of(self, data: Data, about: Embedded) -> list[tuple[Any, ...]]:
        """For each example, everything that is right; nothing where the label is -1."""
        values = about.labels[self.name]
        if values.ndim > 1:
            return [tuple(map(tuple, value.reshape(-1, values.shape[-1]).tolist())) for value in values]
        return [(about.name_of(self.name, int(value)),) if value >= 0 else () for value in values]
