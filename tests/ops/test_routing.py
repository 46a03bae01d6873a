"""Dispatch to experts against a loop, and the losses of routers against their formulas."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.ops.routing import Everywhere, Load, Sorted, in_proportion, to_one

rng = np.random.default_rng(0)
X, KERNEL = rng.normal(size=(11, 4)).astype(np.float32), rng.normal(size=(3, 4, 5)).astype(np.float32)


@pytest.mark.parametrize("dispatch", [Everywhere(), Sorted()], ids=str)
@pytest.mark.parametrize("expert", [rng.integers(0, 3, 11), np.full(11, 2)], ids=["any", "one expert"])
def test_each_token_meets_its_expert(dispatch, expert):
    def by_loop(x, kernel):
        return jnp.stack([x[i] @ kernel[e] for i, e in enumerate(expert)])

    def both(function):
        return jax.jit(jax.value_and_grad(lambda x, k: jnp.sum(jnp.sin(function(x, k))), (0, 1)))(X, KERNEL)

    np.testing.assert_allclose(dispatch(X, jnp.asarray(expert), KERNEL), by_loop(X, KERNEL), atol=1e-5)
    found, expected = both(lambda x, k: dispatch(x, jnp.asarray(expert), k)), both(by_loop)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)


B, T, E, K, G = 3, 6, 4, 2, 2
LOGITS = rng.normal(size=(B, T, E)).astype(np.float32)
GROUP, REAL = rng.integers(0, G, (B, T)), rng.random((B, T)) < 0.7
CHOICE = np.argsort(-LOGITS, axis=-1)[..., :K]


_load = jax.jit(Load.of, static_argnums=3)


def load(rows=slice(None), logits=LOGITS) -> Load:
    return _load(logits[rows], CHOICE[rows], GROUP[rows], G, REAL[rows])


def test_balance_and_z_are_the_published_formulas():
    total = 0.0
    softmax = np.exp(LOGITS) / np.exp(LOGITS).sum(-1, keepdims=True)
    for number in range(G):
        mine = REAL & np.equal(GROUP, number)
        f = np.array([(CHOICE[mine] == e).sum() for e in range(E)]) / (K * mine.sum())
        total += mine.sum() * E * np.sum(f * softmax[mine].mean(axis=0))
    assert float(load().balance().value) == pytest.approx(total / REAL.sum(), rel=1e-5)
    z = np.log(np.exp(LOGITS).sum(-1))[REAL] ** 2
    assert float(load().z().value) == pytest.approx(z.mean(), rel=1e-5)


def test_loads_of_parts_are_parts_of_the_load():
    parts = jax.tree.map(lambda *x: jnp.concatenate(x), load(slice(0, 1)), load(slice(1, 3)))
    assert float(parts.balance().value) == pytest.approx(float(load().balance().value), rel=1e-6)


def test_even_use_costs_one_and_one_busy_expert_costs_as_many_as_there_are():
    even = Load(jnp.full((1, 1, 4), 5.0), jnp.full((1, 1, 4), 5.0), jnp.zeros((1, 1)), jnp.full((1, 1), 20.0))
    busy = Load(*(jnp.asarray([[[20.0, 0, 0, 0]]]) for _ in range(2)), jnp.zeros((1, 1)), jnp.full((1, 1), 20.0))
    assert [float(x.balance().value) for x in (even, busy)] == [1, 4]
    assert [float(x.busiest().value) for x in (even, busy)] == [1, 4]


def test_the_gradient_of_balance_pushes_down_what_is_chosen_too_often():
    gradient = jax.jit(jax.grad(lambda bias: load(logits=LOGITS + bias).balance().value))(jnp.zeros(E))
    chosen = np.bincount(CHOICE[REAL].ravel(), minlength=E)
    assert gradient[chosen.argmax()] > 0 > gradient[chosen.argmin()]


def test_what_stands_where_nothing_is_real_never_matters():
    holed = np.where(REAL[..., None], LOGITS, np.nan)
    jax.tree.map(np.testing.assert_array_equal, load(logits=holed), load())


def test_shares():
    probability = jnp.asarray([[0.5, 0.25]])
    np.testing.assert_allclose(to_one(probability), [[2 / 3, 1 / 3]], rtol=1e-6)
    np.testing.assert_array_equal(in_proportion(probability), probability)
