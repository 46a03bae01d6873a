"""Objectives over classes: the formulas, unknown labels, class weights, and what a user gets wrong."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core.batch import Batch
from mmjax.core.config import from_json, to_json
from mmjax.core.errors import UserError
from mmjax.core.parameters import unbox
from mmjax.heads.classify import Classify
from mmjax.objectives.classification import Sigmoid, Softmax

ROWS, SAMPLES, CLASSES = 6, 2, 5
WEIGHTS = (1.0, 2.0, 0.5, 3.0, 0.0)


def inputs(seed=0):
    rng = np.random.default_rng(seed)
    logits = 3 * rng.normal(size=(ROWS, SAMPLES, CLASSES)).astype(np.float32)
    kind, tags = rng.integers(-1, CLASSES, (ROWS, SAMPLES)), rng.integers(-1, 2, (ROWS, SAMPLES, CLASSES))
    fault = np.zeros((ROWS, SAMPLES), np.uint8)
    fault[2, 1] = 3
    batch = Batch.fake(Batch.spec(ROWS, samples=SAMPLES, text=4))
    return logits, batch.replace(labels={"kind": kind, "tags": tags}, fault=fault)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("gamma", [0.0, 2.0])
@pytest.mark.parametrize("weights", [(), WEIGHTS])
def test_softmax_is_the_formula(smoothing, gamma, weights):
    logits, batch = inputs()
    total = count = right = 0
    for z, y, fault in zip(logits.reshape(-1, CLASSES), batch.labels["kind"].flat, batch.fault.flat, strict=True):
        if y >= 0 and not fault:
            p = np.exp(z) / np.exp(z).sum()
            truth = (1 - smoothing) * np.eye(CLASSES)[y] + smoothing / CLASSES
            share = weights[y] if weights else 1
            total += share * (1 - p[y]) ** gamma * -np.sum(truth * np.log(p))
            count, right = count + share, right + (z.argmax() == y)
    means = Softmax("kind", smoothing, weights, gamma)({"logits": jnp.asarray(logits)}, batch)
    np.testing.assert_allclose(means["loss"].value, total / count, rtol=1e-5)
    np.testing.assert_allclose(means["accuracy"].total, right)


@pytest.mark.parametrize(("gamma", "alpha"), [(0.0, None), (2.0, 0.25)], ids=["plain", "focal"])
def test_sigmoid_is_the_formula(gamma, alpha):
    logits, batch = inputs()
    p, tags = 1 / (1 + np.exp(-logits.astype(np.float64))), batch.labels["tags"]
    own = np.where(tags > 0, p, 1 - p)
    share = 1 if alpha is None else np.where(tags > 0, alpha, 1 - alpha)
    real = (tags >= 0) & (batch.fault == 0)[..., None]
    means = Sigmoid("tags", gamma, alpha)({"logits": jnp.asarray(logits)}, batch)
    np.testing.assert_allclose(means["loss"].value, (share * (1 - own) ** gamma * -np.log(own))[real].mean(), rtol=1e-4)
    np.testing.assert_allclose(means["accuracy"].value, ((logits > 0) == (tags > 0))[real].mean(), rtol=1e-5)


@pytest.mark.parametrize("objective", [Softmax("kind", gamma=0.5), Sigmoid("tags", gamma=0.5)])
def test_certainty_has_finite_gradients(objective):
    """Right beyond doubt, wrong beyond doubt: the powers of the focal loss stay finite."""
    logits, batch = inputs()
    slope = jax.grad(lambda z: objective({"logits": z}, batch)["loss"].value)(1e4 * jnp.asarray(logits))
    assert np.all(np.isfinite(slope))


def test_the_head_starts_with_every_class_alike():
    x = np.random.default_rng(0).normal(size=(ROWS, SAMPLES, 7)).astype(np.float32)
    head, (_, batch) = Classify(CLASSES), inputs()
    out = head.apply(unbox(head.init(jax.random.key(0), x)), x)
    assert out["logits"].shape == (ROWS, SAMPLES, CLASSES)
    np.testing.assert_allclose(Softmax("kind")(out, batch)["loss"].value, np.log(CLASSES), rtol=1e-6)


def test_what_does_not_fit_is_refused():
    logits, batch = inputs()
    with pytest.raises(UserError, match="Softmax: 2 class weights for 5 classes"):
        Softmax("kind", weights=(1.0, 2.0))({"logits": logits}, batch)
    with pytest.raises(UserError, match=r"Softmax: output logits is \(6, 5\); label kind has 12 samples"):
        Softmax("kind")({"logits": logits[:, 0]}, batch)
    with pytest.raises(
        UserError, match=r"Sigmoid: output logits is \(6, 2, 4\); label tags has 12 samples of 5 classes"
    ):
        Sigmoid("tags")({"logits": logits[..., 1:]}, batch)


def test_objectives_are_configuration():
    for objective in (Softmax("kind", 0.1, WEIGHTS, 2.0), Sigmoid("tags", 2.0, 0.25)):
        assert from_json(to_json(objective)) == objective
