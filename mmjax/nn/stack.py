"""Many blocks as one: parameters stacked over layers, one compiled body, and a choice of what the backward pass keeps.

A scanned stack compiles in time that does not grow with its depth. Where that time is not what counts, `apart` hands
the layers over one by one: a scan copies each layer's parameters out of the stack before they are read, unless the
compiler can read them in place. B batch   T tokens   D width
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from mmjax.core.tokens import Places, Tokens
from mmjax.nn.cache import CACHE, FRESH, LAID, MEMORY

NAMES = ("qkv", "context", "out", "mlp")
"""Intermediates of a block that are worth keeping: all products of its matrices (see the checkpoint names there)."""


@dataclasses.dataclass(frozen=True)
class KeepAll:
    """Keep every intermediate: no recomputation, most memory."""

    def wrap(self, target: Any) -> Any:
        return target


@dataclasses.dataclass(frozen=True)
class KeepNamed:
    """Keep the named matrix products and recompute the cheap rest."""

    names: tuple[str, ...] = NAMES

    def wrap(self, target: Any) -> Any:
        policy = jax.checkpoint_policies.save_only_these_names(*self.names)
        return nn.remat(target, prevent_cse=False, policy=policy)


@dataclasses.dataclass(frozen=True)
class KeepNothing:
    """Keep only the input of each block: least memory, one more forward pass (arXiv 1604.06174)."""

    def wrap(self, target: Any) -> Any:
        return nn.remat(target, prevent_cse=False)


Keep = KeepAll | KeepNamed | KeepNothing


class Stack(nn.Module):
    """`depth` blocks of the same shape applied in turn; each may look at the `memory`, where there is one. Variables
    are stacked under "block", or lie `apart`."""

    block: nn.Module
    depth: int
    keep: Keep = KeepNamed()

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        places: Places | None = None,
        memory: Tokens | None = None,
        *,
        train: bool = False,
    ) -> Float[Array, "B T D"]:
        if self.depth == 0:
            return x

        def layer(block: nn.Module, x: Array, places: Places | None, memory: Tokens | None) -> tuple[Array, None]:
            seen = () if memory is None else (memory,)  # a block that knows no memory is not asked about it
            return block(x, places, *seen, train=train), None

        if self.has_variable("params", _layer(0)):
            for number in range(self.depth):
                x, _ = layer(self.block.clone(parent=self, name=_layer(number), _deep_clone=True), x, places, memory)
            return x

        scan: Callable[..., Any] = nn.scan(
            self.keep.wrap(layer),
            variable_axes={"params": 0, "intermediates": 0, FRESH: 0, CACHE: 0, MEMORY: 0, LAID: 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=nn.broadcast,
            length=self.depth,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        return scan(self.block, x, places, memory)[0]


def _layer(number: int) -> str:
    return f"layer_{number}"


Path = tuple[str, ...]


@contextlib.contextmanager
def stacks_called() -> Iterator[list[Path]]:
    """Where the variables of the stacks lie that are called inside of this context; of nested ones the outer."""
    found: list[Path] = []

    def note(function: Callable[..., Any], given: Any, named: Any, context: Any) -> Any:
        path = context.module.path
        known = any(path[: len(other)] == other for other in found)
        if isinstance(context.module, Stack) and context.method_name == "__call__" and not known:
            found.append(path)
        return function(*given, **named)

    with nn.intercept_methods(note):
        yield found


def at(variables: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
    """What lies at `path`; nothing where there is no such thing."""
    for name in path:
        variables = variables.get(name, {})
    return variables


def placed(variables: Mapping[str, Any], path: Path, value: Mapping[str, Any]) -> Mapping[str, Any]:
    """`variables` with `value` at `path`."""
    if not path:
        return value
    return {**variables, path[0]: placed(variables.get(path[0], {}), path[1:], value)}


def without(variables: Mapping[str, Any], others: Mapping[str, Any]) -> Mapping[str, Any]:
    """Those variables that have no counterpart among the others."""
    return {
        name: without(value, others.get(name, {})) if isinstance(value, Mapping) else value
        for name, value in variables.items()
        if isinstance(value, Mapping) or name not in others
    }


def apart(stacked: Mapping[str, Any]) -> Mapping[str, Any]:
    """Variables of one stack layer by layer."""
    leaves, tree = jax.tree.flatten(stacked.get("block", {}))
    layers = zip(*map(tuple, leaves), strict=True)
    return {_layer(number): jax.tree.unflatten(tree, layer) for number, layer in enumerate(layers)}
