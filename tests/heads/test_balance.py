"""Learned weights: the formula, what they converge to, and a model that keeps its parameters' names."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core.batch import Batch
from mmjax.core.config import from_json, to_json
from mmjax.core.errors import UserError
from mmjax.core.means import Mean
from mmjax.core.parameters import unbox
from mmjax.decoding.generate import generate
from mmjax.heads.balance import Balance
from mmjax.models.decoder import Decoder
from mmjax.nn.linear import Linear
from mmjax.objectives.balance import Balanced
from mmjax.objectives.classification import Softmax
from mmjax.objectives.grounding import Boxes
from mmjax.training.gradients import loss_and_gradient

BATCH = Batch.fake(Batch.spec(4, text=6))


@dataclasses.dataclass(frozen=True)
class Give:
    """Tells an output as a loss."""

    name: str
    count: float = 1.0

    def __call__(self, outputs, batch):
        value = jnp.mean(outputs[self.name])
        return {"loss": Mean(value * self.count, jnp.float32(self.count)), "twice": Mean.of(2 * value)}


def outputs(**spread):
    return {"a": jnp.full(4, 3.0), "b": jnp.full(4, 0.5), "balance": {k: jnp.float32(v) for k, v in spread.items()}}


def test_the_total_is_the_formula():
    both = Balanced({"one": Give("a"), "two": Give("b")}, distances=("two",))
    means = both(outputs(one=1.0, two=-2.0), BATCH)
    expected = np.exp(-1) * 3 + 0.5 + 0.5 * np.exp(2) * 0.5 - 1
    np.testing.assert_allclose(means["loss"].value, expected, rtol=1e-6)
    np.testing.assert_allclose([means["one_twice"].value, means["one_weight"].value], [6, np.exp(-1)], rtol=1e-6)
    assert set(means) == {"loss", *(f"{n}_{what}" for n in ("one", "two") for what in ("loss", "twice", "weight"))}


def test_a_balanced_decoder_decodes_as_it_would_without():
    inner, batch = Decoder.of("mu", 40), Batch.fake(Batch.spec(3, text=8), 0, 40)
    outer = Balance(inner, ("language",))
    params = unbox(jax.jit(outer.init)({"params": jax.random.key(0)}, batch)["params"])
    plain = {name: leaf for name, leaf in params.items() if name != "log_variance_language"}
    one, two = (generate(model, tree, batch, steps=4) for model, tree in ((inner, plain), (outer, params)))
    np.testing.assert_array_equal(two.ids, one.ids)


def test_the_best_weight_of_a_loss_is_one_over_twice_the_loss():
    """d/ds exp(-s) L + s / 2 = 0 where exp(-s) = 1 / (2 L): each weighted loss then is 1/2."""
    both = Balanced({"one": Give("a"), "two": Give("b")})
    best = {"one": jnp.log(6.0), "two": jnp.log(1.0)}
    slope = jax.grad(lambda s: both(outputs() | {"balance": s}, BATCH)["loss"].value)(best)
    np.testing.assert_allclose(list(slope.values()), 0, atol=1e-6)


def test_an_objective_that_finds_nothing_changes_nothing():
    both = Balanced({"one": Give("a"), "none": Give("b", count=0.0)})
    slope = jax.grad(lambda s: both(outputs() | {"balance": s}, BATCH)["loss"].value)({"one": 0.0, "none": 1.0})
    assert slope["none"] == 0 and slope["one"] != 0


class Toy(nn.Module):
    """Any model."""

    @nn.compact
    def __call__(self, batch, *, train=False):
        x = batch.text.ids.astype(jnp.float32)[..., None] / 100
        told = Linear("btd,de->bte", (2,), name="told")(x)
        return {"a": jnp.square(told[..., 0] - 1).mean(-1), "b": jnp.square(told[..., 1] - x[..., 0]).mean(-1)}


def test_a_balanced_model_keeps_its_names_and_learns_in_micro_batches():
    model, both = Balance(Toy(), ("one", "two")), Balanced({"one": Give("a"), "two": Give("b")})
    params = unbox(model.init(jax.random.key(0), BATCH))["params"]
    assert set(params) == {"told", "log_variance_one", "log_variance_two"}
    assert set(params["told"]) == set(unbox(Toy().init(jax.random.key(0), BATCH))["params"]["told"])

    def run(parts):
        def forward(params, batch, _):
            return model.apply({"params": params}, batch)

        def loss(out, batch):
            return both(out, batch)["loss"].value, None

        return jax.jit(lambda p: loss_and_gradient(forward, loss, p, BATCH, jax.random.key(0), parts))(params)

    (_, whole), parted = run(1), run(2)
    assert all(np.any(x) for x in jax.tree.leaves(whole))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), parted, run(1))


def test_it_is_configuration_and_wrong_names_are_answered():
    both = Balanced({"kind": Softmax("kind"), "boxes": Boxes()}, distances=("boxes",))
    assert from_json(to_json(both)) == both
    with pytest.raises(UserError, match="no objective is called 'box'; did you mean boxes"):
        Balanced({"boxes": Boxes()}, distances=("box",))
    with pytest.raises(UserError, match="no log-variance is called 'one'; there are: other"):
        Balanced({"one": Give("a")})(outputs(other=0.0), BATCH)
