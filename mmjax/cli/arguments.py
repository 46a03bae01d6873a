"""What each sub-command accepts. Only the standard library is imported here, so that `--help` costs no JAX."""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Callable, Sequence
from typing import NoReturn

from mmjax.core.errors import UserError, nearest

SETTINGS_HELP = "name=value: an argument of experiment(), or a dotted part of what it returns (optimizer.lr.peak=3e-4)"


class Parser(argparse.ArgumentParser):
    """argparse with our errors: a UserError with the nearest option instead of a usage dump and an exit."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog}: {message}; `{self.prog} --help` lists what it takes")

    def read(self, words: Sequence[str]) -> argparse.Namespace:
        """Parses options and positionals in any order. Raises UserError naming each unknown word."""
        arguments, unknown = self.parse_known_intermixed_args(list(words))
        if unknown:
            raise UserError("\n".join(self._unknown(word) for word in unknown))
        return arguments

    def _unknown(self, word: str) -> str:
        name, equals, text = word.partition("=")
        options = [option for option in self._option_string_actions if option.startswith("--")]
        near = nearest(name, options, 1)
        if not name.startswith("-"):
            return f"{self.prog}: nothing takes the word {word!r}; `{self.prog} --help` lists what it takes"
        if near:
            return f"{self.prog}: no option is called {name!r}; did you mean {near[0]}?"
        written = f"; settings are written {name.lstrip('-')}={text}, without dashes" if equals else ""
        return f"{self.prog}: no option is called {name!r}{written}; `{self.prog} --help` lists what it takes"


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number above zero, got {text!r}")
    return int(text)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _train(parser: Parser) -> None:
    parser.add_argument("file", metavar="FILE.py", type=pathlib.Path, help="a Python file with `def experiment(...)`")
    parser.add_argument("settings", metavar="name=value", nargs="*", help=SETTINGS_HELP)
    parser.add_argument("--run", metavar="DIR", type=pathlib.Path, help="run folder (default: runs/NAME of the file)")
    parser.add_argument("--fresh", action="store_true", help="start anew; an existing run folder is moved aside")
    text = "go on although data, seed, model or init is not what the run was started with (repeat for more than one)"
    parser.add_argument("--allow", metavar="PART", action="append", default=[], help=text)
    parser.add_argument("--dry-run", action="store_true", help="check and describe everything, train nothing")
    _devices(parser)
    _json(parser, "print the last metrics as one line of JSON")


def _eval(parser: Parser) -> None:
    _run_folder(parser)
    parser.add_argument("--evals", metavar="NAME,...", type=_names, help="only these evaluators (default: all)")
    parser.add_argument("--step", metavar="N", type=int, help="checkpoint to judge (default: the newest intact one)")
    _own_file(parser)
    _devices(parser)
    _json(parser)


def _report(parser: Parser) -> None:
    _run_folder(parser)
    parser.add_argument("--out", metavar="FILE.html", type=pathlib.Path, help="where (default: RUN/report.html)")
    _own_file(parser)
    _json(parser, "print where the page lies as JSON")


def _describe(parser: Parser) -> None:
    parser.add_argument("what", metavar="FILE.py|RUN", type=pathlib.Path, help="an experiment file or a run folder")
    parser.add_argument("settings", metavar="name=value", nargs="*", help=SETTINGS_HELP)
    parser.add_argument("--compile", action="store_true", help="compile the step, too, and tell what activations need")
    _devices(parser)
    _own_file(parser)
    _json(parser)


def _search(parser: Parser) -> None:
    _run_folder(parser)
    parser.add_argument("query", help='what to look for, in words: "a red fruit"')
    parser.add_argument("--count", metavar="N", type=_count, default=12, help="how many pictures (default: 12)")
    parser.add_argument("--among", metavar="NAME", help="search the pictures of this evaluator (default: the first)")
    parser.add_argument("--out", metavar="FILE.png", type=pathlib.Path, help="sheet to draw (default: in RUN/search/)")
    _own_file(parser)
    _json(parser)


def _sample(parser: Parser) -> None:
    _run_folder(parser)
    parser.add_argument("prompt", nargs="?", help="what to ask; without it, lines from standard input")
    parser.add_argument(
        "--image", metavar="FILE", type=pathlib.Path, action="append", default=[], help="show a picture"
    )
    parser.add_argument("--chat", action="store_true", help="go on with the conversation, line by line")
    parser.add_argument("--steps", metavar="N", type=_count, default=64, help="longest answer in tokens (default: 64)")
    parser.add_argument("--temperature", metavar="T", type=float, default=0.0, help="0 is greedy (default)")
    parser.add_argument("--top-k", metavar="K", type=_count, help="draw among the K most probable tokens")
    parser.add_argument("--top-p", metavar="P", type=float, help="draw among the most probable that hold P together")
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="of the draws (default: 0)")
    _own_file(parser)
    _json(parser, "print question and answer as JSON, one line each")


def _doctor(parser: Parser) -> None:
    parser.add_argument("--run", metavar="DIR", type=pathlib.Path, default=pathlib.Path("runs"), help="folder of runs")
    _json(parser)


def _run_folder(parser: Parser) -> None:
    parser.add_argument("run", metavar="RUN", type=pathlib.Path, help="a run folder that `mmjax train` wrote")


def _own_file(parser: Parser) -> None:
    text = (
        "the file that the run was trained from, when it holds parts of your own (a run never imports them by itself)"
    )
    parser.add_argument("--experiment", metavar="FILE.py", type=pathlib.Path, help=text)


def _devices(parser: Parser) -> None:
    parser.add_argument("--devices", metavar="N", type=_count, help="make N virtual CPU devices, to try a layout")


def _json(parser: Parser, text: str = "print JSON instead of tables") -> None:
    parser.add_argument("--json", action="store_true", help=text)


COMMANDS: dict[str, tuple[str, Callable[[Parser], None]]] = {
    "train": ("train an experiment file, or go on where it stopped", _train),
    "eval": ("judge a trained run again, and keep the results in its folder", _eval),
    "report": ("write one self-contained HTML page about a run", _report),
    "describe": ("print an experiment: settings, parameters, FLOPs, memory, batch", _describe),
    "search": ("find the pictures that fit some words best", _search),
    "sample": ("ask a run's model something, with or without pictures, and stream its answer", _sample),
    "doctor": ("check devices, versions, disk and permissions before a long run", _doctor),
}
"""The built-in sub-commands: what each is for, and its arguments. `mmjax.cli.NAME` holds its `run(arguments)`."""


def parser_of(command: str) -> Parser:
    """The parser of one built-in sub-command."""
    text, fill = COMMANDS[command]
    parser = Parser(prog=f"mmjax {command}", description=text[0].upper() + text[1:] + ".", allow_abbrev=False)
    fill(parser)
    return parser
