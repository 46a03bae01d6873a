"""Products of a few rows with a large matrix.  R rows   K summed   N outputs

XLA:CPU reads a matrix [N K] that is multiplied with columns [K R] about twice as fast as one [K N] that rows [R K] are
multiplied with, for 2 to 32 rows. A compiler that sees that both are the same product takes the slower way, so it is
not let to see it. 8 rows with matrices of 768 x 2,304, 3,072 x 768 and 768 x 50,304, on 2 cores of a Zen 3: 12, 16 and
15 GB/s; the other way 6, 6 and 10. One row: 26, 24 and 31; the other way 24, 14 and 29.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mmjax.ops.target import target

FEW = 64  # how many rows this pays for
LARGE = 2**16  # numbers of the smallest matrix it pays for

_as_it_is = jax.lax.optimization_barrier


def times_few(x: Float[Array, "R K"], matrix: Float[Array, "N K"]) -> Float[Array, "R N"]:
    """x @ matrix.T, in float32."""
    if target() != "cpu":
        return jnp.einsum("rk,nk->rn", x, matrix, preferred_element_type=jnp.float32)
    rows = len(x)
    whole = 1 << (rows - 1).bit_length()  # five rows take longer than eight
    columns = _as_it_is(jnp.pad(x, ((0, whole - rows), (0, 0))).T)
    return _as_it_is(jnp.matmul(matrix, columns, preferred_element_type=jnp.float32)).T[:rows]
