"""`mmjax train FILE.py [name=value ...]`: trains in a run folder; the same command again goes on where it stopped."""

from __future__ import annotations

import argparse
import json
import pathlib

import jax
from rich.console import Console as Terminal

from mmjax.cli.describe import facts, show
from mmjax.cli.loading import Loaded, from_file
from mmjax.cli.output import print_json
from mmjax.core.config import split_settings
from mmjax.training import runfolder
from mmjax.training.check import check
from mmjax.training.loop import train
from mmjax.training.supervisor import Supervisor, run_supervised
from mmjax.training.writers import Console, Jsonl, TensorBoard, Writers, read_metrics


def run(arguments: argparse.Namespace) -> int:
    """Checks everything from shapes, then trains; returns the exit code that tells a scheduler whether to try again."""
    if arguments.dry_run:
        _describe(_checked(arguments), arguments.json)
        return 0
    return int(run_supervised(lambda: _train(_checked(arguments), arguments)))


def _checked(arguments: argparse.Namespace) -> Loaded:
    loaded = from_file(arguments.file, split_settings(arguments.settings))
    check(loaded.experiment, len(jax.devices()))
    return loaded


def _train(loaded: Loaded, arguments: argparse.Namespace) -> None:
    folder = arguments.run or pathlib.Path("runs") / loaded.name
    if arguments.fresh and folder.exists():
        print(f"the earlier run is now {move_aside(folder)}")
    terminal = Terminal(soft_wrap=True, stderr=arguments.json)  # standard output is for the JSON alone
    with Supervisor(folder) as supervisor:
        steps = loaded.experiment.steps
        writers = Writers((Jsonl(folder / "metrics.jsonl"), TensorBoard(folder), Console(steps, terminal)))
        train(
            loaded.experiment,
            folder,
            writers=writers,
            supervisor=supervisor,
            source=loaded.source,
            allow=arguments.allow,
        )
    if arguments.json:
        trained = [record for record in read_metrics(folder / "metrics.jsonl") if record.get("kind") == "train"]
        print(json.dumps({"run": str(folder), **(trained[-1] if trained else {})}))
    else:
        terminal.print(f"done: {folder}; `mmjax report {folder}` draws it", highlight=False)


def _describe(loaded: Loaded, json_wanted: bool) -> None:
    if json_wanted:
        print_json(facts(loaded))
    else:
        show(loaded)
        print("\neverything fits; nothing was trained")


def move_aside(folder: pathlib.Path) -> pathlib.Path:
    """Renames a run folder that nobody trains in to FOLDER.1, FOLDER.2, ...: what was computed is not ours to delete.
    Raises UserError for a folder that is no run, or that a living process holds."""
    runfolder.prepare(folder)
    lock = runfolder.RunLock(folder)
    lock.acquire()
    aside = next(path for n in range(1, 10_000) if not (path := folder.with_name(f"{folder.name}.{n}")).exists())
    folder.rename(aside)
    runfolder.RunLock(aside).release()
    return aside
