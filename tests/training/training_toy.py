"""A small model, fake data, an additive and a pairwise objective, for the training tests."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mmjax.core.batch import Batch
from mmjax.core.means import Mean
from mmjax.core.parameters import declare
from mmjax.training.checkpoints import Checkpoints
from mmjax.training.experiment import Experiment, weighted
from mmjax.training.optim import Optimizer, adamw
from mmjax.training.schedules import Constant

init = nn.initializers.lecun_normal()


class Layer(nn.Module):
    """width -> mlp -> width, residual."""

    mlp: int = 16

    @nn.compact
    def __call__(self, x: jax.Array, _: Any = None) -> tuple[jax.Array, None]:
        width = x.shape[-1]
        up = declare(self, "up", init, width=width, mlp=self.mlp)
        bias = declare(self, "bias", nn.initializers.zeros, mlp=self.mlp)
        down = declare(self, "down", init, mlp=self.mlp, width=width)
        return x + jax.nn.gelu(x @ up + bias) @ down, None


class Net(nn.Module):
    """Embeds ids, two scanned layers, a head; outputs per row and a scalar of the model's own."""

    width: int = 8
    vocab: int = 32
    gain: float = 1.0

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool = False) -> dict[str, Any]:
        table = declare(self, "table", nn.initializers.normal(1.0), vocab=self.vocab, width=self.width)
        x = jnp.mean(table[batch.text.ids % self.vocab], axis=1)
        stack = nn.scan(
            Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=2,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )  # fmt: skip
        x, _ = stack(name="stack")(x, None)
        head = declare(self, "head", init, width=self.width, embed=4)
        scale = declare(self, "scale", nn.initializers.constant(0.7))
        return {"value": self.gain * x @ head, "scale": jnp.exp(scale), "real": batch.valid[:, 0]}


@dataclasses.dataclass(frozen=True)
class Regress:
    """Additive: squared distance to the label."""

    def __call__(self, outputs, batch):
        error = jnp.sum((outputs["value"] - batch.labels["target"][:, 0]) ** 2, axis=-1) * outputs["scale"]
        return {"loss": Mean.of(error, outputs["real"]), "first": Mean.of(outputs["value"][:, 0], outputs["real"])}


@dataclasses.dataclass(frozen=True)
class Match:
    """Pairwise: each row must be most like its own label among all rows' labels."""

    def __call__(self, outputs, batch):
        logits = outputs["scale"] * outputs["value"] @ batch.labels["target"][:, 0].T
        return {"loss": Mean.of(-jnp.diagonal(jax.nn.log_softmax(logits)), outputs["real"])}


@dataclasses.dataclass(frozen=True)
class Fake:
    """Random examples; example i is a function of (seed, i). `poison`: examples whose label is NaN."""

    rows: int = 16
    seed: int = 0
    length: int | None = None
    poison: tuple[int, ...] = ()

    def spec(self) -> Batch:
        return Batch.spec(self.rows, text=4, labels={"target": ((4,), np.float32)})

    def fingerprint(self):
        return {"kind": "fake", "seed": str(self.seed)}

    def batches(self, position=0, process=0, processes=1):
        while self.length is None or position + self.rows <= self.length:
            yield self._batch(range(position, position + self.rows))
            position += self.rows

    def _batch(self, numbers) -> Batch:
        batch = Batch.fake(self.spec(), 0)
        ids = np.stack([np.random.default_rng((self.seed, i)).integers(0, 32, 4) for i in numbers]).astype(np.int32)
        target = np.stack([ids % 2, ids % 3, ids % 5, ids % 7]).sum(-1).T.astype(np.float32) / 8 - 1
        target[[i in self.poison for i in numbers]] = np.nan
        text = dataclasses.replace(batch.text, ids=ids)
        ids = np.asarray(numbers, np.int32)[:, None]
        return batch.replace(text=text, labels={"target": target[:, None]}, id=ids)

    def names(self):
        return {}

    def example(self, index):
        return {"index": index}


def experiment(optimizer: Optimizer = adamw(Constant(3e-3)), **changes: Any) -> Experiment:
    """The toy experiment with fields changed."""
    objectives = {"regress": weighted(1.0, Regress()), "match": weighted(0.5, Match())}
    checkpoints = Checkpoints(every=100)
    toy = Experiment(Net(), Fake(), objectives, optimizer, steps=6, log_every=1, checkpoints=checkpoints)
    return toy.replace(**changes)
