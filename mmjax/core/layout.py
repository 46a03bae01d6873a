"""Where arrays lie: mesh axes, a small table from dimension names to axes, and an FSDP floor.

Errors name parameter, dimension and axis, and are raised from shapes alone, before any device is touched.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mmjax.core.errors import UserError, unknown_name
from mmjax.core.parameters import is_declared
from mmjax.core.pytrees import map_names

AXES = ("slice", "data", "fsdp", "expert", "context", "tensor")
Rules = tuple[tuple[str, tuple[str, ...]], ...]

RULES: Rules = (
    ("batch", ("slice", "data", "fsdp", "expert")),
    ("tokens", ("context",)),
    ("heads", ("tensor",)),
    ("kv_heads", ("tensor",)),
    ("mlp", ("tensor",)),
    ("vocab", ("tensor",)),
    ("experts", ("expert",)),
    ("layers", ()),
    ("stack", ()),
    ("width", ()),
    ("head_dim", ()),
    ("embed", ()),
    ("position", ()),
    ("patch", ()),
    ("channel", ()),
    ("latents", ()),
)


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a run is spread over devices. One axis may be -1: it takes the devices that are left.

    data: copies of the model, each with its rows.   fsdp: rows split *and* parameters split (ZeRO-3).
    tensor: heads, mlp and vocabulary split (Megatron, arXiv 1909.08053).   context, expert: reserved for long rows and
    mixtures of experts.   slices: TPU slices joined by the data-centre network.
    fsdp_floor: parameters with fewer elements than this are not split over fsdp.
    """

    data: int = -1
    fsdp: int = 1
    expert: int = 1
    context: int = 1
    tensor: int = 1
    slices: int = 1
    fsdp_floor: int = 2**14
    rules: Rules = RULES

    def sizes(self, devices: int) -> dict[str, int]:
        """Size of each mesh axis on `devices` devices. Raises UserError where they cannot be dealt out."""
        asked = dict(
            zip(AXES, (self.slices, self.data, self.fsdp, self.expert, self.context, self.tensor), strict=True)
        )
        open_axes = [axis for axis, size in asked.items() if size == -1]
        wrong = [f"{axis}={size}" for axis, size in asked.items() if size < 1 and size != -1]
        fixed = math.prod(size for size in asked.values() if size > 0)
        if wrong:
            raise UserError(f"layout: axis sizes must be positive, or -1 for one of them; got {', '.join(wrong)}")
        if len(open_axes) > 1:
            raise UserError(f"layout: only one axis may be -1; got {' and '.join(open_axes)}")
        if (open_axes and devices % fixed) or (not open_axes and fixed != devices):
            given = ", ".join(f"{axis}={size}" for axis, size in asked.items() if size != 1) or "all 1"
            raise UserError(
                f"layout: {given} does not divide {devices} device{'s' * (devices != 1)}; "
                f"the product of the axes must be {devices}, or set one axis to -1"
            )
        if open_axes:
            asked[open_axes[0]] = devices // fixed
        return asked

    def mesh(self, devices: Sequence[Any] | None = None) -> Mesh:
        """The mesh over `devices` (default: all), axes Auto, in the order that keeps tensor neighbours close."""
        devices = list(jax.devices() if devices is None else devices)
        sizes = self.sizes(len(devices))
        shape = tuple(sizes.values())
        auto = (AxisType.Auto,) * len(AXES)
        if self.slices > 1:
            from jax.experimental import mesh_utils

            inner, outer = (1, *shape[1:]), (self.slices, *(1,) * (len(shape) - 1))
            return Mesh(mesh_utils.create_hybrid_device_mesh(inner, outer, devices), AXES, axis_types=auto)
        if devices[0].platform == "cpu":
            return Mesh(np.asarray(devices).reshape(shape), AXES, axis_types=auto)
        return jax.make_mesh(shape, AXES, axis_types=auto, devices=devices)

    def spec(self, name: str, shape: Sequence[int], dims: Sequence[str | None], sizes: dict[str, int]) -> PartitionSpec:
        """Partition of one array whose dimensions are called `dims`. Raises UserError on a collision (two dimensions on
        one axis) and on a dimension that its axes do not divide."""
        if len(dims) != len(shape):  # factored optimizer statistics: no names fit any more
            return self._floor([()] * len(shape), shape, sizes)
        parts = [self._axes(name, dim, sizes) for dim in dims]
        for i, axes in enumerate(parts):
            ways = math.prod(sizes[axis] for axis in axes)
            if shape[i] % ways:
                raise UserError(
                    f"layout: {name} {tuple(shape)}: dimension {dims[i]}={shape[i]} cannot be split over "
                    f"{' x '.join(f'{axis}={sizes[axis]}' for axis in axes)}; choose a divisor of {shape[i]}"
                )
            for j in range(i):
                if set(axes) & set(parts[j]):
                    axis = (set(axes) & set(parts[j])).pop()
                    raise UserError(
                        f"layout: {name} {tuple(shape)}: dimensions {dims[j]} and {dims[i]} both go to axis {axis}; "
                        f"give one of them another rule"
                    )
        return self._floor(parts, shape, sizes)

    def _axes(self, name: str, dim: str | None, sizes: dict[str, int]) -> tuple[str, ...]:
        if dim is None:
            return ()
        rules = dict(self.rules)
        if dim not in rules:
            raise UserError(f"layout: {name}: " + unknown_name("rule for dimension", dim, rules))
        for axis in rules[dim]:
            if axis not in AXES:
                raise UserError(f"layout: rule for {dim}: " + unknown_name("mesh axis", axis, AXES))
        return tuple(axis for axis in rules[dim] if sizes[axis] > 1)

    def _floor(self, parts: list[tuple[str, ...]], shape: Sequence[int], sizes: dict[str, int]) -> PartitionSpec:
        """Adds fsdp on the largest dimension it divides, when the array is large enough and fsdp is still free."""
        used = {axis for axes in parts for axis in axes}
        ways = sizes["fsdp"]
        if ways > 1 and "fsdp" not in used and math.prod(shape) >= self.fsdp_floor:
            rest = [n // math.prod(sizes[a] for a in axes) for n, axes in zip(shape, parts, strict=True)]
            fits = [i for i, n in enumerate(rest) if n % ways == 0]
            if fits:
                best = max(fits, key=lambda i: rest[i])
                parts = [(*axes, "fsdp") if i == best else axes for i, axes in enumerate(parts)]
        return PartitionSpec(*(axes[0] if len(axes) == 1 else (axes or None) for axes in parts))

    def specs(self, tree: Any, sizes: dict[str, int]) -> Any:
        """A PartitionSpec per leaf of a tree of `Declared` boxes; leaves without a box are replicated."""

        def one(name: str, leaf: Any) -> PartitionSpec:
            return self.spec(name, leaf.value.shape, leaf.dims, sizes) if is_declared(leaf) else PartitionSpec()

        return map_names(one, tree, is_leaf=is_declared)

    def shardings(self, tree: Any, mesh: Mesh) -> Any:
        """A NamedSharding per leaf of a tree of `Declared` boxes (scalars and counters included)."""
        specs = self.specs(tree, dict(mesh.shape))
        return jax.tree.map(lambda s: NamedSharding(mesh, s), specs, is_leaf=lambda x: isinstance(x, PartitionSpec))

    def batch_spec(self, mesh: Mesh) -> PartitionSpec:
        """How the rows of a batch are split."""
        axes = self._axes("batch", "batch", dict(mesh.shape))
        return PartitionSpec(axes or None)

    def batch_sharding(self, mesh: Mesh) -> NamedSharding:
        """Sharding of every leaf of a batch: rows over the batch axes."""
        return NamedSharding(mesh, self.batch_spec(mesh))

    def check_rows(self, rows: int, devices: int) -> None:
        """Raises UserError when the global batch cannot be dealt to the devices."""
        sizes = self.sizes(devices)
        axes = self._axes("batch", "batch", sizes)
        ways = math.prod(sizes[axis] for axis in axes)
        if rows % ways:
            split = " x ".join(f"{axis}={sizes[axis]}" for axis in axes)
            raise UserError(
                f"layout: a batch of {rows} rows cannot be split over {split}; make it a multiple of {ways}"
            )

    @contextlib.contextmanager
    def use(self, mesh: Mesh) -> Iterator[Mesh]:
        """Inside, `constrain` and the pairwise losses know the mesh and the rules."""
        token = _rules.set(self)
        try:
            with jax.set_mesh(mesh):
                yield mesh
        finally:
            _rules.reset(token)

    def explain(self, tree: Any, devices: int) -> str:
        """A table of what lies where: parameter, shape, partition, elements per device."""
        sizes = self.sizes(devices)
        used = {axis: size for axis, size in sizes.items() if size > 1} or {"one device": 1}
        lines = ["mesh " + " x ".join(f"{axis}={size}" for axis, size in used.items())]
        lines.append(f"{'parameter':52} {'shape':20} {'partition':28} per device")

        def row(name: str, leaf: Any) -> None:
            value, dims = (leaf.value, leaf.dims) if is_declared(leaf) else (leaf, (None,) * leaf.ndim)
            spec = self.spec(name, value.shape, dims, sizes)
            split = math.prod(sizes[a] for part in spec if part for a in ((part,) if isinstance(part, str) else part))
            shape = "x".join(map(str, value.shape)) or "scalar"
            where = ", ".join("-" if part is None else str(part) for part in spec) or "-"
            lines.append(f"{name:52} {shape:20} {where:28} {math.prod(value.shape) // split:,}")

        map_names(row, tree, is_leaf=is_declared)
        return "\n".join(lines)


_rules: contextvars.ContextVar[Layout | None] = contextvars.ContextVar("layout", default=None)


def current() -> Layout | None:
    """The layout whose `use` is active, if any."""
    return _rules.get()


def axes_of(dim: str) -> tuple[str, ...]:
    """Mesh axes (larger than 1) over which dimension `dim` is split where we are traced; () outside of a mesh."""
    layout, mesh = _rules.get(), jax.sharding.get_abstract_mesh()
    if layout is None or mesh.empty:
        return ()
    return layout._axes("activation", dim, dict(mesh.shape))


def batch_axes() -> tuple[str, ...]:
    """Mesh axes over which rows are split."""
    return axes_of("batch")


def constrain(x: jax.Array, *dims: str | None) -> jax.Array:
    """Asks the compiler to lay an activation out by its dimension names; outside of a layout, nothing.

    Dimensions that their axes do not divide stay whole: activations may be ragged, parameters may not."""
    layout, mesh = _rules.get(), jax.sharding.get_abstract_mesh()
    if layout is None or mesh.empty:
        return x
    sizes = dict(mesh.shape)
    parts = []
    for size, dim in zip(x.shape, dims, strict=True):
        axes = layout._axes("activation", dim, sizes)
        parts.append(axes if axes and size % math.prod(sizes[a] for a in axes) == 0 else None)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*parts))
