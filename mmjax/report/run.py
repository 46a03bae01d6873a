"""What a run folder says: its record, metrics and results, read with patience for what is missing or torn."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

from mmjax.core.errors import UserError

Tree = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Run:
    """A run folder in memory."""

    folder: pathlib.Path
    record: Tree  # experiment.json
    metrics: tuple[Tree, ...]  # lines of metrics.jsonl of kind "train", by step; a step that was redone counts once
    evals: Mapping[str, Mapping[int, Tree]]  # name -> step -> results
    environment: Tree
    command: str
    start: Tree  # start.json: where the parameters come from
    bad_records: int
    finished: bool

    @classmethod
    def read(cls, folder: pathlib.Path) -> Run:
        """Raises UserError for a folder that is no run."""
        if not (folder / "experiment.json").is_file():
            raise UserError(f"{folder} is not a run folder: it has no experiment.json; `mmjax train FILE.py` makes one")
        record = _json(folder / "experiment.json")
        if not isinstance(record.get("experiment"), Mapping):
            raise UserError(f"{folder / 'experiment.json'} is damaged: it holds no experiment; restore it from a copy")
        return cls(
            folder=folder,
            record=record,
            metrics=tuple(_metrics(folder / "metrics.jsonl")),
            evals=_evals(folder / "evals"),
            environment=_json(folder / "environment.json"),
            command=_text(folder / "command.txt").strip(),
            start=_json(folder / "start.json"),
            bad_records=len(_text(folder / "bad_records.jsonl").splitlines()),
            finished=(folder / "DONE").exists(),
        )

    @property
    def experiment(self) -> Tree:
        """The resolved experiment as JSON."""
        return self.record["experiment"]

    @property
    def name(self) -> str:
        """What the run is called: its experiment file, without the ending."""
        return pathlib.PurePath(str(self.record.get("source", {}).get("file", self.folder.name))).stem

    @property
    def steps(self) -> int:
        """Training steps that were done, by the last line logged."""
        return int(self.metrics[-1]["step"]) if self.metrics else 0

    def latest(self, name: str) -> Tree:
        """The newest results of an evaluator."""
        return self.evals[name][max(self.evals[name])]

    def series(self, key: str) -> tuple[list[float], list[float]]:
        """(steps, values) of a training metric, where it is a finite number."""
        pairs = [(float(row["step"]), float(row[key])) for row in self.metrics if _is_number(row.get(key))]
        return [x for x, _ in pairs], [y for _, y in pairs]

    def metric_names(self) -> list[str]:
        """Names of the numeric training metrics, in order of appearance."""
        return list(
            dict.fromkeys(key for row in self.metrics for key, v in row.items() if _is_number(v) and key != "step")
        )


def _metrics(path: pathlib.Path) -> list[Tree]:
    rows: dict[int, dict[str, Any]] = {}
    for line in _text(path).splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue  # the last line of a run that was killed while writing
        if isinstance(row, dict) and row.get("kind", "train") == "train" and isinstance(row.get("step"), int):
            rows[row["step"]] = row
    return [rows[step] for step in sorted(rows)]


def _evals(folder: pathlib.Path) -> dict[str, dict[int, Tree]]:
    found: dict[str, dict[int, Tree]] = {}
    for path in sorted(folder.rglob("*.json")):
        if path.stem.isdigit():
            tree = _json(path)
            if tree:
                found.setdefault(path.parent.relative_to(folder).as_posix(), {})[int(path.stem)] = tree
    return found


def _json(path: pathlib.Path) -> dict[str, Any]:
    try:
        tree = json.loads(_text(path) or "{}")
    except ValueError:
        return {}
    return tree if isinstance(tree, dict) else {}


def _text(path: pathlib.Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
