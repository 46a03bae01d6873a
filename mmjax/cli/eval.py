"""`mmjax eval RUN`: judges a run's parameters again, with all of its evaluators or some."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from typing import Any

from mmjax.cli.output import print_json, print_table
from mmjax.cli.restoring import restore
from mmjax.core.errors import UserError, unknown_name
from mmjax.evals.results import is_number
from mmjax.training.experiment import Every
from mmjax.training.records import write_result


def run(arguments: argparse.Namespace) -> None:
    """Writes RUN/evals/NAME/STEP.json for each evaluator and prints what they found."""
    loaded, context = restore(arguments)
    results = {}
    for name, each in chosen(loaded.experiment.evals, arguments.evals).items():
        results[name] = each.evaluator.evaluate(context)
        write_result(arguments.run, name, context.step, results[name])
        if not arguments.json:
            show(f"{name} at step {context.step}", results[name])
    if arguments.json:
        print_json({"run": str(arguments.run), "step": context.step, "evals": results})


def chosen(evals: Mapping[str, Every], names: tuple[str, ...] | None) -> Mapping[str, Every]:
    """The evaluators called `names`, or all. Raises UserError for a name that is none, or without any."""
    unknown = [unknown_name("evaluator", name, evals) for name in names or () if name not in evals]
    if unknown or not evals:
        raise UserError("\n".join(unknown) or "this experiment has no evaluators; give it some: evals={...}")
    return {name: evals[name] for name in names or evals}


def show(title: str, results: Mapping[str, Any]) -> None:
    """A table of every number in a result tree, each beside its baselines (`image_absent`)."""
    found = list(numbers(results))
    beside = sorted({key for _, number in found for key in number if key.endswith("_absent")})
    columns = ("value", "low", "high", "chance", *beside, "n")
    print_table(title, ("result", *columns), [(name, *map(number.get, columns)) for name, number in found])


def numbers(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(path, record) of each number of a result tree, in its order."""
    for name, part in tree.items():
        path = f"{prefix}/{name}" if prefix else str(name)
        if is_number(part):
            yield path, part
        elif isinstance(part, Mapping):
            yield from numbers(part, path)
