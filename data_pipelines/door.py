"""`mmjax data check | show | verify`: looking at data before training on it."""

from __future__ import annotations

import argparse
import json
import pathlib
import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from mmjax.core.errors import DataError, ExitCode, UserError, nearest

if TYPE_CHECKING:
    from data_pipelines.contact_sheet import Card

LOOKED_AT = 10_000
"""Records that `check` reads unless told otherwise."""

SCHEMA_HELP = "what a record holds: image:image,caption:text,label:class? (a .json file, too); left out, it is guessed"


class Parser(argparse.ArgumentParser):
    """argparse whose mistakes are UserErrors."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog}: {message}; `{self.prog} --help` lists what it takes")


def main(words: Sequence[str] | None = None) -> int:
    """Runs one command line and returns its exit code: 0, or 65 for data that will not train. Raises UserError."""
    words = list(sys.argv[1:] if words is None else words)
    commands = {"check": _check, "show": _show, "verify": _verify}
    if words and not words[0].startswith("-") and words[0] not in commands:
        near = nearest(words[0], commands, 1)
        raise UserError(
            f"mmjax data has no command {words[0]!r}; " + (f"did you mean {near[0]}?" if near else "see --help")
        )
    arguments = _parser().parse_args(words or ["--help"])
    try:
        return commands[arguments.command](arguments)
    except OSError as error:
        raise UserError(f"{error.filename or arguments.path}: {error.strerror or error}", code=ExitCode.IO) from None


def _parser() -> Parser:
    parser = Parser(prog="mmjax data", description="Look at data before training on it.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    check = commands.add_parser("check", help="will this data train? one page, with every bad record")
    check.add_argument(
        "path", help="folder of pictures, .csv, .jsonl, .parquet, .tar, .array_record, or a folder of these"
    )
    check.add_argument("--schema", help=SCHEMA_HELP)
    check.add_argument("--limit", type=_whole, default=LOOKED_AT, help=f"records to read ({LOOKED_AT:,}; 0: all)")
    check.add_argument("--json", action="store_true", help="print one JSON document instead of the page")
    show = commands.add_parser("show", help="draw records, or the first batch of an experiment, as a picture")
    show.add_argument("path", help="data as for check, or an experiment FILE.py")
    show.add_argument("settings", nargs="*", metavar="name=value", help="arguments of the experiment")
    show.add_argument("--schema", help=SCHEMA_HELP)
    show.add_argument("--out", type=pathlib.Path, default=pathlib.Path("data.png"), help="picture to write (data.png)")
    show.add_argument("--count", type=_whole, default=16, help="records to draw (16)")
    show.add_argument("--json", action="store_true", help="print where the picture lies as JSON")
    verify = commands.add_parser("verify", help="write hashes of all files, or compare with those written before")
    verify.add_argument("path", help="file or folder")
    action = verify.add_mutually_exclusive_group(required=True)
    action.add_argument("--write", type=pathlib.Path, metavar="HASHES.json", help="write the hashes of all files")
    action.add_argument(
        "--against", type=pathlib.Path, metavar="HASHES.json", help="compare with hashes written before"
    )
    verify.add_argument("--json", action="store_true", help="print one JSON document")
    return parser


def _whole(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"expected a whole number, got {text!r}")
    return int(text)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False, default=str).encode("utf-8", "replace").decode())


def _check(arguments: argparse.Namespace) -> int:
    from data_pipelines.budget import Budget
    from data_pipelines.inspection import inspect
    from data_pipelines.inspection_page import print_page
    from data_pipelines.sources.detect import open_source

    try:
        source = open_source(arguments.path, _schema(arguments.schema))
        facts = inspect(source, source.declared, arguments.path, arguments.limit or None, Budget().ratio)
    except DataError as error:
        if not arguments.json:
            raise
        _print_json({"trains": False, "path": arguments.path, "problems": str(error).split("\n")})
        return int(error.code)
    if arguments.json:
        _print_json(facts.as_json())
    else:
        print_page(facts, next_step(arguments.path, arguments.schema))
    return int(ExitCode.DONE if facts.trains else ExitCode.DATA)


def _schema(text: str | None) -> Any:
    from data_pipelines.schema import Schema

    return None if text is None else Schema.parse(text)


def next_step(path: str, schema: str | None) -> str:
    """The command that trains on this data."""
    words = [f"data={path}", *([f"schema={schema}"] if schema else [])]
    return " ".join(["mmjax train experiments/own_data.py", *map(shlex.quote, words)])


def _show(arguments: argparse.Namespace) -> int:
    from data_pipelines import contact_sheet

    if arguments.settings and not arguments.path.endswith(".py"):
        raise UserError(f"settings ({arguments.settings[0]}) belong to an experiment FILE.py; {arguments.path} is data")
    cards, title = (_batch if arguments.path.endswith(".py") else _records)(arguments)
    sheet = contact_sheet.draw(cards, title)
    target = arguments.out.with_suffix(arguments.out.suffix or ".png")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(target)
    except (OSError, ValueError) as error:  # ValueError: a suffix that names no format of pictures
        raise UserError(f"{target} cannot be written: {error}", code=ExitCode.NO_SPACE) from None
    bad = sum(card.fault is not None for card in cards)
    if arguments.json:
        _print_json({"file": str(target.resolve()), "records": len(cards), "bad": bad})
    else:
        print(f"{target}: {len(cards)} records" + (f", {bad} of them bad (mmjax data check says why)" if bad else ""))
    return int(ExitCode.DONE)


def _records(arguments: argparse.Namespace) -> tuple[list[Card], str]:
    from data_pipelines import contact_sheet
    from data_pipelines.sources.detect import open_source

    source = open_source(arguments.path, _schema(arguments.schema))
    cards = contact_sheet.of_source(source, source.declared, arguments.count)
    return cards, f"{pathlib.Path(arguments.path).name}: {len(cards)} of {len(source):,} records"


def _batch(arguments: argparse.Namespace) -> tuple[list[Card], str]:
    from data_pipelines import contact_sheet
    from mmjax.core import config

    function = _experiment_function(pathlib.Path(arguments.path).expanduser())
    experiment = config.call(function, config.split_settings(arguments.settings))
    cards = contact_sheet.of_data(experiment.data, arguments.count)
    return cards, f"{pathlib.Path(arguments.path).name}: the first {len(cards)} rows of the first batch"


def _experiment_function(file: pathlib.Path) -> Any:
    """`experiment` of the user's own file, which is run."""
    import importlib.util

    if not file.is_file():
        raise UserError(f"there is no experiment file {file}", code=ExitCode.NO_INPUT)
    name = f"mmjax_shown_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    if not callable(getattr(module, "experiment", None)):
        raise UserError(f"{file} has no function `experiment`; it must define `def experiment(...) -> Experiment`")
    return module.experiment


def _verify(arguments: argparse.Namespace) -> int:
    import dataclasses

    from data_pipelines.scrub import compare, write_hashes

    if arguments.write:
        count = write_hashes(arguments.path, arguments.write)
        told = {"file": str(arguments.write), "files": count}
        _print_json(told) if arguments.json else print(f"{arguments.write}: hashes of {count:,} files")
        return int(ExitCode.DONE)
    result = compare(arguments.path, arguments.against)
    if arguments.json:
        _print_json({"intact": result.intact} | dataclasses.asdict(result))
        return int(ExitCode.DONE if result.intact else ExitCode.DATA)
    for word in ("changed", "missing", "added"):
        for name in getattr(result, word):
            print(f"{word:8} {name}")
    print(f"{result.files - len(result.changed) - len(result.missing):,} of {result.files:,} files are as they were")
    return int(ExitCode.DONE if result.intact else ExitCode.DATA)
