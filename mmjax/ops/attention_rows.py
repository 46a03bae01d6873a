"""Facts about rows that decide whether a kernel may take a short cut.  B rows   T places

A packed row is *in order* when samples follow each other and blocks do not fall inside of a sample: what the data
pipelines lay out. Kernels that need it look, while running, and take a slower exact way where it does not hold.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from mmjax.core.errors import UserError
from mmjax.core.layout import axes_of
from mmjax.core.tokens import Pattern, Places


def everywhere(query: Places | None, key: Places | None, q: Array, k: Array) -> tuple[Places, Places]:
    """The places given, or where none are, places that all see each other; the same object twice in self-attention."""
    if query is not None:
        return query, key
    here = Places.all_of("text", q.shape[0], q.shape[2])
    return here, here if q.shape[2] == k.shape[2] else Places.all_of("text", k.shape[0], k.shape[2])


def by_shard(run: Callable[..., Array], parts: tuple[Array, ...], places: tuple[Places, ...]) -> Array:
    """`run(q, k, v, *places)` on each device's rows and heads: what the compiler cannot split, or would split badly."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.are_all_axes_manual:
        return run(*parts, *places)

    def split(dim: str, size: int) -> tuple[str, ...] | None:
        axes = tuple(axis for axis in axes_of(dim) if mesh.shape[axis] > 1)
        return axes if axes and size % math.prod(mesh.shape[axis] for axis in axes) == 0 else None

    rows, heads = split("batch", parts[1].shape[0]), split("heads", parts[1].shape[1])
    by_head = jax.P(rows, heads)
    specs = (*[by_head] * len(parts), *jax.tree.map(lambda _: jax.P(rows), places))
    return jax.shard_map(run, in_specs=specs, out_specs=by_head, check_vma=False)(*parts, *places)


def refuse(kernel: object, pattern: Pattern, softcap: float | None, *, window: bool = True, cap: bool = True) -> None:
    """Raises UserError for what `kernel` cannot do: hide modalities, and a window or a cap where these are True."""
    name = type(kernel).__name__
    asked = [f"hide {a} from {b}" for b, a in pattern.hidden]
    asked += [f"keep to a window ({pattern.window})"] if window and pattern.window is not None else []
    asked += [f"cap logits ({softcap:g})"] if cap and softcap is not None else []
    if asked:
        raise UserError(f"attention: {name} cannot {' or '.join(asked)}; choose kernel=Auto(), which can")


def before(valid: Bool[Array, "B T"]) -> Int[Array, "B T"]:
    """Index of the nearest valid place before each, or -1."""
    index = jnp.where(valid, jnp.arange(valid.shape[1]), -1)
    return jnp.pad(jax.lax.cummax(index, axis=1)[:, :-1], ((0, 0), (1, 0)), constant_values=-1)


def after(valid: Bool[Array, "B T"]) -> Int[Array, "B T"]:
    """Index of the nearest valid place after each, or T."""
    return valid.shape[1] - 1 - before(valid[:, ::-1])[:, ::-1]


def at(x: Array, index: Int[Array, "B T"]) -> Array:
    """x [B T] at the indices, which are clipped into the row."""
    return jnp.take_along_axis(x, jnp.clip(index, 0, x.shape[1] - 1), axis=1)


def in_order(places: Places) -> Bool[Array, " B"]:
    """Whether samples follow each other along the row and blocks never fall inside of one."""
    last = before(places.valid)
    segment = places.segment - at(places.segment, last)
    block = places.block - at(places.block, last)
    fine = (segment > 0) | ((segment == 0) & (block >= 0))
    return jnp.all(fine | ~places.valid | (last < 0), axis=1)


def in_step(places: Places) -> Bool[Array, " B"]:
    """Whether inside of each sample positions grow by one from place to place."""
    last = before(places.valid)
    index = jnp.arange(places.valid.shape[1])
    same = places.valid & (last >= 0) & (places.segment == at(places.segment, last))
    return jnp.all(~same | (places.position - at(places.position, last) == index - last), axis=1)


def looks_ahead(places: Places, ahead: int) -> Bool[Array, " B"]:
    """Whether any place of a row in order sees one that is more than `ahead` places after it."""
    shifted = jnp.pad(places.valid, ((0, 0), (0, ahead)))[:, ahead:]
    then = after(shifted) + ahead
    seen = (places.segment == at(places.segment, then)) & (places.block == at(places.block, then))
    return jnp.any(places.valid & (then < places.valid.shape[1]) & seen, axis=1)


def runs(places: Places) -> tuple[Int[Array, "B T"], Int[Array, "B T"]]:
    """For each place of a row in order: where its sample begins and where its block ends (indices, inclusive). A place
    that is not valid stands alone."""
    index = jnp.arange(places.valid.shape[1])
    last, then = before(places.valid), after(places.valid)
    begins = places.valid & ((last < 0) | (at(places.segment, last) != places.segment))
    follows = (at(places.segment, then) == places.segment) & (at(places.block, then) == places.block)
    ends = places.valid & ((then >= len(index)) | ~follows)
    first = jax.lax.cummax(jnp.where(begins, index, 0), axis=1)
    end = jax.lax.cummin(jnp.where(ends, index, len(index)), axis=1, reverse=True)
    return jnp.where(places.valid, first, index), jnp.where(places.valid, end, index)
