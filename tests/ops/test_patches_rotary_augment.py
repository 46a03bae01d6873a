"""Patches tile exactly, rotary positions are relative, augmentation keeps what it must."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core.batch import Batch
from mmjax.core.errors import UserError
from mmjax.core.tokens import Places
from mmjax.ops.augment import Jitter
from mmjax.ops.patches import patchify, resample_table, unpatchify
from mmjax.ops.rotary import GridRotary, Rotary


def test_patches_are_row_major_and_invertible():
    pixels = jnp.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
    patches = patchify(pixels, 2)
    np.testing.assert_array_equal(patches[0, 1], pixels[0, 0:2, 2:4].reshape(-1))
    np.testing.assert_array_equal(unpatchify(patches, 4, 6, 2), pixels)


def test_patches_equal_a_strided_convolution():
    rng = np.random.default_rng(0)
    pixels, kernel = rng.normal(size=(2, 8, 8, 3)), rng.normal(size=(4, 4, 3, 5))
    conv = jax.lax.conv_general_dilated(pixels, kernel, (4, 4), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    np.testing.assert_allclose(patchify(pixels, 4) @ kernel.reshape(-1, 5), conv.reshape(2, 4, 5), rtol=1e-4)


def test_patches_that_do_not_tile_are_refused():
    with pytest.raises(UserError, match="patches of 16 pixels do not tile a picture of 40 x 48"):
        patchify(jnp.zeros((1, 40, 48, 3)), 16)


def test_resampling_keeps_a_linear_field_and_its_own_grid():
    table = jnp.broadcast_to(jnp.arange(8.0)[:, None, None], (8, 8, 2))
    assert resample_table(table, (8, 8)) is table
    larger = resample_table(table, (16, 16))
    np.testing.assert_allclose(larger[4:12, 0, 0], np.arange(8) / 2 + 1.75, atol=1e-4)


@pytest.mark.parametrize("rotary", [Rotary(), GridRotary(columns=100)], ids=["row", "grid"])
def test_rotary_products_depend_on_distance_only(rotary):
    rng = np.random.default_rng(1)
    q, k = rng.normal(size=(2, 1, 1, 1, 16)).astype(np.float32)

    def product(at, to):
        place = lambda p: Places(*(jnp.full((1, 1), p),) * 5)  # noqa: E731
        return float(jnp.sum(rotary(q, place(at)) * rotary(k, place(to))))

    assert product(3, 7) == pytest.approx(product(23, 27), abs=1e-4)
    assert product(0, 0) == pytest.approx(float(jnp.sum(q * k)), abs=1e-5)
    assert product(3, 7) != pytest.approx(product(3, 8), abs=1e-3)


def test_grid_rotary_knows_rows_from_columns():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(1, 1, 1, 16)).astype(np.float32)
    at = lambda p: GridRotary(columns=4)(x, Places(*(jnp.full((1, 1), p),) * 5))  # noqa: E731
    half = [0, 1, 2, 3, 8, 9, 10, 11]  # the pairs that turn with the row
    np.testing.assert_allclose(at(1)[..., half], at(2)[..., half])  # same row
    assert not np.allclose(at(1)[..., half], at(5)[..., half])


def test_jitter_of_nothing_is_the_identity_and_fills_with_white():
    batch = Batch.fake(Batch.spec(4, image=(2, 8, 8)), 0)
    still = jax.jit(Jitter(shift=0, zoom=(1, 1)))(jax.random.key(0), batch)
    np.testing.assert_array_equal(still.image.pixels, batch.image.pixels)
    small = jax.jit(Jitter(shift=0, zoom=(0.5, 0.5)))(jax.random.key(0), batch)
    assert np.all(small.image.pixels[:, :, 0] == 255) and not np.all(small.image.pixels[:, :, 4] == 255)


def test_jitter_differs_by_picture_and_repeats_by_key():
    batch = Batch.fake(Batch.spec(2, image=(1, 16, 16)), 0)
    same = batch.replace(
        image=type(batch.image)(np.repeat(batch.image.pixels[:1], 2, 0), batch.image.valid, batch.image.segment)
    )
    one, two = (jax.jit(Jitter())(jax.random.key(3), same).image.pixels for _ in range(2))
    np.testing.assert_array_equal(one, two)
    assert not np.array_equal(one[0], one[1])


def test_jitter_leaves_batches_without_pictures_alone():
    batch = Batch.fake(Batch.spec(2, text=4), 0)
    assert Jitter()(jax.random.key(0), batch) is batch
