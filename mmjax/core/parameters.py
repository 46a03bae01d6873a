"""One declaration per parameter: shape, initialiser, format and the names of its dimensions together.

From the declarations come the abstract tree, the shardings, the sharded initialisation, the parameter table and the
optimizer's groups. `declare` is what layers call; everything else reads the `Declared` boxes that `model.init` returns.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from flax.core import meta

from mmjax.core.errors import UserError, unknown_name

DIMS = (
    "width", "heads", "kv_heads", "head_dim", "mlp", "vocab", "layers", "embed", "position", "patch", "channel",
    "latents", "experts", "stack",
)  # fmt: skip
"""The logical dimension names of the whole package; `Layout.rules` maps each to mesh axes."""

Initializer = Callable[[jax.Array, Sequence[int], Any], jax.Array]


class Declared(struct.PyTreeNode, meta.AxisMetadata):
    """A parameter (or its optimizer statistics) with the logical name of each dimension, `None` for unnamed ones.

    Linen's own box re-applies sharding constraints whenever it is opened; this one only remembers."""

    value: Any
    dims: tuple[str | None, ...] = struct.field(pytree_node=False)

    def unbox(self) -> Any:
        return self.value

    def replace_boxed(self, val: Any) -> Declared:
        return self.replace(value=val)

    def add_axis(self, index: int, params: dict[Any, Any]) -> Declared:
        return self.replace(dims=(*self.dims[:index], params[nn.PARTITION_NAME], *self.dims[index:]))

    def remove_axis(self, index: int, params: dict[Any, Any]) -> Declared:
        return self.replace(dims=(*self.dims[:index], *self.dims[index + 1 :]))


def is_declared(x: Any) -> bool:
    """For `is_leaf`: stop at boxes."""
    return isinstance(x, Declared)


def unbox(tree: Any) -> Any:
    """The plain tree of arrays (or ShapeDtypeStructs) inside a tree of boxes."""
    return jax.tree.map(lambda x: x.value if is_declared(x) else x, tree, is_leaf=is_declared)


def declare(
    module: nn.Module,
    name: str,
    init: Initializer,
    dtype: Any = jnp.float32,
    **dims: int,
) -> jax.Array:
    """Declares (at init) and returns (always) the parameter `name` of a Linen module.

    `dims` are its dimensions in order, name=size; a second dimension of the same name ends in an underscore
    (`width=64, width_=64`). Raises UserError for a name that no layout knows.
    """
    names = tuple(dim.rstrip("_") for dim in dims)
    for dim in names:
        if dim not in DIMS:
            raise UserError(f"parameter {module.name}/{name}: " + unknown_name("dimension", dim, DIMS))
    shape = tuple(dims.values())
    return module.param(name, lambda rng: Declared(init(rng, shape, dtype), names))


def slot(part: Callable[[], nn.Module]) -> Any:
    """A field for a part of a module that has a default: `norm: nn.Module = slot(LayerNorm)`.

    Each module gets a part of its own. A plain default would be one object for all, and Linen takes one object in two
    places for one set of weights."""
    return dataclasses.field(default_factory=part)


def table(params: Any) -> list[tuple[str, tuple[int, ...], tuple[str | None, ...], Any]]:
    """(path, shape, dimension names, format) of each declared parameter, in tree order."""
    from mmjax.core.pytrees import flatten_names

    rows = []
    for name, leaf in flatten_names(params, is_leaf=is_declared).items():
        dims = leaf.dims if is_declared(leaf) else (None,) * leaf.ndim
        value = leaf.value if is_declared(leaf) else leaf
        rows.append((name, tuple(value.shape), dims, value.dtype))
    return rows
