"""Matrices laid out for products with a few rows.  R rows   K summed   N columns   C columns of a block

XLA:CPU multiplies a few rows with a matrix one block of columns after the other. In a matrix that lies row by row, a
block is K short pieces far from each other, which a processor does not fetch ahead; here it lies in one piece. And here
are a dozen products instead of one, because XLA:CPU gives work to a second thread where more than eight things are
ready to run. On 2 cores of a Zen 4, the matrices of GPT-2 are read at 30 GB/s for 4 rows (as they are: 20), at 25 for 8
(17).
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from mmjax.core.pytrees import record, static

ROWS = range(2, 9)  # how many rows this pays for; of sixteen, the products themselves take longer than the reading
LARGE = 2**16  # numbers of the smallest matrix it pays for
WIDE, NARROW = 64, 32  # columns of a block
PIECES = 12


@dataclasses.dataclass(frozen=True)
class Cut:
    """How N columns are cut: into `pieces` of `blocks` of `width` columns."""

    width: int
    pieces: int
    blocks: int

    @classmethod
    def of(cls, columns: int) -> Cut:
        """Pieces of one size, an even number of them, and as little padding as that allows."""
        width = WIDE if columns >= PIECES * WIDE else NARROW
        blocks = -(-columns // width)
        if blocks < PIECES:  # such as keys and values that heads share: the pieces of the queries are ready with them
            return cls(WIDE, 1, -(-columns // WIDE))
        pieces = min(range(PIECES, 2 * PIECES + 1, 2), key=lambda pieces: (-blocks % pieces, pieces))
        return cls(width, pieces, -(-blocks // pieces))


@record
class Blocks:
    """A matrix [K N] as pieces of blocks of columns; after the last column come zeros."""

    pieces: tuple[Float[Array, "n K C"], ...]
    columns: int = static()

    @classmethod
    def of(cls, matrix: Float[Array, "K N"]) -> Blocks:
        """The same matrix."""
        cut, columns = Cut.of(matrix.shape[1]), matrix.shape[1]
        step = cut.blocks * cut.width

        def piece(start: int) -> Float[Array, "n K C"]:
            part = matrix[:, start : start + step]
            part = jnp.pad(part, ((0, 0), (0, step - part.shape[1])))
            return part.reshape(-1, cut.blocks, cut.width).transpose(1, 0, 2)

        return cls(tuple(piece(number * step) for number in range(cut.pieces)), columns)

    def times(self, x: Float[Array, "R K"]) -> Float[Array, "R N"]:
        """x @ matrix, in float32."""

        def part(piece: Float[Array, "n K C"]) -> Float[Array, "n R C"]:
            rows = jnp.broadcast_to(x, (piece.shape[0], *x.shape))
            return jnp.einsum("nrk,nkc->nrc", rows, piece, preferred_element_type=jnp.float32)

        blocks = jnp.concatenate([part(piece) for piece in self.pieces])
        return jnp.moveaxis(blocks, 0, 1).reshape(len(x), -1)[:, : self.columns]
