"""Norms against plain numpy, and their derivatives against those of the formula as it is written in the papers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core.errors import UserError
from mmjax.nn.norms import GroupNorm, LayerNorm, PictureNorm, RMSNorm
from tests.drawn import drawn

PICTURES = np.random.default_rng(0).normal(2, 3, size=(2, 6, 5, 12)).astype(np.float32)
OVER_PICTURES = {"picture": (PictureNorm(1e-3), 12), "groups": (GroupNorm(4, 1e-3), 4), "channels": (GroupNorm(1), 1)}


def run(module, x):
    """What a fresh module makes of x."""
    return np.asarray(jax.jit(lambda key: module.init_with_output({"params": key}, x)[0])(jax.random.key(0)))


def test_norms_over_the_width():
    x = np.random.default_rng(0).normal(size=(2, 6, 16)).astype(np.float32)
    y = run(LayerNorm(), 5 * x + 3)
    np.testing.assert_allclose(np.mean(y, -1), 0, atol=1e-5)
    np.testing.assert_allclose(np.std(y, -1), 1, atol=1e-4)
    np.testing.assert_allclose(np.mean(np.square(run(RMSNorm(), 5 * x)), -1), 1, atol=1e-4)
    assert run(LayerNorm(), jnp.asarray(x, jnp.bfloat16)).dtype == jnp.bfloat16


def test_picture_norm_is_over_places_and_channels_of_one_picture():
    y = run(PictureNorm(0.0), PICTURES)
    np.testing.assert_allclose([y.mean((1, 2, 3)), y.std((1, 2, 3))], [[0, 0], [1, 1]], atol=1e-5)
    np.testing.assert_allclose(run(PictureNorm(0.0), PICTURES[:1])[0], y[0], atol=1e-5)
    assert run(PictureNorm(), jnp.asarray(PICTURES, jnp.bfloat16)).dtype == jnp.bfloat16


def test_group_norm_is_over_places_and_the_channels_of_a_group():
    y = run(GroupNorm(4, 0.0), PICTURES)
    groups = y.reshape(2, 30, 3, 4).transpose(0, 2, 1, 3).reshape(6, -1)
    np.testing.assert_allclose([groups.mean(1), groups.std(1)], [[0] * 6, [1] * 6], atol=1e-5)
    np.testing.assert_allclose(run(GroupNorm(4, 0.0), PICTURES[:1])[0], y[0], atol=1e-5)
    with pytest.raises(UserError, match="groups of 8 channels do not divide 12"):
        run(GroupNorm(8), PICTURES)


@pytest.mark.parametrize("name", OVER_PICTURES)
def test_first_and_second_derivatives_are_those_of_the_formula(name):
    norm, size = OVER_PICTURES[name]
    params = drawn(norm, PICTURES)["params"]
    weight, way = np.random.default_rng(1).normal(size=(2, *PICTURES.shape)).astype(np.float32)

    def formula(params, x):
        groups = x.reshape(*x.shape[:3], -1, size)
        normed = groups - jnp.mean(groups, axis=(1, 2, 4), keepdims=True)
        normed /= jnp.sqrt(jnp.mean(jnp.square(normed), axis=(1, 2, 4), keepdims=True) + norm.epsilon)
        return normed.reshape(x.shape) * params["scale"] + params["bias"]

    def derivatives(layer):
        def loss(params, x):
            return jnp.sum(jnp.sin(layer(params, x)) * weight)

        slope = jax.grad(loss, argnums=(0, 1))
        curvature = jax.jvp(lambda x: slope(params, x), (PICTURES,), (way,))[1]
        return jax.tree.leaves((loss(params, PICTURES), slope(params, PICTURES), curvature))

    mine = jax.jit(lambda: derivatives(lambda params, x: norm.apply({"params": params}, x)))()
    for found, expected in zip(mine, jax.jit(lambda: derivatives(formula))(), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.max(np.abs(expected)))


def test_a_large_mean_does_not_spoil_the_variance():
    """Sums of squares, as in E[x^2] - E[x]^2, would have lost it: 1 beside 1e6 in 24 bits."""
    y = run(GroupNorm(4, 0.0), PICTURES / 3 + 1_000)
    np.testing.assert_allclose(y, run(GroupNorm(4, 0.0), (PICTURES / 3 + np.float32(1_000)) - 1_000), atol=2e-3)
