"""Visiting every pair of a batch once, without ever holding all pairs: in chunks, or in a ring over devices.

B rows (global), E embedding width, R rows and C columns of the block at hand, K code columns

A *visitor* sees one block of pairs together with the state of its rows and of its columns, and returns both states
brought forward. What the state is (statistics, gradients) is the visitor's business, the order of blocks is ours.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from mmjax.core.errors import UserError
from mmjax.core.layout import batch_axes
from mmjax.core.pytrees import record


@record
class Side:
    """One side of the pairs: embeddings, and what says how each relates to the other side's."""

    x: Float[Array, "B E"]
    same: Int[Array, " B"]
    alike: Int[Array, "B K"]
    valid: Bool[Array, " B"]


@record
class Block:
    """Some rows against some columns."""

    left: Side
    right: Side
    cosine: Float[Array, "R C"]
    positive: Bool[Array, "R C"]
    negative: Bool[Array, "R C"]

    @classmethod
    def of(cls, left: Side, right: Side) -> Block:
        """Pairs of equal `same` are positive; others that share an `alike` code are neither positive nor negative."""
        cosine = jnp.einsum("re,ce->rc", left.x, right.x, preferred_element_type=jnp.float32)
        counted = left.valid[:, None] & right.valid
        same = left.same[:, None] == right.same
        spared = same
        for i in range(left.alike.shape[1]):
            spared = spared | (left.alike[:, i, None] == right.alike[:, i])
        return cls(left, right, cosine, counted & same, counted & ~spared)

    def pull(self, slope: Float[Array, "R C"]) -> tuple[Float[Array, "R E"], Float[Array, "C E"]]:
        """Gradients of rows and columns, given the slope of a loss in each cosine."""
        left, right = (side.x.astype(jnp.float32) for side in (self.left, self.right))
        return jnp.einsum("rc,ce->re", slope, right), jnp.einsum("rc,re->ce", slope, left)


Visitor = Callable[[Block, Any, Any, Any], tuple[Any, Any]]
"""(block, state of rows, state of columns, replicated scalars) -> both states brought forward."""


class Sweep(Protocol):
    """Takes a visitor over all pairs. States are pytrees whose leaves lead with B."""

    def __call__(
        self, visit: Visitor, left: Side, right: Side, rows: Any, columns: Any, scalars: Any
    ) -> tuple[Any, Any]: ...


def at_once(visit: Visitor, left: Side, right: Side, rows: Any, columns: Any, scalars: Any) -> tuple[Any, Any]:
    """The whole B x B block in one visit."""
    return visit(Block.of(left, right), rows, columns, scalars)


def in_chunks(
    pairs: int, visit: Visitor, left: Side, right: Side, rows: Any, columns: Any, scalars: Any
) -> tuple[Any, Any]:
    """As many rows at a time as keep a block at `pairs` pairs or fewer; the last chunk is filled with invalid rows."""
    count, width = left.x.shape[0], right.x.shape[0]
    size = min(count, max(1, pairs // width))
    chunks = math.ceil(count / size)
    size = math.ceil(count / chunks)
    if chunks == 1:
        return at_once(visit, left, right, rows, columns, scalars)

    def split(x: Array) -> Array:
        padded = jnp.pad(x, [(0, chunks * size - count)] + [(0, 0)] * (x.ndim - 1))
        return padded.reshape(chunks, size, *x.shape[1:])

    def step(columns: Any, part: tuple[Side, Any]) -> tuple[Any, Any]:
        rows, columns = at_once(visit, part[0], right, part[1], columns, scalars)
        return columns, rows

    columns, rows = jax.lax.scan(step, columns, jax.tree.map(split, (left, rows)))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:count], rows), columns


def in_ring(
    pairs: int, visit: Visitor, left: Side, right: Side, rows: Any, columns: Any, scalars: Any
) -> tuple[Any, Any]:
    """Rows stay on their device; columns and their state travel once around the devices of the batch axes.

    No device ever holds more than its share of the embeddings (two shares while one is in flight)."""
    axes, sizes = batch_axes(), dict(jax.sharding.get_abstract_mesh().shape)
    devices = math.prod(sizes[axis] for axis in axes)
    if not axes:
        raise UserError("a ring needs rows split over devices; use it inside `Layout.use(mesh)`, or choose Chunked()")
    if left.x.shape[0] % devices:
        raise UserError(
            f"{left.x.shape[0]} rows cannot be dealt to the {devices} devices of {' x '.join(axes)}; "
            f"make the batch a multiple of {devices}"
        )
    onward = [(i, (i + 1) % devices) for i in range(devices)]
    share = PartitionSpec(axes)

    @functools.partial(jax.shard_map, in_specs=(share,) * 4 + (PartitionSpec(),), out_specs=(share, share))
    def travel(left: Side, right: Side, rows: Any, columns: Any, scalars: Any) -> tuple[Any, Any]:
        def step(carry: Any, _: None) -> tuple[Any, None]:
            right, rows, columns = carry
            rows, columns = in_chunks(pairs, visit, left, right, rows, columns, scalars)
            moved = jax.tree.map(lambda x: jax.lax.ppermute(x, axes, onward), (right, columns))
            return (moved[0], rows, moved[1]), None

        (_, rows, columns), _ = jax.lax.scan(step, (right, rows, columns), length=devices)
        return rows, columns

    return travel(left, right, rows, columns, scalars)


@dataclasses.dataclass(frozen=True)
class Full:
    """All B x B pairs at once, differentiated by JAX: the plain reference, and the fastest for small batches."""


@dataclasses.dataclass(frozen=True)
class Chunked:
    """One device, at most `pairs` pairs in memory at a time."""

    pairs: int = 2**20

    def sweep(self) -> Sweep:
        """The sweep itself."""
        return functools.partial(in_chunks, self.pairs)


@dataclasses.dataclass(frozen=True)
class Ring:
    """Rows split over the batch axes of the mesh, at most `pairs` pairs in memory at a time on each device."""

    pairs: int = 2**20

    def sweep(self) -> Sweep:
        """The sweep itself."""
        return functools.partial(in_ring, self.pairs)


@dataclasses.dataclass(frozen=True)
class Automatic:
    """Ring where rows are split over devices; elsewhere Full up to `pairs` pairs, and Chunked above."""

    pairs: int = 2**20


Execution = Full | Chunked | Ring | Automatic


def resolve(execution: Execution, rows: int) -> Full | Chunked | Ring:
    """What `execution` comes to for `rows` rows where we are traced."""
    if not isinstance(execution, Automatic):
        return execution
    if batch_axes():
        return Ring(execution.pairs)
    return Full() if rows * rows <= execution.pairs else Chunked(execution.pairs)
