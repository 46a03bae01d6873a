"""Errors a user can act on, and the exit codes that job schedulers read.

A `UserError` says what was wrong, what was given, what was expected and what to do. The command line prints it as one
message without a stack trace and leaves with its `code`.
"""

from __future__ import annotations

import difflib
import enum
from collections.abc import Iterable, Mapping
from typing import TypeVar

Entry = TypeVar("Entry")


class ExitCode(enum.IntEnum):
    """Stable process exit codes; schedulers may rely on them (sysexits.h where it has a fitting one)."""

    DONE = 0
    USAGE = 2  # wrong command line or configuration; never retry
    DATA = 65  # data budget, schema or integrity; never retry
    NO_INPUT = 66  # no usable checkpoint or input; never retry
    INTERNAL = 70  # a bug; limited retry
    NO_SPACE = 73  # run folder not writable or full; never retry
    IO = 74  # storage failed after retries; limited retry
    RETRY = 75  # preempted, peer lost or hung: state is safe, retry without limit
    NUMERICS = 76  # the numbers went bad beyond the budget; never retry
    PERMISSION = 77


class UserError(Exception):
    """Something the user gave or set up is wrong. `str(error)` is the whole message."""

    code = ExitCode.USAGE

    def __init__(self, message: str, *, code: ExitCode | None = None):
        super().__init__(message)
        if code is not None:
            self.code = code


class DataError(UserError):
    """The data cannot be trained on: empty, damaged, or not what its schema says."""

    code = ExitCode.DATA


class CheckpointError(UserError):
    """No checkpoint could be restored, or it does not fit the model."""

    code = ExitCode.NO_INPUT


class StorageError(UserError):
    """The run folder cannot be written."""

    code = ExitCode.NO_SPACE


def nearest(name: str, choices: Iterable[str], count: int = 3) -> list[str]:
    """The `count` choices that look most like `name`, best first; a choice's last dotted part counts too."""
    pool = list(dict.fromkeys(choices))

    def likeness(choice: str) -> float:
        whole = difflib.SequenceMatcher(None, name.lower(), choice.lower()).ratio()
        last = difflib.SequenceMatcher(None, name.rsplit(".", 1)[-1].lower(), choice.rsplit(".", 1)[-1].lower()).ratio()
        return max(whole, 0.95 * last)

    ranked = sorted(((likeness(choice), choice) for choice in pool), key=lambda pair: (-pair[0], pair[1]))
    return [choice for score, choice in ranked[:count] if score > 0.5]


def unknown_name(kind: str, name: str, choices: Iterable[str]) -> str:
    """One sentence for a name that does not exist: the nearest ones, or all when none is near."""
    choices = list(choices)
    near = nearest(name, choices)
    if near:
        return f"no {kind} is called {name!r}; did you mean {' or '.join(near)}?"
    listed = ", ".join(sorted(choices)[:20]) or "(none)"
    return f"no {kind} is called {name!r}; there are: {listed}"


def check_names(kind: str, names: Iterable[str], choices: Iterable[str]) -> None:
    """Raises UserError, with the nearest choices, for the first of `names` that is none of `choices`."""
    choices = list(choices)
    for name in names:
        if name not in choices:
            raise UserError(unknown_name(kind, name, choices))


def look_up(kind: str, name: str, table: Mapping[str, Entry]) -> Entry:
    """The entry of `table` called `name`. Raises UserError with the nearest names."""
    check_names(kind, (name,), table)
    return table[name]
