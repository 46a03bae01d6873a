"""What an evaluator is given: a model, its parameters, and a compiled forward pass over data."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mmjax.core.batch import Batch
from mmjax.core.layout import Layout
from mmjax.core.protocols import Data, specs_of


def compile_forward(model: Any, layout: Layout, mesh: Mesh) -> Callable[..., Any]:
    """(params, batch, names) -> outputs of `model` without dropout, whole on every device; compiled once per batch
    shape and choice of names. Of a model that gives a mapping, only the entries in `names` (all, when one is not
    there), and what these do not need is not computed."""
    rows = layout.batch_sharding(mesh)

    def forward(params: Any, batch: Batch, names: tuple[str, ...] = ()) -> Any:
        batch = jax.lax.with_sharding_constraint(batch, rows)
        outputs = model.apply({"params": params}, batch, train=False)
        return {name: outputs[name] for name in names} if names and set(names) <= set(outputs) else outputs

    return jax.jit(forward, static_argnums=2, out_shardings=NamedSharding(mesh, PartitionSpec()))


def _carry_on() -> None:
    """Nobody asks to stop."""


@dataclasses.dataclass(frozen=True, eq=False)
class Context:
    """See `core.protocols.EvalContext`. `forward` comes from `compile_forward` and is shared between evaluations;
    `poll` raises when the process was asked to stop."""

    model: Any
    params: Any
    step: int
    layout: Layout
    mesh: Mesh
    forward: Callable[..., Any]
    poll: Callable[[], None] = _carry_on

    @classmethod
    def of(cls, model: Any, params: Any, step: int, layout: Layout, mesh: Mesh) -> Context:
        """A context of its own, outside of a training run."""
        return cls(model, params, step, layout, mesh, compile_forward(model, layout, mesh))

    def outputs(self, data: Data, *names: str) -> Iterator[tuple[Mapping[str, Any], Batch]]:
        """See `core.protocols.EvalContext`."""
        for spec in specs_of(data):
            self.layout.check_rows(spec.rows, self.mesh.size)
        rows = self.layout.batch_sharding(self.mesh)
        with self.layout.use(self.mesh), jax.transfer_guard("allow"):
            for batch in data.batches():
                self.poll()
                given = jax.block_until_ready(jax.device_put(batch, rows))  # for what `feeder` says of one CPU
                outputs = jax.device_get(self.forward(self.params, given, names))
                yield jax.tree.map(np.asarray, outputs), batch
