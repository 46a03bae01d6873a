"""A matrix that lies with its outputs first multiplies as it did, and is read that way."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.ops.few import times_few


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 8, 13, 64])
def test_products_are_those_of_the_matrix(rows):
    rng = np.random.default_rng(rows)
    x, matrix = (rng.normal(size=shape).astype(np.float32) for shape in ((rows, 24), (24, 37)))
    made = jax.jit(times_few)(jnp.asarray(x), jnp.asarray(matrix.T))
    np.testing.assert_allclose(made, x @ matrix, atol=1e-5)


def test_the_compiled_product_reads_the_matrix_first():
    shapes = jax.ShapeDtypeStruct((8, 24), jnp.float32), jax.ShapeDtypeStruct((37, 24), jnp.float32)
    program = jax.jit(times_few).lower(*shapes).compile().as_text()
    products = [line for line in program.splitlines() if " dot(" in line]
    assert len(products) == 1 and "f32[37,8]" in products[0].split(" dot(")[0]
