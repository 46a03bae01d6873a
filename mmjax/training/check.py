"""Everything that shapes alone can tell of an experiment, all faults at once, before any device is touched."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from mmjax.core.batch import Batch
from mmjax.core.config import to_json
from mmjax.core.errors import UserError, unknown_name
from mmjax.core.means import Mean
from mmjax.core.parameters import is_declared, unbox
from mmjax.core.protocols import Data, specs_of
from mmjax.core.pytrees import flatten_names
from mmjax.training.experiment import Experiment


def check(experiment: Experiment, devices: int) -> None:
    """Raises one UserError that lists what is wrong with the experiment on so many devices: numbers, rows against the
    layout, parts without a JSON form, parameters against the layout, optimizer patterns, what objectives find in the
    model's outputs, rows of evaluation data. The data's own error (empty, unreadable) is raised as it is."""
    spec = experiment.data.spec()
    faults = [*_numbers(experiment), *_rows(experiment, devices)]
    with _gathered(faults):
        to_json(experiment)
    with _gathered(faults):
        declared = experiment.declared
        faults += _parameters(experiment, declared, devices)
        with _gathered(faults):
            experiment.optimizer.build(declared, experiment.steps)
        faults += _objectives(experiment, declared, spec)
    if faults:
        raise UserError("this experiment cannot run:\n- " + "\n- ".join(faults))


@contextlib.contextmanager
def _gathered(faults: list[str]) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        faults.append(str(error))


def _numbers(experiment: Experiment) -> Iterator[str]:
    for name in ("steps", "accumulate", "log_every"):
        value = getattr(experiment, name)
        if value < 1:
            yield f"{name}={value}: expected a whole number from 1 on"
    if not experiment.objectives:
        yield "objectives: there is none, so nothing would be learned; give at least one"
    for name, each in experiment.evals.items():
        if each.steps < 0:
            yield f"evals.{name}.steps={each.steps}: expected 0 (only at the end) or more"


def _rows(experiment: Experiment, devices: int) -> Iterator[str]:
    parts = max(experiment.accumulate, 1)
    faults: list[str] = []
    with _gathered(faults):
        experiment.layout.sizes(devices)
    if faults:
        yield from faults
        return
    for rows in dict.fromkeys(spec.rows for spec in specs_of(experiment.data)):
        if rows % parts:
            faults.append(f"accumulate={parts} does not divide a batch of {rows} rows; choose a divisor")
            continue
        with _gathered(faults):
            experiment.layout.check_rows(rows // parts, devices)
    for name, each in experiment.evals.items():
        for data in _data_of(each.evaluator):
            before = len(faults)
            with _gathered(faults):
                for spec in specs_of(data):
                    experiment.layout.check_rows(spec.rows, devices)
            faults[before:] = [f"evals.{name}: {fault}" for fault in faults[before:]]
    yield from faults


def _data_of(evaluator: Any) -> list[Data]:
    if not dataclasses.is_dataclass(evaluator):
        return []
    values = [getattr(evaluator, field.name) for field in dataclasses.fields(evaluator)]
    return [value for value in values if isinstance(value, Data)]


def _parameters(experiment: Experiment, declared: Any, devices: int) -> list[str]:
    faults: list[str] = []
    with _gathered([]):  # impossible sizes were told above
        sizes = experiment.layout.sizes(devices)
        for name, leaf in flatten_names(declared, is_leaf=is_declared).items():
            with _gathered(faults):
                if is_declared(leaf):
                    experiment.layout.spec(name, leaf.value.shape, leaf.dims, sizes)
    return faults


def _objectives(experiment: Experiment, declared: Any, spec: Batch) -> list[str]:
    """Runs the objectives on shapes."""
    faults: list[str] = []

    def outputs(params: Any, batch: Batch) -> tuple[Any, Batch]:
        key = jax.random.key(0)
        batch = experiment.augment(key, batch)
        return experiment.model.apply({"params": params}, batch, train=True, rngs={"dropout": key}), batch

    found, batch = jax.eval_shape(outputs, unbox(declared), spec)
    for name, part in experiment.objectives.items():
        try:
            means = jax.eval_shape(part.objective, found, batch)
        except KeyError as error:
            has = [*(found if isinstance(found, Mapping) else ()), *batch.labels]
            faults.append(f"objectives.{name}: " + unknown_name("output or label", str(error.args[0]), has))
        except UserError as error:
            faults.append(f"objectives.{name}: {error}")
        else:
            if not isinstance(means, Mapping) or not isinstance(means.get("loss"), Mean):
                faults.append(f'objectives.{name}: it must return {{"loss": Mean, ...}}; it returned {_names(means)}')
    return faults


def _names(means: Any) -> str:
    return ", ".join(map(str, means)) if isinstance(means, Mapping) else type(means).__name__
