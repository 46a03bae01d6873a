"""A matrix that is laid out for a few rows multiplies as it did."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmjax.ops.blocks import LARGE, PIECES, Blocks, Cut


@pytest.mark.parametrize("columns", [1, 31, 64, 192, 383, 384, 577, 768, 800, 1603])
def test_products_are_those_of_the_matrix(columns):
    rng = np.random.default_rng(columns)
    matrix, x = (rng.normal(size=shape).astype(np.float32) for shape in ((24, columns), (5, 24)))
    blocks = Blocks.of(jnp.asarray(matrix))
    assert len({piece.shape for piece in blocks.pieces}) == 1
    np.testing.assert_allclose(blocks.times(jnp.asarray(x)), x @ matrix, atol=1e-5)


@given(st.integers(1, 300_000))
def test_pieces_hold_all_columns_and_little_else(columns):
    cut = Cut.of(columns)
    held = cut.pieces * cut.blocks * cut.width
    assert columns <= held < columns * 1.15 + cut.width
    assert cut.pieces == 1 or PIECES <= cut.pieces <= 2 * PIECES


def test_few_columns_stay_in_one_piece_however_large_the_matrix():
    assert Cut.of(192) == Cut(64, 1, 3) and Cut.of(LARGE) == Cut(64, 16, 64)
