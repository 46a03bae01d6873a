"""Typed records as pytrees, and path-named views of any tree."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, dataclass_transform

import jax
import numpy as np

C = TypeVar("C")


def static(default: Any = dataclasses.MISSING) -> Any:
    """A record field that is part of the tree's structure (numbers and names), not an array leaf."""
    return dataclasses.field(default=default, metadata={"static": True})


@dataclass_transform(frozen_default=True, field_specifiers=(static,))
def record(cls: type[C]) -> type[C]:
    """Makes a class a frozen dataclass that JAX sees as a pytree; `static()` fields become structure."""
    cls = dataclasses.dataclass(frozen=True, eq=False)(cls)
    fields = dataclasses.fields(cls)
    meta = [f.name for f in fields if f.metadata.get("static")]
    jax.tree_util.register_dataclass(cls, [f.name for f in fields if f.name not in meta], meta)
    return cls


def path_name(path: tuple[Any, ...]) -> str:
    """`('params', 'stack', 'kernel')` key path -> `params/stack/kernel`."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def flatten_names(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> dict[str, Any]:
    """Every leaf of `tree` under its slash-joined path, in tree order."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)
    return {path_name(path): leaf for path, leaf in leaves}


def map_names(function: Callable[..., Any], tree: Any, *rest: Any, is_leaf: Callable[[Any], bool] | None = None) -> Any:
    """`jax.tree.map` whose function also gets the leaf's path: `function(name, leaf, *others)`."""
    return jax.tree_util.tree_map_with_path(lambda p, *xs: function(path_name(p), *xs), tree, *rest, is_leaf=is_leaf)


def matches(pattern: str, name: str) -> bool:
    """Whether a regular expression matches a whole path; `""` matches nothing."""
    return bool(pattern) and re.fullmatch(pattern, name) is not None


def joined(trees: Sequence[Any]) -> Any:
    """One tree of arrays out of several, such as a batch out of consecutive rows."""
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *trees)


def taken(tree: Any, rows: Any) -> Any:
    """A tree of numpy arrays with these rows of each, such as a batch of some rows of another."""
    return jax.tree.map(lambda x: np.asarray(x)[rows], tree)


def element_count(tree: Any) -> int:
    """Number of scalars in a tree of arrays or ShapeDtypeStructs."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def byte_count(tree: Any) -> int:
    """Bytes of a tree of arrays or ShapeDtypeStructs."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def abstract(tree: Any) -> Any:
    """The same tree with each array replaced by its ShapeDtypeStruct."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
