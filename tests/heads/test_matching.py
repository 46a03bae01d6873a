"""Matching: which negatives are drawn, which pairs are judged, and the loss of it."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core.batch import Batch
from mmjax.core.errors import UserError
from mmjax.core.tokens import Places, Tokens
from mmjax.heads.matching import Matching
from mmjax.objectives.matching import Matching as Objective
from mmjax.ops.negatives import hard_negatives
from mmjax.ops.pairwise import Relation
from tests.drawn import drawn

ROWS, WIDTH = 8, 6


def unit(rng, rows=ROWS):
    x = rng.normal(size=(rows, WIDTH)).astype(np.float32)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def draws(relation, scale, count=4000):
    rng = np.random.default_rng(0)
    left, right = unit(rng), unit(rng)
    one = jax.vmap(lambda key: hard_negatives(key, left, right, jnp.float32(scale), relation))
    return jax.jit(one)(jax.random.split(jax.random.key(0), count)), left @ right.T


def test_negatives_are_drawn_by_how_alike_they_look():
    here = np.ones(ROWS, bool)
    picked, cosine = draws(Relation.of(here, here), scale=4.0)
    weight = np.exp(4 * cosine) * (1 - np.eye(ROWS))
    for found, expected in ((picked.right, weight), (picked.left, weight.T)):
        shares = np.stack([np.bincount(column, minlength=ROWS) for column in np.asarray(found).T]) / len(found)
        np.testing.assert_allclose(shares, expected / expected.sum(1, keepdims=True), atol=0.04)
    assert np.all(picked.has_left) and np.all(picked.has_right)


def test_no_positive_no_lookalike_and_nothing_absent_is_ever_a_negative():
    rng = np.random.default_rng(1)
    concept, caption = rng.integers(0, 3, ROWS), rng.integers(0, 5, ROWS)
    left, right = np.ones(ROWS, bool), np.ones(ROWS, bool)
    left[2], right[5] = False, False
    picked, _ = draws(Relation.of(left, right, concept, [caption]), scale=1.0)
    related = (concept[:, None] == concept) | (caption[:, None] == caption)
    negative = ~related & left[:, None] & right
    np.testing.assert_array_equal(picked.has_right[0], negative.any(1))
    np.testing.assert_array_equal(picked.has_left[0], negative.any(0))
    for found, allowed in ((picked.right, negative), (picked.left, negative.T)):
        for i in np.flatnonzero(allowed.any(1)):
            assert set(np.asarray(found[:, i])) == set(np.flatnonzero(allowed[i]))


class Fuse(nn.Module):
    """What both sides hold in their first token."""

    def __call__(self, left, right, *, train=False):
        return jnp.concatenate([left.x[:, 0], right.x[:, 0]], axis=-1)


def inputs(rng, absent=()):
    present = np.ones(ROWS, bool)
    present[list(absent)] = False
    outputs = {
        "embeddings": {"image": unit(rng), "text": unit(rng)},
        "present": {"image": present, "text": np.ones(ROWS, bool)},
        "scale": jnp.float32(5.0),
    }
    number = jnp.arange(ROWS, dtype=jnp.float32)[:, None, None] + jnp.zeros((1, 3, 2))
    sides = [Tokens(number + first, Places.all_of(kind, ROWS, 3)) for first, kind in ((0, "image"), (100, "text"))]
    labels = {"concept": np.arange(ROWS)[:, None] // 2}
    return sides, outputs, Batch.fake(Batch.spec(ROWS, text=4)).replace(labels=labels)


def test_the_head_judges_the_pair_and_two_mistaken_ones_by_one_fusion():
    sides, outputs, batch = inputs(np.random.default_rng(0), absent=(3,))
    model = Matching(Fuse(), same="concept")
    params = drawn(model, *sides, outputs, batch)
    # A score that gives both numbers away: left + 10000 * right.
    params["params"]["score"] = {"kernel": np.array([[1.0], [0], [10_000], [0]], np.float32), "bias": np.zeros(1)}
    train = jax.jit(lambda key: model.apply(params, *sides, outputs, batch, train=True, rngs={"dropout": key}))
    told = train(jax.random.key(3))["matching"]
    lefts, rights = np.round(told["logit"] % 10_000).astype(int), np.round(told["logit"] // 10_000 - 100).astype(int)
    own = np.arange(ROWS)
    np.testing.assert_array_equal(lefts[:, :2], np.stack([own, own], 1))
    np.testing.assert_array_equal(rights[:, [0, 2]], np.stack([own, own], 1))
    real = np.asarray(told["valid"])
    assert np.all(rights[real[:, 1], 1] // 2 != own[real[:, 1]] // 2)
    assert np.all(lefts[real[:, 2], 2] // 2 != own[real[:, 2]] // 2) and 3 not in lefts[real[:, 2], 2]
    np.testing.assert_array_equal(real[3], [False, False, True])


def test_the_objective_is_binary_cross_entropy_over_what_is_valid():
    rng = np.random.default_rng(0)
    logit, valid = rng.normal(size=(ROWS, 3)), rng.random((ROWS, 3)) < 0.7
    out = {"matching": {"logit": jnp.asarray(logit), "valid": valid}}
    means = Objective()(out, None)
    truth = np.array([1, 0, 0]) * np.ones((ROWS, 1))
    loss = -truth * np.log(1 / (1 + np.exp(-logit))) - (1 - truth) * np.log(1 / (1 + np.exp(logit)))
    np.testing.assert_allclose(means["loss"].value, loss[valid].mean(), rtol=1e-5)
    right = (logit > 0) == (truth > 0)
    np.testing.assert_allclose(means["accuracy"].value, right[valid].mean(), rtol=1e-5)
    np.testing.assert_allclose(means["true"].value, right[:, 0][valid[:, 0]].mean(), rtol=1e-5)


def test_packed_rows_are_refused():
    sides, outputs, _ = inputs(np.random.default_rng(0))
    with pytest.raises(UserError, match="one sample per row; these rows are packed with 2"):
        Matching(Fuse()).init(jax.random.key(0), *sides, outputs, Batch.fake(Batch.spec(ROWS, text=8, samples=2)))
