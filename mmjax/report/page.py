"""The report: one HTML page about a run that needs no network, no script and no other file."""

from __future__ import annotations

import dataclasses
import datetime
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jinja2

from mmjax.core import config
from mmjax.core.errors import UserError
from mmjax.core.protocols import Data, specs_of
from mmjax.report import words
from mmjax.report.charts import Series, heat_map, line_chart
from mmjax.report.pictures import Album, data_of
from mmjax.report.run import Run, Tree
from mmjax.report.written import is_written, written

HEADLINE = ("loss", "lr", "learning_rate", "examples_per_s", "examples/s", "grad_norm")
"""Training metrics in the order in which they are drawn; others follow, up to `CURVES`."""
CURVES = 9


def write_report(
    folder: pathlib.Path | str, out: pathlib.Path | str | None = None, experiment: Any = None
) -> pathlib.Path:
    """Writes RUN/report.html (or `out`) and returns its path.

    Pictures are read through the experiment's data: `experiment`, or the one that the run folder's JSON holds. Where
    that cannot be rebuilt or its data cannot be read, the page says so and stands without pictures. Raises UserError
    for a folder that is no run."""
    run = Run.read(pathlib.Path(folder))
    notes: list[str] = []
    if experiment is None:
        experiment = _rebuilt(run, notes)
    path = pathlib.Path(out) if out is not None else run.folder / "report.html"
    page = render(run, experiment, notes)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path


@dataclasses.dataclass(frozen=True)
class Sources:
    """What a page needs of an experiment: where its pictures come from. The model may have changed since."""

    data: Any
    evals: Mapping[str, Any]


def _rebuilt(run: Run, notes: list[str]) -> Sources | None:
    """The data and evaluators of the run's JSON, or None and a note that says why not."""
    try:
        return Sources(*(config.from_json(run.experiment[name]) for name in ("data", "evals")))
    except (UserError, KeyError) as error:
        reason = "its record names no data" if isinstance(error, KeyError) else str(error)
        notes.append(f"Pictures are left out, because the experiment could not be rebuilt: {reason}")
        return None


def render(run: Run, experiment: Any, notes: list[str]) -> str:
    """The page's text. Everything from data, labels and settings is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mmjax.report", "templates"), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters |= {
        "amount": words.amount, "interval": words.interval, "plain": words.plain, "metric": words.metric,
        "titled": words.titled, "perfect": words.perfect, "value_name": words.value_name, "count": words.count,
    }  # fmt: skip
    planned = list(getattr(experiment, "evals", {}))  # its order is the author's; results without a plan come last
    judged = {name: run.latest(name) for name in dict.fromkeys([*planned, *run.evals]) if name in run.evals}
    retrievals = [
        _retrieval(run, name, tree, experiment, notes) for name, tree in judged.items() if _is(tree, "retrieval")
    ]
    spoken = [written(run, name, tree, experiment, notes) for name, tree in judged.items() if is_written(tree)]
    classifiers = [{"name": name, **tree} for name, tree in judged.items() if "recall" in tree and "all" in tree]
    return environment.get_template("report.html.j2").render(
        run=run,
        lede=words.lede(run, _try(lambda: _rows(experiment.data), notes) if experiment is not None else None),
        facts=words.facts(run),
        retrievals=retrievals,
        classifiers=classifiers,
        spoken=spoken,
        others={name: tree for name, tree in judged.items() if not any(kind(tree) for kind in _SHOWN)},
        curves=_curves(run),
        progress=_progress(run),
        cards=_cards(experiment, notes) if experiment is not None else [],
        setup=words.flat(run.experiment),
        environment=words.flat(run.environment),
        notes=list(dict.fromkeys(notes)),
        written=datetime.datetime.now(datetime.UTC).strftime("%-d %B %Y"),
    )


_SHOWN = (lambda tree: _is(tree, "retrieval"), lambda tree: "recall" in tree, is_written)
"""What results must be for the page to have a section for them."""


def _is(tree: Tree, kind: str) -> bool:
    return tree.get("kind") == kind


def _rows(data: Data) -> int | None:
    """Rows of a batch, where all have as many."""
    rows = {spec.rows for spec in specs_of(data)}
    return rows.pop() if len(rows) == 1 else None


def _try(read: Callable[[], Any], notes: list[str]) -> Any:
    """What `read` finds in the data; None and a note where it cannot: a report outlives its data."""
    try:
        return read()
    except (UserError, OSError, ImportError, LookupError) as error:
        notes.append(f"Some of the data cannot be read: {error}")
        return None


# ----------------------------------------------------------------------------------------------------------- retrieval


def _retrieval(run: Run, name: str, tree: Tree, experiment: Any, notes: list[str]) -> dict[str, Any]:
    """One retrieval task: both directions, with examples and heat map turned into pictures."""
    query, gallery = tree["modalities"]["query"], tree["modalities"]["gallery"]
    directions = [
        {"title": f"{a} to {b}".capitalize(), "key": f"{a}_to_{b}", **tree[f"{a}_to_{b}"]}
        for a, b in ((query, gallery), (gallery, query))
    ]
    found = {"name": name, "step": max(run.evals[name]), "macro": tree.get("macro"), "directions": directions}
    try:
        album = Album(data_of(experiment, name) if experiment is not None else None, tree["fingerprint"])
        found["right"], found["wrong"] = _examples(directions[0]["examples"], album)
        found["told"] = _examples(directions[1]["examples"], album)
        heat = tree["heatmap"]
        shown = [album(index) for index in heat["ids"]]
        found["heat"] = heat_map(heat["cosine"], [one.caption for one in shown], [one.uri for one in shown])
    except (UserError, OSError, ImportError, LookupError) as error:
        notes.append(f"Pictures of {words.titled(name)} are left out, because its data cannot be used: {error}")
        found |= {"right": [], "wrong": [], "told": ([], []), "heat": ""}
    return found


def _examples(examples: Sequence[Tree], album: Album) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(found first, not found first), each example with what the album shows of it."""
    shown = [
        {
            **example,
            "query": album(example["id"]),
            "shown": [{**item, "of": album(item["id"])} for item in example["found"]],
            "wanted": [album(index) for index in example["right"][:1]],
        }
        for example in examples
    ]
    return [one for one in shown if one["rank"] == 1], [one for one in shown if one["rank"] != 1]


