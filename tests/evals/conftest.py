"""A data set of pairs in memory, and a model whose outputs are given."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
import pytest

from mmjax.core.batch import Batch


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """Example i has a picture, a caption and `labels[name][i]`; batches of `rows`, the last one padded."""

    size: int
    labels: Mapping[str, np.ndarray]
    words: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    rows: int = 8
    null: tuple[int, ...] = ()  # examples that could not be read

    def spec(self):
        named = dict.fromkeys(self.labels, ((), np.int32))
        return Batch.spec(self.rows, text=4, image=(1, 4, 4), labels=named)

    def fingerprint(self):
        return {}

    def names(self):
        return self.words

    def example(self, index):
        return {"image": np.full((4, 4, 3), index % 256, np.uint8), "caption": f"picture {index}"}

    def batches(self, position=0, process=0, processes=1):
        full = Batch.fake(self.spec())
        for start in range(0, self.size, self.rows):
            ids = np.arange(start, start + self.rows)
            real = (ids < self.size) & ~np.isin(ids, self.null)
            take = np.minimum(ids, self.size - 1)
            image = dataclasses.replace(full.image, valid=real[:, None], segment=real[:, None].astype(np.int32))
            labels = {name: values[take][:, None].astype(np.int32) for name, values in self.labels.items()}
            fault = np.where(real, 0, np.where(ids < self.size, 2, 1)).astype(np.uint8)[:, None]
            text = dataclasses.replace(full.text, segment=np.repeat(real[:, None], 4, 1).astype(np.int32))
            yield full.replace(image=image, text=text, labels=labels, fault=fault, id=np.where(real, ids, -1)[:, None])


@dataclasses.dataclass(frozen=True, eq=False)
class Answers:
    """An EvalContext whose model answers example i with row i of each vector table; NaN for what is not real."""

    vectors: Mapping[str, np.ndarray]
    model = params = None
    step = 0

    def outputs(self, data, *names):
        for batch in data.batches():
            take = np.maximum(batch.id[:, 0], 0)
            real = np.asarray(batch.valid)
            answers = {name: np.where(real, values[take], np.nan) for name, values in self.vectors.items()}
            yield {"embeddings": answers, "pooled": answers}, batch


@dataclasses.dataclass(frozen=True, eq=False)
class Reads:
    """An EvalContext that answers the examples of `data` like `pictures`, and the texts of prompts by `read`."""

    data: Table
    pictures: Answers
    read: Callable[[Batch], np.ndarray]
    model = params = None
    step = 0

    def outputs(self, data, *names):
        if getattr(data, "data", data) is self.data:
            yield from self.pictures.outputs(data, *names)
            return
        for batch in data.batches():
            yield {"embeddings": {"text": self.read(batch)}}, batch


@pytest.fixture
def reads():
    return Reads


@pytest.fixture
def table():
    return Table


@pytest.fixture
def answers():
    return Answers
