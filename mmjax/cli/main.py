"""`mmjax COMMAND ...`: finds the sub-command, imports only it, and turns users' mistakes into one clear message."""

from __future__ import annotations

import errno
import importlib
import importlib.metadata
import os
import re
import sys
import traceback
from collections.abc import Sequence

import mmjax
from mmjax.cli.arguments import COMMANDS, parser_of
from mmjax.core.errors import ExitCode, UserError, unknown_name

GROUP = "mmjax.commands"
"""Entry points of this group are further sub-commands: functions of the remaining words that return an exit code."""

STORAGE = {
    errno.ENOSPC: "free some space, or write somewhere else",
    errno.EDQUOT: "free some of your quota, or write somewhere else",
    errno.EACCES: "give a path that you may read and write",
    errno.EROFS: "give a path on a disk that can be written",
}
"""What an operating system refuses, and what to do about it."""


def main(words: Sequence[str] | None = None) -> int:
    """Runs one command line and returns its exit code; only bugs end in a stack trace."""
    words = list(sys.argv[1:] if words is None else words)
    try:
        return _dispatch(words)
    except UserError as error:
        if os.environ.get("MMJAX_TRACE"):
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        return int(error.code)
    except SystemExit as stop:  # argparse after --help
        return stop.code if isinstance(stop.code, int) else int(ExitCode.DONE if stop.code is None else ExitCode.USAGE)
    except KeyboardInterrupt:
        print("stopped by the keyboard", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `mmjax describe ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return int(ExitCode.DONE)
    except OSError as error:
        if error.errno not in STORAGE:
            raise
        print(f"error: {error.filename or 'writing'}: {error.strerror}; {STORAGE[error.errno]}", file=sys.stderr)
        return int(ExitCode.NO_SPACE)


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview())
        return int(ExitCode.DONE)
    if words[0] in ("-V", "--version", "version"):
        print(f"mmjax {mmjax.__version__}")
        return int(ExitCode.DONE)
    command, rest = words[0], words[1:]
    if command not in COMMANDS:
        return _added(command)(rest) or int(ExitCode.DONE)
    arguments = parser_of(command).read(rest)
    if getattr(arguments, "devices", None):
        virtual_devices(arguments.devices)
    module = importlib.import_module(f"mmjax.cli.{command}")
    if "jax" in sys.modules:  # a command that does without it need not wait for it
        importlib.import_module("mmjax.core.allocator").keep_pages()
        importlib.import_module("mmjax.core.compilation").keep_programs()
    return module.run(arguments) or int(ExitCode.DONE)


def overview() -> str:
    """The page that `mmjax --help` prints."""
    lines = ["usage: mmjax COMMAND ...", "", mmjax.__doc__.splitlines()[0], "", "commands:"]
    lines += [f"  {name:10} {text}" for name, (text, _) in COMMANDS.items()]
    lines += [f"  {point.name:10} added by {point.value.split('.')[0]}" for point in added_commands().values()]
    return "\n".join(
        [*lines, "", "`mmjax COMMAND --help` says what each takes; `mmjax --version` which version this is."]
    )


def added_commands() -> dict[str, importlib.metadata.EntryPoint]:
    """Sub-commands that installed packages add, by name; built-in ones cannot be replaced."""
    points = importlib.metadata.entry_points(group=GROUP)
    return {point.name: point for point in points if point.name not in COMMANDS}


def _added(command: str):
    points = added_commands()
    if command not in points:
        raise UserError(unknown_name("command", command, [*COMMANDS, *points]))
    try:
        return points[command].load()
    except ImportError as error:
        raise UserError(
            f"`mmjax {command}` is added by {points[command].value}, which cannot be imported: {error}"
        ) from None


def virtual_devices(count: int) -> None:
    """Splits the CPU into `count` devices; must come before JAX starts."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["JAX_NUM_CPU_DEVICES"] = str(count)
    older = re.sub(r"--xla_force_host_platform_device_count=\d+", "", os.environ.get("XLA_FLAGS", ""))
    os.environ["XLA_FLAGS"] = older.strip()  # JAX refuses to be told twice
