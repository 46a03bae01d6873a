"""Masked pictures: what is hidden, what is judged, and whose parameters are trained."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core.batch import Batch
from mmjax.core.errors import UserError
from mmjax.core.parameters import unbox
from mmjax.encoders.image import ClassToken, ViT
from mmjax.heads.masked_image import MAE, SimMIM, hide_patches, targets
from mmjax.nn.attention import Attention
from mmjax.nn.block import Block
from mmjax.nn.feedforward import FeedForward
from mmjax.nn.stack import Stack
from mmjax.objectives.masked import MaskedImage
from tests.drawn import applied, drawn

BATCH = Batch.fake(Batch.spec(3, image=(2, 32, 32)))
PATCH, PATCHES = 8, 16


def vit(**slots):
    return ViT.of(f"mu/{PATCH}", 32, **slots)


def mae(**slots):
    return MAE(vit(**slots), Stack(Block(Attention(2), FeedForward(32)), 1), width=16, patch=PATCH)


HEADS = {"MAE": mae(), "class token": mae(class_token=ClassToken()), "SimMIM": SimMIM(vit(), PATCH)}


@pytest.fixture(scope="module", params=HEADS)
def head(request):
    model = HEADS[request.param]
    return model, drawn(model, BATCH.image)


def test_a_fixed_share_of_each_picture_is_hidden_and_the_rest_visible():
    visible, hidden = hide_patches(jax.random.key(0), 5, PATCHES, 0.75)
    assert visible.shape == (5, 4) and np.all(hidden.sum(1) == 12)
    assert not np.any(np.take_along_axis(np.asarray(hidden), np.asarray(visible), axis=1))
    assert np.all(np.diff(visible, axis=1) > 0)
    with pytest.raises(UserError, match="hiding 0.99 of 4 patches leaves 0"):
        hide_patches(jax.random.key(0), 1, 4, 0.99)


def test_targets_are_pixels_with_mean_0_and_variance_1_in_each_patch():
    cells = targets(BATCH.image, PATCH, 1e-6)
    assert cells.shape == (6, PATCHES, PATCH * PATCH * 3)
    np.testing.assert_allclose(cells.mean(-1), 0, atol=1e-5)
    np.testing.assert_allclose(cells.var(-1), 1, rtol=1e-3)
    plain = targets(BATCH.image, PATCH, None)
    np.testing.assert_allclose(plain[0, 0, :3], BATCH.image.pixels[0, 0, 0, 0] / 127.5 - 1, atol=1e-6)


def test_only_hidden_patches_of_valid_pictures_are_judged(head):
    model, params = head
    told = applied(model)(params, BATCH.image)["patches"]
    share = round(model.rate * PATCHES)
    np.testing.assert_array_equal(told["hidden"].sum(-1), share * BATCH.image.valid)
    means = MaskedImage()({"patches": told}, BATCH)
    error, hidden = np.asarray(told["error"]), np.asarray(told["hidden"])
    np.testing.assert_allclose(means["loss"].value, error[hidden].mean(), rtol=1e-5)
    loss = lambda e: MaskedImage()({"patches": told | {"error": e}}, BATCH)["loss"].value  # noqa: E731
    slope = jax.jit(jax.grad(loss))(told["error"])
    np.testing.assert_array_equal(np.asarray(slope) != 0, hidden)


def test_what_is_hidden_reaches_no_prediction(head):
    """Pixels of hidden patches change their own errors and nothing else."""
    model, params = head
    told = applied(model)(params, BATCH.image)["patches"]
    hidden = np.asarray(told["hidden"])
    row, item, patch = np.argwhere(hidden)[0]
    pixels = BATCH.image.pixels.copy()
    y, x = divmod(patch, 4)
    pixels[row, item, y * PATCH : (y + 1) * PATCH, x * PATCH : (x + 1) * PATCH] ^= 85
    other = applied(model)(params, dataclasses.replace(BATCH.image, pixels=pixels))["patches"]
    changed = np.abs(np.asarray(other["error"] - told["error"])) > 1e-5
    assert np.argwhere(changed).tolist() == [[row, item, patch]]


def test_the_encoders_own_parameters_are_trained(head):
    model, params = head
    alone = jax.eval_shape(lambda: unbox(model.encoder.init(jax.random.key(0), BATCH.image)))["params"]
    shapes = jax.tree.map(jnp.shape, params["params"]["encoder"])
    assert shapes == jax.tree.map(lambda x: x.shape, alone)

    def loss(params):
        out = model.apply(params, BATCH.image, train=True, rngs={"dropout": jax.random.key(1)})
        return MaskedImage()(out, BATCH)["loss"].value

    slopes = jax.jit(jax.grad(loss))(params)["params"]["encoder"]
    assert all(np.any(x) and np.all(np.isfinite(x)) for x in jax.tree.leaves(slopes["stem"]))


def test_each_step_hides_other_patches_and_evaluation_the_same(head):
    model, params = head

    def hidden(train):
        run = jax.jit(lambda key: model.apply(params, BATCH.image, train=train, rngs={"dropout": key})["patches"])
        return [run(jax.random.key(seed))["hidden"] for seed in (0, 1)]

    assert np.any(np.not_equal(*hidden(train=True)))
    np.testing.assert_array_equal(*hidden(train=False))
