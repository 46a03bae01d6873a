"""`mmjax search RUN "a red fruit"`: the pictures that fit some words best, by a run's own model."""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Mapping

from mmjax.cli.output import print_json, print_table
from mmjax.cli.restoring import restore
from mmjax.core.config import fields_of, is_node
from mmjax.core.errors import UserError, unknown_name
from mmjax.core.protocols import Data
from mmjax.evals.prompts import reader_of
from mmjax.evals.search import contact_sheet, search
from mmjax.training.experiment import Every


def run(arguments: argparse.Namespace) -> None:
    """Prints the nearest pictures and draws them on one sheet."""
    loaded, context = restore(arguments)
    data, same = pictures(loaded.experiment.evals, arguments.among)
    hits = search(context, data, reader_of(loaded.experiment.data), arguments.query, arguments.count, same)
    name = re.sub(r"\W+", "_", arguments.query).strip("_")[:60] or "search"
    path = contact_sheet(data, hits, arguments.query, arguments.out or arguments.run / "search" / f"{name}.png")
    if arguments.json:
        print_json({"query": arguments.query, "hits": [dataclasses.asdict(hit) for hit in hits], "sheet": str(path)})
        return
    print_table(arguments.query, ("rank", "cosine", "id", "caption"), [dataclasses.astuple(hit) for hit in hits])
    print(f"drawn in {path}")


def pictures(evals: Mapping[str, Every], name: str | None) -> tuple[Data, str | None]:
    """The pictures to search, those of evaluator `name` or of the first that has some, and the label that tells which
    examples show the same one."""
    found = {key: found for key, each in evals.items() if (found := _pictures_of(each.evaluator)) is not None}
    if name is not None and name not in found:
        raise UserError(unknown_name("evaluator with pictures", name, found))
    if not found:
        raise UserError(
            "no evaluator of this run has pictures to search; give the experiment one, such as Retrieval(...)"
        )
    return found[name or next(iter(found))]


def _pictures_of(evaluator: object) -> tuple[Data, str | None] | None:
    for field in fields_of(evaluator) if is_node(evaluator) else ():
        part = getattr(evaluator, field)
        if isinstance(part, Data) and part.spec().image is not None:
            return part, getattr(evaluator, "same", None)
    return None
