"""Divergence of two vocabularies' distributions: the formula, its gradients, one device and many."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core.errors import UserError
from mmjax.core.layout import Layout
from mmjax.ops.divergence import divergence
from mmjax.ops.vocabulary import Form, Words

FORM, HEAT, VOCAB = Form(301, cap=4.0), 2.0, 320


def inputs():
    rng = np.random.default_rng(0)
    x, teacher = rng.normal(size=(8, 4, 16)), rng.normal(size=(8, 4, 24))
    words, others = rng.normal(size=(VOCAB, 16)), rng.normal(size=(VOCAB, 24))
    x, teacher, words, others = (jnp.asarray(part, jnp.float32) for part in (x, teacher, words, others))
    return (x, Words(words, jnp.linspace(-1, 1, VOCAB))), (teacher, Words(others))


def formula(ours, theirs):
    x, words = ours
    z = (x @ words.table.T + words.bias)[..., : FORM.vocab]
    log_q = jax.nn.log_softmax(FORM.cap * jnp.tanh(z / FORM.cap) / HEAT)
    log_p = jax.nn.log_softmax((theirs[0] @ theirs[1].table.T)[..., : FORM.vocab] / HEAT)
    return HEAT**2 * jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)


def chunked(ours, theirs):
    return divergence(*ours, *theirs, form=FORM, temperature=HEAT, entries=128)


def step(function):
    weight = jnp.linspace(-1, 1, 32).reshape(8, 4)
    return jax.jit(jax.value_and_grad(lambda *a: (jnp.sum(weight * function(*a)), function(*a)), has_aux=True))


def assert_close(got, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got, expected)


def test_in_chunks_it_is_the_formula():
    ours, theirs = inputs()
    assert_close(step(chunked)(ours, theirs), step(formula)(ours, theirs))


def test_no_gradient_reaches_the_teacher():
    ours, theirs = inputs()
    slopes = jax.grad(lambda theirs: jnp.sum(chunked(ours, theirs)))(theirs)
    assert not any(np.any(x) for x in jax.tree.leaves(slopes))


@pytest.mark.parametrize("layout", [Layout(data=8), Layout(data=2, fsdp=2, tensor=2)], ids=["data", "tensor"])
def test_split_over_devices_it_is_that_of_one(layout):
    ours, theirs = inputs()
    expected = step(formula)(ours, theirs)
    with layout.use(layout.mesh()):
        assert_close(step(chunked)(ours, theirs), expected)


def test_vocabularies_of_two_sizes_are_refused():
    (x, words), (teacher, others) = inputs()
    with pytest.raises(UserError, match="tables hold 320 and 319 entries: pad the smaller one"):
        divergence(x, words, teacher, Words(others.table[1:]), form=FORM)
