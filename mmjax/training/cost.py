"""What a model costs, from shapes alone: parameters, FLOPs and bytes by component.

A *component* is a part of the model by its own name: the first level of the parameter tree (`image`, `text`, `head`).
FLOPs are those of matrix products and convolutions, two per multiply-add, counted in the traced program; XLA's own
`cost_analysis` counts the body of a scan once, so a scanned stack of 24 layers looks like one.
"""

from __future__ import annotations

import collections
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from jax.extend import core
from jax.sharding import Mesh

from mmjax.core.parameters import unbox
from mmjax.core.pytrees import element_count
from mmjax.training.experiment import Experiment
from mmjax.training.state import abstract_state, build_update

TRAIN_OVER_FORWARD = 3
"""A training step needs the forward products once and twice as many for the gradients by inputs and by parameters
(Kaplan et al. 2020, arXiv 2001.08361, section 2.1). Recomputation under remat is not counted."""

REST = "rest"
"""Where FLOPs go that no component of the parameter tree owns."""


def components(params: Any) -> dict[str, Any]:
    """The parameter tree by component. A tree that is wrapped in single keys is opened until it branches."""
    while isinstance(params, Mapping) and len(params) == 1 and isinstance(next(iter(params.values())), Mapping):
        params = next(iter(params.values()))
    return dict(params)


def parameters(params: Any) -> dict[str, int]:
    """Number of scalars by component of a tree of arrays, shapes or boxes."""
    return {name: element_count(unbox(part)) for name, part in components(params).items()}


def model_flops(model: Any, params: Any, batch: Any) -> dict[str, float]:
    """Forward FLOPs per row by component, from shapes: `params` without boxes, `batch` as of `Batch.spec`."""
    counted = flops(lambda p, b: model.apply({"params": p}, b, train=False), params, batch, names=components(params))
    return {name: count / batch.rows for name, count in counted.items()}


def flops(
    function: Callable[..., Any], *arguments: Any, names: Mapping[str, Any] | tuple[str, ...] = ()
) -> dict[str, int]:
    """FLOPs of one call by the scope they stand in; scopes not in `names` count as REST.

    Exact for dot_general and conv_general_dilated, through jit, remat, custom gradients and shard_map (x its shards);
    a scan counts its body x its length, a `cond` its dearest branch, a `while` one round, for its length is unknown."""
    total: collections.Counter[str] = collections.Counter(dict.fromkeys(names, 0))
    closed = jax.make_jaxpr(function)(*arguments)
    for scope, count in _products(closed.jaxpr, ()):
        total[next((part for part in scope if part in names), REST)] += count
    return {name: count for name, count in total.items() if count or name != REST}


def _products(jaxpr: core.Jaxpr, outer: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], int]]:
    """(scope, FLOPs) of every product in a program; the names of a nested program's scopes follow those around it."""
    for equation in jaxpr.eqns:
        scope = (*outer, *re.findall(r"\w+", str(equation.source_info.name_stack)))
        kind = equation.primitive.name
        if kind == "dot_general":
            yield scope, _dot(equation)
        elif kind == "conv_general_dilated":
            yield scope, _convolution(equation)
        elif kind == "cond":
            branches = [list(_products(branch.jaxpr, scope)) for branch in equation.params["branches"]]
            yield from max(branches, key=lambda branch: sum(count for _, count in branch))
        else:
            times = _repeats(equation)
            for inner in _nested(equation):
                for where, count in _products(inner, scope):
                    yield where, times * count


def _nested(equation: core.JaxprEqn) -> Iterator[core.Jaxpr]:
    for value in equation.params.values():
        if isinstance(value, core.ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, core.Jaxpr):
            yield value


def _repeats(equation: core.JaxprEqn) -> int:
    if equation.primitive.name == "scan":
        return equation.params["length"]
    if (
        equation.primitive.name == "shard_map"
    ):  # its body holds the shapes of one shard; JAX has renamed the parameter once
        sizes = dict(equation.params["mesh"].shape)
        manual = next(value for name, value in equation.params.items() if name.endswith("manual_axes"))
        return math.prod(sizes[axis] for axis in manual)
    return 1


def _dot(equation: core.JaxprEqn) -> int:
    (contracting, _), _ = equation.params["dimension_numbers"]
    inner = math.prod(equation.invars[0].aval.shape[dim] for dim in contracting)
    return 2 * inner * math.prod(equation.outvars[0].aval.shape)


def _convolution(equation: core.JaxprEqn) -> int:
    kernel = equation.invars[1].aval.shape
    out_features = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
    return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) // out_features


def device_bytes(tree: Any) -> int:
    """Bytes per device of a tree of arrays or ShapeDtypeStructs; leaves without a sharding lie whole on each."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape) if leaf.sharding else leaf.shape) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def memory(experiment: Experiment, mesh: Mesh, compiled: Any = None) -> dict[str, int]:
    """Bytes per device by what they are for.

    A compiled step tells, where its platform does, what it needs beside its inputs and outputs: activations, with the
    gradients among them; without one the gradients are taken to be as large as the parameters, and activations are not
    told."""
    state = abstract_state(experiment, build_update(experiment), mesh)
    rows = experiment.layout.batch_sharding(mesh)
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows), experiment.data.spec())
    found = {
        "parameters": device_bytes(state.params),
        "gradients": device_bytes(state.params),
        "optimizer": device_bytes(state.opt_state),
        "average": device_bytes(state.average),
        "batch": device_bytes(batch),
    }
    analysis = compiled.memory_analysis() if compiled is not None else None
    if analysis is None:
        return found
    del found["gradients"]
    return found | {"activations and gradients": int(analysis.temp_size_in_bytes)}
