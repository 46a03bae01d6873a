"""Texts that a user or an evaluator writes, as a data set that a model can read."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np

from mmjax.core.batch import FAULTS, Batch
from mmjax.core.errors import UserError
from mmjax.core.protocols import Data
from mmjax.core.pytrees import abstract


class ReadsText(Protocol):
    """Turns texts into a batch whose rows are these texts: a pipeline's text feature, with its tokenizer."""

    def texts(self, texts: list[str]) -> Batch: ...


@dataclasses.dataclass(frozen=True)
class Prompts:
    """`texts` as finite Data, in batches of `rows`: the model's outputs for them come from `EvalContext.outputs`."""

    reader: Any  # ReadsText; a value of the experiment's configuration
    texts: tuple[str, ...]
    rows: int = 64

    def spec(self) -> Batch:
        """See `core.protocols.Data`."""
        return abstract(next(self.batches()))

    def fingerprint(self) -> Mapping[str, str]:
        """See `core.protocols.Data`."""
        return {"prompts": repr(self.texts)}

    def batches(self, position: int = 0, process: int = 0, processes: int = 1) -> Iterator[Batch]:
        """See `core.protocols.Data`."""
        share = self.rows // processes
        for start in range(position, len(self.texts), self.rows):
            index = np.arange(start, start + self.rows).reshape(processes, share)[process]
            real = index < len(self.texts)
            batch = self.reader.texts([self.texts[i] for i in np.where(real, index, 0)])
            text = dataclasses.replace(
                batch.text,
                segment=np.where(real[:, None], batch.text.segment, 0),
                loss=np.where(real[:, None], batch.text.loss, 0).astype(np.float32),
            )
            fault = np.where(real, 0, FAULTS.index("padding")).astype(np.uint8)[:, None]
            ids = np.where(real, index, -1).astype(np.int32)[:, None]
            yield Batch(text=text, id=ids, fault=fault)

    def names(self) -> Mapping[str, tuple[str, ...]]:
        """See `core.protocols.Data`."""
        return {}

    def example(self, index: int) -> Mapping[str, Any]:
        """See `core.protocols.Data`."""
        return {"text": self.texts[index]}


def reader_of(data: Data) -> ReadsText:
    """The part of a pipeline that reads text as the model was trained to. Raises UserError when it has none."""
    return part_with(data, "texts", "turns texts into batches: a method `texts(list of str) -> Batch`")


def part_with(data: Data, method: str, purpose: str) -> Any:
    """The first part of a pipeline that has a method of this name. Raises UserError when none has."""
    for part in _parts(data):
        if callable(getattr(part, method, None)):
            return part
    raise UserError(f"{type(data).__name__} has no part that {purpose} of one of its `features`")


def _parts(data: Any) -> Iterator[Any]:
    """A pipeline, its features, and those of the pipelines it is made of."""
    yield data
    for part in (
        *getattr(data, "features", ()),
        *getattr(data, "parts", ()),
        *([data.data] if hasattr(data, "data") else ()),
    ):
        yield from _parts(part)
