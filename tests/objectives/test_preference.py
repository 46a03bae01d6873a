"""Direct preference optimisation, worked out by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core.batch import Batch, Text
from mmjax.core.errors import UserError
from mmjax.objectives.preference import DPO, log_probability

# Two pairs in one row: answers of 2, 1, 1 and 2 ids, each after a prompt id that counts nothing.
SEGMENT = np.array([[1, 1, 1, 2, 2, 3, 3, 4, 4, 4, 0]])
POSITION = np.array([[0, 1, 2, 0, 1, 0, 1, 0, 1, 2, 0]])
NLL = np.array([[9.0, 1.0, 2.0, 9.0, 4.0, 9.0, 0.5, 9.0, 1.5, 0.5, 9.0]])
REFERENCE = np.array([[-2.0, -5.0, -1.0, -1.0]])


def batch(fault=(0, 0, 0, 0)):
    zeros, loss = np.zeros_like(SEGMENT), (POSITION > 0).astype(np.float32)
    text = Text(zeros, zeros - 1, SEGMENT, POSITION, POSITION, loss)
    made = Batch.fake(Batch.spec(1, text=11, samples=4))
    return made.replace(text=text, labels={"reference": REFERENCE}, fault=np.array([fault], np.uint8))


def test_an_answers_log_probability_is_the_sum_over_its_ids():
    np.testing.assert_allclose(log_probability(jnp.asarray(NLL), batch().text, 4), [[-3.0, -4.0, -0.5, -2.0]])


def log_sigmoid(x):
    return -np.log1p(np.exp(-x))


def test_dpo_by_hand():
    """Gains over the reference: -1 and 1 (the rejected answer gained), then 0.5 and -1 (the chosen one did)."""
    means = DPO(beta=0.5)({"nll": jnp.asarray(NLL)}, batch())
    margins = 0.5 * np.array([-2.0, 1.5])
    np.testing.assert_allclose(means["loss"].value, -log_sigmoid(margins).mean(), rtol=1e-5)
    np.testing.assert_allclose(means["accuracy"].value, 0.5)
    np.testing.assert_allclose([means["chosen"].value, means["rejected"].value], [-0.125, 0.0], atol=1e-6)
    smooth = DPO(beta=0.5, smoothing=0.1)({"nll": jnp.asarray(NLL)}, batch())
    expected = -0.9 * log_sigmoid(margins) - 0.1 * log_sigmoid(-margins)
    np.testing.assert_allclose(smooth["loss"].value, expected.mean(), rtol=1e-5)


def test_the_gradient_favours_the_chosen_answers_ids_alone():
    slope = jax.grad(lambda nll: DPO()({"nll": nll}, batch())["loss"].value)(jnp.asarray(NLL))
    sign = np.where(SEGMENT % 2 == 1, 1, -1) * (POSITION > 0)
    np.testing.assert_array_equal(np.sign(slope), sign)


def test_a_pair_with_a_null_answer_counts_nothing():
    means = DPO()({"nll": jnp.asarray(NLL)}, batch(fault=(0, 2, 0, 0)))
    assert float(means["loss"].count) == 1 and float(means["accuracy"].value) == 1


def test_an_odd_number_of_answers_is_refused():
    odd = Batch.fake(Batch.spec(1, text=11, samples=3))
    with pytest.raises(UserError, match="rows of 3 cannot be paired"):
        DPO()({"nll": NLL}, odd)
