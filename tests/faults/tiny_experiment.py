"""A run of a second, as a user would write it outside of the repository; the tests copy it into a temporary folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from mmjax.core.batch import Batch
from mmjax.core.means import Mean
from mmjax.core.parameters import declare
from mmjax.training.average import Ema
from mmjax.training.checkpoints import Checkpoints
from mmjax.training.experiment import Experiment, every, weighted
from mmjax.training.optim import adamw
from mmjax.training.schedules import Constant


class Net(nn.Module):
    """Ids -> mean embedding -> dropout -> a vector."""

    width: int = 16

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool = False) -> dict[str, Any]:
        table = declare(self, "table", nn.initializers.normal(1.0), vocab=64, width=self.width)
        kernel = declare(self, "kernel", nn.initializers.lecun_normal(), width=self.width, embed=4)
        x = nn.Dropout(0.1, deterministic=not train)(jnp.mean(table[batch.text.ids], axis=1))
        return {"value": x @ kernel, "real": batch.valid[:, 0]}


@dataclasses.dataclass(frozen=True)
class Squared:
    """Mean squared distance to the label."""

    def __call__(self, outputs: dict[str, Any], batch: Batch) -> dict[str, Mean]:
        error = jnp.sum((outputs["value"] - batch.labels["target"][:, 0]) ** 2, axis=-1)
        return {"loss": Mean.of(error, outputs["real"])}


@dataclasses.dataclass(frozen=True)
class Numbers:
    """Example i is a function of i alone."""

    rows: int = 8
    length: int | None = None

    def spec(self) -> Batch:
        return Batch.spec(self.rows, text=4, labels={"target": ((4,), np.float32)})

    def fingerprint(self) -> dict[str, str]:
        return {"kind": "numbers"}

    def batches(self, position: int = 0, process: int = 0, processes: int = 1) -> Iterator[Batch]:
        while self.length is None or position < self.length:
            examples = [np.random.default_rng(position + row) for row in range(self.rows)]
            fake = Batch.fake(self.spec(), 0)
            text = dataclasses.replace(fake.text, ids=np.stack([e.integers(0, 64, 4, np.int32) for e in examples]))
            target = np.stack([e.normal(size=(1, 4)).astype(np.float32) for e in examples])
            ids = np.arange(position, position + self.rows, dtype=np.int32)[:, None]
            yield fake.replace(text=text, labels={"target": target}, id=ids, fault=np.zeros((self.rows, 1), np.uint8))
            position += self.rows

    def names(self) -> dict[str, tuple[str, ...]]:
        return {}

    def example(self, index: int) -> dict[str, Any]:
        return {"index": index}


@dataclasses.dataclass(frozen=True)
class Size:
    """Judges by the mean length of the outputs."""

    data: Numbers = Numbers(length=16)

    def evaluate(self, context: Any) -> dict[str, float]:
        values = [np.asarray(outputs["value"]) for outputs, _ in context.outputs(self.data)]
        return {"length": float(np.mean(np.linalg.norm(np.concatenate(values), axis=-1)))}


def experiment(steps: int = 20, width: int = 16) -> Experiment:
    return Experiment(
        model=Net(width),
        data=Numbers(),
        objectives={"squared": weighted(1.0, Squared())},
        optimizer=adamw(Constant(1e-2)),
        average=Ema(0.9),
        evals={"size": every(10, Size())},
        checkpoints=Checkpoints(every=4, keep=3),
        steps=steps,
        log_every=1,
    )
