"""Numbers and names as a reader wants them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from mmjax.report.languages import NAMES
from mmjax.report.run import Run, Tree

METRICS = {
    "map": "mAP", "median_rank": "median rank", "accuracy": "accuracy", "balanced": "balanced accuracy",
    "lr": "learning rate", "examples_per_s": "examples per second", "grad_norm": "gradient norm",
    "cider_d": "CIDEr-D", "rouge_l": "ROUGE-L", "bleu1": "BLEU-1", "bleu2": "BLEU-2", "bleu3": "BLEU-3",
    "bleu4": "BLEU-4", "meteor_exact_stem": "METEOR (exact, stem)", "anls": "ANLS",
    "param_norm": "parameter norm", "update_ratio": "update to parameter norm",
}  # fmt: skip


def metric(name: str) -> str:
    """`r10` -> R@10."""
    if name[:1] == "r" and name[1:].isdigit():
        return f"R@{name[1:]}"
    if name[:3] == "top" and name[3:].isdigit():
        return f"top {name[3:]}"
    return METRICS.get(name, name.replace("_", " "))


def titled(name: str) -> str:
    """`unseen_concepts` -> Unseen concepts."""
    text = name.replace("_", " ").replace("/", " · ")
    return text[:1].upper() + text[1:]


def value_name(value: str, label: str) -> str:
    """A label's value as words; languages by name."""
    return NAMES.get(value, value) if label == "language" else value.replace("_", " ")


def plain(value: float | None, name: str = "r1") -> str:
    """A rank as a number, a share as percent."""
    if value is None:
        return "–"
    if name == "median_rank":
        return f"{value:,.1f}".removesuffix(".0")
    if name in ("ratio", "nll", "perplexity"):
        return f"{value:.2f}"
    if 0 < value < 0.0005:
        return "<0.1"
    return f"{value * 100:.1f}".replace("-", "\N{MINUS SIGN}")


def perfect(name: str) -> int:
    """What a score of this name is at best, where bars end."""
    return 10 if name == "cider_d" else 1


def amount(record: Tree, name: str = "r1") -> Markup:
    """A result with its exact value for machines: `<data value="0.84213">84.2</data>`."""
    return Markup('<data value="{}">{}</data>').format(record["value"], plain(record["value"], name))


def interval(record: Tree, name: str = "r1") -> str:
    """low–high."""
    if record["low"] is None:
        return ""
    return f"{plain(record['low'], name)}–{plain(record['high'], name)}"


def count(number: float) -> str:
    """1234567 -> 1,234,567."""
    return f"{number:,.0f}"


def lede(run: Run, rows: int | None) -> str:
    """What was run, in a sentence; `rows` of a batch, where they are known."""
    tree = run.experiment
    model = _type(tree.get("model")) or "model"
    objectives = [
        _type(part.get("objective")) for part in tree.get("objectives", {}).values() if isinstance(part, Mapping)
    ]
    size = f" of {rows:,} examples" if rows else ""
    goal = f", with {' and '.join(filter(None, objectives))}" if any(objectives) else ""
    done = "" if run.finished or not run.steps else f" (this page shows it at step {run.steps:,})"
    return f"{model} trained for {int(tree.get('steps', run.steps)):,} steps{size}{goal}{done}."


def facts(run: Run) -> list[tuple[str, str]]:
    """Short lines beside the title."""
    environment, lines = run.environment, []
    devices, cpu = environment.get("devices"), environment.get("cpu")
    if isinstance(devices, Mapping):
        lines.append(("devices", f"{devices.get('count', 1)} × {devices.get('kind', devices.get('platform', '?'))}"))
    if isinstance(cpu, Mapping):
        lines.append(("processor", f"{cpu.get('model', '?')}, {cpu.get('cores', '?')} cores"))
    settings = run.record.get("source", {}).get("settings", {})
    if settings:
        lines.append(("settings", " ".join(f"{name}={value}" for name, value in settings.items())))
    if run.bad_records:
        lines.append(("bad records", count(run.bad_records)))
    return lines


def _type(tree: Any) -> str:
    return tree["$type"].rpartition(":")[2] if isinstance(tree, Mapping) and "$type" in tree else ""


def flat(tree: Any, prefix: str = "") -> list[tuple[str, str]]:
    """A tree of settings as (dotted name, text) lines."""
    if isinstance(tree, Mapping) and tree and not {"$ref", "$dtype", "$float"} & tree.keys():
        head = [(prefix, _type(tree))] if "$type" in tree and prefix else []
        return head + [
            line
            for name, item in tree.items()
            if name != "$type"
            for line in flat(item, f"{prefix}.{name}" if prefix else str(name))
        ]
    if isinstance(tree, Sequence) and not isinstance(tree, str) and any(isinstance(item, Mapping) for item in tree):
        return [line for i, item in enumerate(tree) for line in flat(item, f"{prefix}.{i}")]
    if isinstance(tree, Mapping):
        return [(prefix, next(iter(tree.values()), "none"))]
    return [(prefix, ", ".join(map(str, tree)) if isinstance(tree, list | tuple) else str(tree))]


def card_lines(card: Tree) -> list[tuple[str, str]]:
    """A data card as (name, text) lines: one per entry, or per part of an entry that has parts."""
    lines = []
    for name, entry in card.items():
        parts = isinstance(entry, Mapping) and entry and all(isinstance(part, Mapping) for part in entry.values())
        lines += [(f"{name}: {part}", _told(what)) for part, what in entry.items()] if parts else [(name, _told(entry))]
    return lines


def _told(value: Any) -> str:
    """In one line: `emoji 2,877, pictures (openmoji 2,877, noto 2,450)`; sentences follow each other."""
    if isinstance(value, Mapping):
        pairs = [(name, _told(item), isinstance(item, Mapping)) for name, item in value.items()]
        return ", ".join(f"{name} ({text})" if nested else f"{name} {text}" for name, text, nested in pairs)
    if isinstance(value, list | tuple):
        return (" " if any(str(item).endswith(".") for item in value) else ", ").join(map(_told, value))
    return count(value) if isinstance(value, int) and not isinstance(value, bool) else str(value)
