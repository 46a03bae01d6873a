"""Where metrics go: metrics.jsonl, which is the record, and followers that may fail without stopping a run.

A record is one flat JSON object: `step`, `kind` ("train", "eval", "event"), `name` for evaluations, and numbers.
"""

from __future__ import annotations

import json
import logging
import math
import numbers
import os
import pathlib
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from rich.console import Console as Terminal
from rich.live import Live
from rich.text import Text

from mmjax.core import faults

log = logging.getLogger(__name__)

Record = Mapping[str, Any]


class Writer(Protocol):
    """A place where records go."""

    def open(self, step: int) -> None:
        """The run begins, or goes on, after `step`: records of later steps are void."""
        ...

    def write(self, record: Record) -> None:
        """One record."""
        ...

    def close(self) -> None:
        """No more records."""
        ...


class Jsonl:
    """One JSON object per line, each flushed; a number that is not finite becomes null."""

    def __init__(self, path: pathlib.Path):
        self.path = path
        self._file: Any = None

    def open(self, step: int) -> None:
        """Drops a torn last line and every record after `step`."""
        self.close()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            kept = [line for line, record in _lines(self.path) if record["step"] <= step]
            partial = self.path.with_name(f".{self.path.name}.partial")
            partial.write_text("".join(kept), encoding="utf-8")
            os.replace(partial, self.path)
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 (closed by `close`)

    def write(self, record: Record) -> None:
        line = json.dumps({key: _json_number(value) for key, value in record.items()}, allow_nan=False) + "\n"
        half = len(line) // 2
        self._file.write(line[:half])
        faults.point("metrics.write", record["step"])
        self._file.write(line[half:])
        self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def read_metrics(path: pathlib.Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl, without a torn last line; none where there is no file."""
    return [record for _, record in _lines(path)] if path.exists() else []


def _lines(path: pathlib.Path) -> Iterable[tuple[str, dict[str, Any]]]:
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if line.endswith("\n") and isinstance(record, dict) and isinstance(record.get("step"), int):
            yield line, record


def _json_number(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


class TensorBoard:
    """Event files beside the other records, when tensorboardX is installed."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self._events: Any = None

    def open(self, step: int) -> None:
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            return
        self._events = SummaryWriter(str(self.folder), purge_step=step + 1 if step else None, flush_secs=30)

    def write(self, record: Record) -> None:
        if self._events is None:
            return
        prefix = "/".join(str(record[key]) for key in ("kind", "name") if key in record)
        for key, value in record.items():
            if key != "step" and isinstance(value, numbers.Real):
                self._events.add_scalar(f"{prefix}/{key}", float(value), record["step"])

    def close(self) -> None:
        if self._events is not None:
            self._events.close()
            self._events = None


class Console:
    """A live line on a terminal, a line per record elsewhere."""

    def __init__(self, steps: int, terminal: Terminal | None = None):
        self.steps = steps
        self.terminal = terminal or Terminal(soft_wrap=True)
        self._live: Live | None = None
        self._begun: tuple[int, float] | None = None  # (step, monotonic seconds) of the first record

    def open(self, step: int) -> None:
        if step:
            self.terminal.print(f"going on after step {step:,}")
        if self.terminal.is_terminal:
            self._live = Live(Text("compiling ..."), console=self.terminal, refresh_per_second=4)
            self._live.start()

    def write(self, record: Record) -> None:
        if record["kind"] != "train":
            self.terminal.print(_sentence(record), highlight=False)
        elif self._live is not None:
            self._live.update(Text(self._line(record)))
        else:
            self.terminal.print(self._line(record), highlight=False)

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _line(self, record: Record) -> str:
        parts = [f"step {record['step']:>{len(f'{self.steps:,}')},}/{self.steps:,}", f"loss {record['loss']:.4f}"]
        if record.get("examples_per_s"):
            parts.append(f"{record['examples_per_s']:,.0f} examples/s")
        if record.get("skipped"):
            parts.append(f"{record['skipped']:.0f} skipped")
        first, start_s = self._begun = self._begun or (record["step"], time.monotonic())
        if first < record["step"] < self.steps:  # the first record's time is compilation and start-up
            left_s = (time.monotonic() - start_s) / (record["step"] - first) * (self.steps - record["step"])
            parts.append(f"{clock(left_s)} left")
        return "  ".join(parts)


def clock(seconds: float) -> str:
    """`1:02:03` or `2:03`."""
    minutes, second = divmod(max(0, round(seconds)), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def _sentence(record: Record) -> str:
    if record["kind"] == "event":
        return f"step {record['step']:,}  {record['text']}"
    shown = [(key, value) for key, value in record.items() if key not in ("step", "kind", "name", "seconds")]
    found = ", ".join(f"{key} {value:.4g}" for key, value in shown[:6] if isinstance(value, numbers.Real))
    return f"step {record['step']:,}  {record.get('name', '')}: {found}{' ...' if len(shown) > 6 else ''}"


class Writers:
    """All writers of a run. One that fails is told of once; training goes on, and the others are written."""

    def __init__(self, writers: Iterable[Writer]):
        self.writers = tuple(writers)
        self._failed: set[int] = set()

    @classmethod
    def of(cls, folder: pathlib.Path, steps: int) -> Writers:
        """The writers of a run folder: metrics.jsonl, TensorBoard events, the console."""
        return cls((Jsonl(folder / "metrics.jsonl"), TensorBoard(folder), Console(steps)))

    def open(self, step: int) -> None:
        """See `Writer.open`."""
        self._each(lambda writer: writer.open(step))

    def write(self, record: Record) -> None:
        """See `Writer.write`."""
        self._each(lambda writer: writer.write(record))

    def close(self) -> None:
        """See `Writer.close`."""
        self._each(lambda writer: writer.close())

    def _each(self, action: Callable[[Writer], None]) -> None:
        for index, writer in enumerate(self.writers):
            try:
                action(writer)
            except Exception as error:  # a follower may raise anything; the run is worth more than its log
                if index not in self._failed:
                    log.warning("%s failed (%s); training goes on without it", type(writer).__name__, error)
                self._failed.add(index)
