"""Samplers keep exactly the ids that the papers say, and draw from them as likely as they should."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core.errors import UserError
from mmjax.decoding.samplers import Greedy, Sampling

LOGITS = np.random.default_rng(0).normal(0, 3, size=(6, 50)).astype(np.float32)


def softmax(x):
    e = np.exp(x.astype(np.float64) - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def by_hand(logits, temperature=1.0, top_k=None, top_p=None, min_p=None):
    """The kept ids of one row, by sorting."""
    kept = np.argsort(-logits)[:top_k]
    chance = softmax(logits[kept] / temperature)
    if top_p is not None and top_p < 1:
        kept = kept[: np.searchsorted(np.cumsum(chance), top_p) + 1]
    return sorted(i for i, p in zip(kept, chance, strict=False) if min_p is None or p >= min_p * chance[0])


CASES = [
    {"top_k": 1},
    {"top_k": 7},
    {"top_k": 500},
    {"top_p": 0.5},
    {"top_p": 0.95, "temperature": 2.0},
    {"top_p": 1.0},
    {"min_p": 0.05},
    {"top_k": 9, "top_p": 0.8, "temperature": 0.7},
    {"top_k": 20, "top_p": 0.99, "min_p": 0.1, "temperature": 3.0},
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_kept_ids_are_those_that_sorting_finds(case):
    kept = np.asarray(jax.jit(Sampling(**case).support)(LOGITS))
    for row in range(len(LOGITS)):
        assert list(np.flatnonzero(kept[row])) == by_hand(LOGITS[row], **case)


def test_draws_follow_the_softmax_of_the_kept_ids():
    sampler = Sampling(temperature=2.0, top_k=4)
    keys = jax.random.split(jax.random.key(0), 20_000)
    drawn = np.asarray(jax.jit(sampler)(jnp.broadcast_to(LOGITS[0], (20_000, 50)), keys))
    share = np.bincount(drawn, minlength=50) / len(drawn)
    kept = by_hand(LOGITS[0], top_k=4)
    expected = np.zeros(50)
    expected[kept] = softmax(LOGITS[0][kept] / 2)
    np.testing.assert_allclose(share, expected, atol=0.015)


def test_forbidden_ids_are_never_kept_nor_drawn():
    logits = jnp.where(jnp.arange(50) % 2 == 0, LOGITS, -jnp.inf)
    for sampler in (Sampling(top_p=1.0, min_p=1e-9), Sampling(top_k=49), Sampling(), Greedy()):
        drawn = sampler(logits, jax.random.split(jax.random.key(1), 6))
        assert np.all(drawn % 2 == 0)
    assert np.array_equal(Greedy()(LOGITS, None), LOGITS.argmax(-1))


def test_greedy_takes_the_first_of_equals_and_stays_inside_the_vocabulary():
    rows = jnp.asarray([[1.0, 7, 7, 2], [-jnp.inf, -jnp.inf, -3, -jnp.inf], [-jnp.inf] * 4, [0, jnp.nan, 1, 2]])
    ids = np.asarray(Greedy()(rows, None))
    assert ids[:3].tolist() == [1, 2, 0] and 0 <= ids[3] < 4


def test_senseless_settings_are_refused_together():
    with pytest.raises(UserError, match=r"temperature must be above 0 .* got 0.*top_k .* got 0; min_p .* got 1.5"):
        Sampling(temperature=0, top_k=0, min_p=1.5)