# -------------------------------------------------------------------------------------------------------------- curves


def _curves(run: Run) -> list[dict[str, Any]]:
    """The loss first and large, then small ones."""
    names = [name for name in HEADLINE if name in run.metric_names()]
    names += [name for name in run.metric_names() if name not in names and name not in ("time", "examples", "epoch")]
    curves, seen = [], []
    for name in names:
        x, y = run.series(name)
        if y not in seen and (len(set(y)) > 1 or name in HEADLINE):  # a lone objective repeats the loss
            size = (900, 280) if not curves else (360, 190)
            curves.append({"name": name, "chart": line_chart([Series(name, x, y)], name, *size)})
            seen.append(y)
    return curves[:CURVES]


def _progress(run: Run) -> Any:
    """The first recall of every retrieval task over training, where it was judged more than once."""
    lines = []
    for name, by_step in run.evals.items():
        points = [(step, value) for step, tree in sorted(by_step.items()) if (value := _first_recall(tree)) is not None]
        if len(points) > 1:
            lines.append(Series(words.titled(name), *map(list, zip(*points, strict=True))))
    return line_chart(lines, "recall at 1 during training", 900, 260, percent=True)


def _first_recall(tree: Tree) -> float | None:
    if not _is(tree, "retrieval"):
        return None
    key = "{query}_to_{gallery}".format(**tree["modalities"])
    return next(iter(tree[key]["all"].values()))["value"]


def _cards(experiment: Any, notes: list[str]) -> list[tuple[str, Sequence[tuple[str, Any]]]]:
    """What the data say about themselves: licences, attribution, versions (a source's `card()`), and fingerprints."""
    cards: list[tuple[str, Sequence[tuple[str, Any]]]] = []
    data = {"training data": experiment.data} | {name: data_of(experiment, name) for name in experiment.evals}
    for name, one in data.items():
        described = next((p for p in (one, getattr(one, "source", None)) if callable(getattr(p, "card", None))), None)
        card = _try(lambda part=described: words.card_lines(part.card()), notes) if described is not None else None
        if card and card not in [known for _, known in cards]:
            cards.append((name, card))
    fingerprint = _try(lambda: list(experiment.data.fingerprint().items()), notes)
    return [*cards, ("fingerprint of the training data", fingerprint)] if fingerprint else cards
