"""Results of what a model says: scores beside those of the same model without a modality, and examples of its words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmjax.core.errors import UserError
from mmjax.report import words
from mmjax.report.pictures import Album, Shown, data_of
from mmjax.report.run import Run, Tree

ABSENT = "_absent"
"""How the names of baselines end (see `mmjax.evals.judging`)."""


def is_written(tree: Tree) -> bool:
    """Whether results have the form of `mmjax.evals.judging.Grouping.results`."""
    return {"all", "gain", "slices"} <= tree.keys()


def written(run: Run, name: str, tree: Tree, experiment: Any, notes: list[str]) -> dict[str, Any]:
    """One task: its numbers, the names of its baselines, and examples, right ones apart from wrong ones."""
    known = {key for number in tree["all"].values() for key in number if key.endswith(ABSENT)}
    baselines = {key: "without " + key.removesuffix(ABSENT) for key in sorted(known)}
    found = {"name": name, "step": max(run.evals[name]), "baselines": baselines, "right": [], "wrong": [], **tree}
    try:
        album = Album(data_of(experiment, name) if experiment is not None else None, tree["fingerprint"])
        shown = [_example(one, album(one["id"]), baselines) for one in tree.get("examples", ())]
    except (UserError, OSError, ImportError, LookupError) as error:
        notes.append(f"Pictures of {words.titled(name)} are left out, because its data cannot be used: {error}")
        return found
    half = max((one["score"] or 0.0 for one in shown), default=0.0) / 2
    found["right"] = [one for one in shown if (one["score"] or 0.0) > half]
    found["wrong"] = [one for one in shown if (one["score"] or 0.0) <= half]
    return found


def _example(example: Tree, of: Shown, baselines: Mapping[str, str]) -> dict[str, Any]:
    return {
        **example,
        "of": of,
        "asked": of.labels.get("question", of.caption),
        "blind": {title: example[key] for key, title in baselines.items() if key in example},
    }
