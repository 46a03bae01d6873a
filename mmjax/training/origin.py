"""Where each parameter of a new run comes from: what is read of which checkpoint, and what there is to tell of it."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

import jax
from jax.sharding import NamedSharding, PartitionSpec

from mmjax.core.parameters import table
from mmjax.core.pytrees import flatten_names
from mmjax.training.checkpoints import load_arrays
from mmjax.training.manifest import Leaf, Manifest

INITIALISED = "initialised"
THEN = {True: "trained", False: "frozen"}


class Weights(Protocol):
    """Which weights of a run are meant."""

    def place(self, contents: Manifest) -> tuple[str, str]:
        """The item of its checkpoint and the path below which they lie. Raises UserError where it has none."""
        ...

    def __str__(self) -> str: ...


class Fit(Protocol):
    """How a saved array becomes a parameter of this model."""

    def fitted(self, array: jax.Array, wanted: jax.ShapeDtypeStruct) -> jax.Array:
        """The parameter, laid out as `wanted`."""
        ...

    def __str__(self) -> str: ...


@dataclasses.dataclass(frozen=True)
class Source:
    """A checkpoint that lends parameters."""

    run: str
    contents: Manifest
    weights: Weights

    @functools.cached_property
    def leaves(self) -> Mapping[str, Leaf]:
        """Its parameters by path, as shapes and formats."""
        item, prefix = self.weights.place(self.contents)
        return {
            name.removeprefix(prefix): leaf
            for name, leaf in self.contents.trees.get(item, {}).items()
            if name.startswith(prefix)
        }

    def read(self, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
        """These of its parameters and no others, in the formats and shardings of `wanted`."""
        item, prefix = self.weights.place(self.contents)
        folder = checkpoint_folder(self.run).absolute() / str(self.contents.step)
        arrays = load_arrays(folder, {item: {prefix + name: leaf for name, leaf in wanted.items()}})[item]
        return {name.removeprefix(prefix): array for name, array in arrays.items()}

    def identity(self) -> dict[str, Any]:
        """What it is, as JSON; the hash of its manifest stands for every byte of it."""
        return {"run": self.run, "step": self.contents.step, "xxh3_128": self.contents.digest}

    def __str__(self) -> str:
        return f"{self.run}, step {self.contents.step:,}{self.weights}"


def checkpoint_folder(run: str) -> pathlib.Path:
    """Where the checkpoints of a run lie."""
    return pathlib.Path(run).expanduser() / "checkpoints"


@dataclasses.dataclass(frozen=True)
class Lent:
    """What one checkpoint lends: path in this model -> (path there, how it is made to fit)."""

    source: Source
    parameters: Mapping[str, tuple[str, Fit]]


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where the parameters of a new run come from; those that nobody lends are initialised."""

    declared: Any
    lent: tuple[Lent, ...] = ()

    def load(self, params: Any) -> dict[str, jax.Array]:
        """The lent parameters by path, each laid out like its leaf of `params` (ShapeDtypeStructs with shardings)."""
        wanted, found = flatten_names(params), {}
        for part in self.lent:
            leaves = part.source.leaves
            asked = {path: _like(leaves[path], wanted[name]) for name, (path, _) in part.parameters.items()}
            arrays = part.source.read(asked)
            found |= {name: fit.fitted(arrays[path], wanted[name]) for name, (path, fit) in part.parameters.items()}
        return found

    def report(self, trains: Any) -> Report:
        """What was loaded, initialised and frozen; `trains`: the tree of which parameters move."""
        start = dict.fromkeys(flatten_names(trains), INITIALISED)
        for part in self.lent:
            start |= {name: f"{part.source}{fit}" for name, (_, fit) in part.parameters.items()}
        moves, sizes = flatten_names(trains), {name: math.prod(shape) for name, shape, *_ in table(self.declared)}
        leaves = [Part(name, sizes[name], start[name], moves[name]) for name in sizes]
        return Report(tuple(part.source for part in self.lent), tuple(_gathered(leaves)))


@dataclasses.dataclass(frozen=True)
class Part:
    """Parameters below a path that share where they come from and whether they train."""

    path: str
    parameters: int
    start: str
    trains: bool


@dataclasses.dataclass(frozen=True)
class Report:
    """What was loaded, initialised and frozen."""

    sources: tuple[Source, ...]
    parts: tuple[Part, ...]

    @property
    def plain(self) -> bool:
        """There is nothing to tell: everything is initialised and trains."""
        return not self.sources and all(part.trains for part in self.parts)

    def __str__(self) -> str:
        lines = [("path", "parameters", "start", "")]
        lines += [(part.path, f"{part.parameters:,}", part.start, THEN[part.trains]) for part in self.parts]
        path, count, start = (max(len(line[i]) for line in lines) for i in range(3))
        return "\n".join(f"  {a:{path}}  {b:>{count}}  {c:{start}}  {d}".rstrip() for a, b, c, d in lines)

    def record(self) -> dict[str, Any]:
        """The same as JSON."""
        return {
            "sources": [source.identity() for source in self.sources],
            "parts": [dataclasses.asdict(part) for part in self.parts],
        }


def _gathered(leaves: Iterable[Part], depth: int = 1) -> Iterator[Part]:
    """The shortest paths (of at least `depth` names) below which all parameters share everything."""
    for path, group in itertools.groupby(leaves, lambda part: "/".join(part.path.split("/")[:depth])):
        parts = list(group)
        if len({(part.start, part.trains) for part in parts}) == 1:
            yield dataclasses.replace(parts[0], path=path, parameters=sum(part.parameters for part in parts))
        else:
            yield from _gathered(parts, depth + 1)


def _like(leaf: Leaf, wanted: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """What to read: laid out as it is wanted, or whole on every device where it has another shape."""
    shape, _ = leaf
    sharding = wanted.sharding if shape == wanted.shape else NamedSharding(wanted.sharding.mesh, PartitionSpec())
    return jax.ShapeDtypeStruct(shape, wanted.dtype, sharding=sharding)
