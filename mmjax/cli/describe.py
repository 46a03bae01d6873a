"""`mmjax describe`: an experiment as it will run, from shapes alone: no data is read and no array is made."""

from __future__ import annotations

import argparse
import json
import re
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from jax.sharding import Mesh
from rich.markup import escape
from rich.tree import Tree

from mmjax.cli.loading import Loaded, from_file, from_run
from mmjax.cli.output import bytes_text, console, flops_text, print_json, print_table
from mmjax.core import config
from mmjax.core.errors import UserError
from mmjax.core.parameters import table, unbox
from mmjax.core.protocols import specs_of
from mmjax.core.pytrees import flatten_names
from mmjax.training import cost, manifest
from mmjax.training.check import check
from mmjax.training.experiment import Experiment
from mmjax.training.loop import compile_step
from mmjax.training.origin import THEN
from mmjax.training.records import START
from mmjax.training.state import abstract_state, build_update


def run(arguments: argparse.Namespace) -> None:
    """Describes an experiment file with its settings, or the experiment of a run folder."""
    settings = config.split_settings(arguments.settings)
    if not arguments.what.is_dir():
        loaded = from_file(arguments.what, settings)
    elif settings:
        raise UserError(
            f"{arguments.what} is a run folder, whose settings are what they are; describe its file instead"
        )
    else:
        loaded = from_run(arguments.what, arguments.experiment)
    check(loaded.experiment, len(jax.devices()))
    if arguments.json:
        print_json(facts(loaded, arguments.compile))
    else:
        show(loaded, arguments.compile)


def facts(loaded: Loaded, compiled: bool = False) -> dict[str, Any]:
    """Everything that `show` prints, as JSON; sizes in bytes per device, FLOPs per example."""
    experiment = loaded.experiment
    declared, spec = experiment.declared, experiment.data.spec()
    mesh = experiment.layout.mesh()
    forward = cost.model_flops(experiment.model, unbox(declared), spec)
    return {
        "name": loaded.name,
        "settings": dict(loaded.settings),
        "experiment": config.to_json(experiment),
        "mesh": dict(mesh.shape),
        "start": _start(loaded),
        "parameters": {
            "by_component": cost.parameters(declared),
            "all": {
                name: {"shape": shape, "dims": dims, "dtype": str(dtype)}
                for name, shape, dims, dtype in table(declared)
            },
        },
        "forward_flops_per_example": forward,
        "training_flops_per_example": cost.TRAIN_OVER_FORWARD * sum(forward.values()),
        "memory_bytes_per_device": cost.memory(experiment, mesh, _compile(experiment, mesh) if compiled else None),
        "batch": {name: {"shape": leaf.shape, "dtype": str(leaf.dtype)} for name, leaf in flatten_names(spec).items()},
    }


def show(loaded: Loaded, compiled: bool = False) -> None:
    """Prints the experiment, its parameters, what a step costs, what lies on each device, and its batch."""
    found, experiment, devices = facts(loaded, compiled), loaded.experiment, len(jax.devices())
    console().print(_tree(Tree(f"[bold]{escape(loaded.name)}[/] = {type(experiment).__name__}"), experiment))
    _heading(f"parameters on {devices} device{'s' * (devices > 1)}")
    print(experiment.layout.explain(experiment.declared, devices))
    print()
    parts = [
        (part["path"], part["parameters"], part["start"], THEN[part["trains"]]) for part in found["start"]["parts"]
    ]
    print_table("where the parameters come from", ("path", "parameters", "start", ""), parts)
    forward, counts = found["forward_flops_per_example"], found["parameters"]["by_component"]
    rows = [(part, counts.get(part), flops_text(forward.get(part, 0))) for part in dict.fromkeys([*counts, *forward])]
    rows.append(("all", sum(counts.values()), flops_text(sum(forward.values()))))
    print_table("cost by component", ("component", "parameters", "forward per example"), rows)
    step = found["training_flops_per_example"] * experiment.data.spec().rows
    print(f"one training step: {flops_text(step)} (3 x forward, {experiment.data.spec().rows} rows)\n")
    memory = found["memory_bytes_per_device"]
    rows = [(what, bytes_text(count)) for what, count in [*memory.items(), ("all", sum(memory.values()))]]
    print_table("memory per device" + ("" if compiled else " (activations: --compile)"), ("what", "size"), rows)
    _heading("batch")
    print("\n\n".join(spec.describe() for spec in specs_of(experiment.data)))


def _start(loaded: Loaded) -> dict[str, Any]:
    """Where the parameters come from: as the run has recorded it, or as it would be now."""
    if loaded.folder is not None and (loaded.folder / START).is_file():
        return json.loads((loaded.folder / START).read_text(encoding="utf-8"))
    origin = loaded.experiment.init.origin(loaded.experiment.declared, manifest.read)
    return origin.report(build_update(loaded.experiment).trains).record()


def _compile(experiment: Experiment, mesh: Mesh) -> Any:
    update = build_update(experiment)
    with experiment.layout.use(mesh):
        return compile_step(experiment, update, abstract_state(experiment, update, mesh), mesh)


def _heading(text: str) -> None:
    console().print(f"\n[bold]{escape(text)}[/]")


def _tree(node: Tree, value: Any) -> Tree:
    """Adds the parts of a value: what has parts becomes a branch, the rest `name = value  type`."""
    for name, part, kind in _parts(value):
        inner = list(_parts(part))
        if inner:
            _tree(node.add(f"[cyan]{escape(name)}[/] = {escape(type(part).__name__)}"), part)
        else:
            shown = part.__qualname__ if callable(part) and hasattr(part, "__qualname__") else repr(part)
            short = textwrap.shorten(shown, 80, placeholder=" ...")
            node.add(f"[cyan]{escape(name)}[/] = {escape(short)}  [dim]{escape(kind)}[/]")
    return node


def _parts(value: Any) -> Iterator[tuple[str, Any, str]]:
    """(name, part, type as it is annotated) of what has settable parts."""
    if config.is_node(value):
        annotations = config.hints(type(value))
        for name in config.fields_of(value):
            yield name, getattr(value, name), _word(annotations.get(name))
    elif isinstance(value, Mapping):
        yield from ((str(name), part, "") for name, part in value.items())
    elif isinstance(value, tuple) and any(config.is_node(part) for part in value):
        yield from ((str(index), part, "") for index, part in enumerate(value))


def _word(annotation: Any) -> str:
    """An annotation as it was written: `Callable[[Array, Batch], Batch]`, without the modules its names come from."""
    if annotation in (None, Any):
        return ""
    return annotation.__name__ if isinstance(annotation, type) else re.sub(r"(\w+\.)+(?=\w)", "", str(annotation))
