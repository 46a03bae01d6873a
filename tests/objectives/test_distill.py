"""Objectives that a teacher sets: the formulas, labels and outputs alike, and no gradient into the teacher."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core.batch import Batch
from mmjax.core.config import from_json, to_json
from mmjax.core.errors import UserError
from mmjax.objectives.distill import Features, Logits, Words, cosine, squared

ROWS, WIDTH = 6, 5


def inputs():
    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(size=(2, ROWS, WIDTH)).astype(np.float32)
    fault = np.zeros((ROWS, 1), np.uint8)
    fault[1] = 1
    batch = Batch.fake(Batch.spec(ROWS, text=8)).replace(fault=fault, labels={"teacher": theirs[:, None]})
    return {"logits": jnp.asarray(ours)}, batch, np.delete(ours, 1, 0), np.delete(theirs, 1, 0)


def softmax(z):
    return np.exp(z) / np.exp(z).sum(-1, keepdims=True)


def test_logits_are_pulled_to_the_teachers_at_its_temperature():
    outputs, batch, ours, theirs = inputs()
    p, q = softmax(theirs / 3), softmax(ours / 3)
    means = Logits(temperature=3.0)(outputs, batch)
    np.testing.assert_allclose(means["loss"].value, 9 * np.sum(p * np.log(p / q), -1).mean(), rtol=1e-5)
    np.testing.assert_allclose(means["agreement"].value, (ours.argmax(-1) == theirs.argmax(-1)).mean(), rtol=1e-6)


@pytest.mark.parametrize("distance", [squared, cosine])
def test_features_are_pulled_to_the_teachers(distance):
    outputs, batch, ours, theirs = inputs()
    length = np.linalg.norm(ours, axis=-1) * np.linalg.norm(theirs, axis=-1)
    expected = {squared: np.square(ours - theirs).mean(), cosine: np.mean(1 - np.sum(ours * theirs, -1) / length)}
    means = Features("logits", "teacher", distance)(outputs, batch)
    np.testing.assert_allclose(means["loss"].value, expected[distance], rtol=1e-5)


def test_a_teacher_inside_the_model_gets_no_gradient():
    outputs, batch, *_ = inputs()
    outputs |= {"teacher": jnp.asarray(batch.labels["teacher"])}
    for objective in (Logits(), Features("logits", "teacher")):
        slopes = jax.grad(lambda out, objective=objective: objective(out, batch)["loss"].value)(outputs)
        assert np.any(slopes["logits"]) and not np.any(slopes["teacher"])


def test_ids_count_by_their_weight():
    _, batch, *_ = inputs()
    apart = np.random.default_rng(1).random((ROWS, 8)).astype(np.float32)
    weight = batch.text.loss * (batch.text.position > 0)
    means = Words()({"divergence": jnp.asarray(apart)}, batch)
    np.testing.assert_allclose(means["loss"].value, np.average(apart, weights=weight), rtol=1e-5)


def test_a_teacher_of_another_width_is_refused():
    outputs, batch, *_ = inputs()
    with pytest.raises(UserError, match=r"Logits: logits \(6, 4\) and teacher \(6, 1, 5\) must have one vector"):
        Logits()({"logits": outputs["logits"][:, 1:]}, batch)


def test_objectives_are_configuration():
    for objective in (Logits(temperature=2.0), Words(), Features("pooled", "teacher", squared)):
        assert from_json(to_json(objective)) == objective
