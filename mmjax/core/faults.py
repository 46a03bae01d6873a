"""Named fault points: where a test can make a run die, fail, hang or go wrong, on purpose and at an exact place.

Code that writes, reads or waits calls `faults.point("checkpoint.rename", step)`. Nothing happens unless `MMJAX_FAULTS`
names the point, and that is refused unless `MMJAX_TESTING=1`. A specification is a comma-separated list of

    name[:index][#hit]=action[:argument]

`index` is what the point was called with (a step, an example; `*` is any), `hit` counts the matching calls from 1:

    step:7=kill    checkpoint.rename#2=kill    step:*=sleep:0.05    checkpoint.write=oserror:ENOSPC    grad:5=nan
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from mmjax.core.errors import UserError, unknown_name

POINTS = {
    "compile": "before the train step is compiled; index: none",
    "data.start": "before the first batch is asked for; index: position",
    "data.read": "before each batch is read; index: position (examples seen)",
    "step": "before each train step is dispatched; index: step",
    "grad": "the gradients inside the compiled step (`nan`, `scale`); index: step",
    "eval": "before an evaluator runs; index: step",
    "metrics.write": "between the two halves of a line of metrics.jsonl; index: step",
    "checkpoint.begin": "a save was asked for, nothing is written; index: step",
    "checkpoint.write": "arrays are being written in the background; index: step",
    "checkpoint.written": "Orbax has finished, there is no manifest; index: step",
    "checkpoint.manifest": "the manifest is written, nothing is flushed; index: step",
    "checkpoint.rename": "all is flushed, the step is not yet visible; index: step",
    "checkpoint.published": "renamed, the parent folder is not flushed; index: step",
    "checkpoint.retire": "before an old step is taken out of sight; index: the old step",
    "checkpoint.delete": "the old step is out of sight, not yet deleted; index: the old step",
    "checkpoint.read": "before the files of a step are read and verified; index: step",
}
"""Every fault point there is, and when it is reached. The tests exercise each."""

_SPEC = re.compile(
    r"(?P<name>[a-z_.]+)(?:[:@](?P<index>\d+|\*))?(?:#(?P<hit>\d+))?=(?P<action>[a-z]+)(?::(?P<argument>\S+))?"
)


@dataclasses.dataclass
class Fault:
    """One parsed specification; `hits` counts the calls it has matched."""

    name: str
    index: int | None
    hit: int | None
    action: str
    argument: str
    hits: int = 0

    def matches(self, name: str, index: int | None) -> bool:
        if name != self.name or self.index not in (None, index):
            return False
        self.hits += 1
        return self.hit in (None, self.hits)


def _raise(fault: Fault) -> None:
    raise RuntimeError(f"injected fault at {fault.name}")


def _oserror(fault: Fault) -> None:
    number = getattr(errno, fault.argument or "EIO")
    raise OSError(number, os.strerror(number), f"(injected at {fault.name})")


_ACTIONS: dict[str, Callable[[Fault], Any]] = {
    "kill": lambda fault: os.kill(os.getpid(), signal.SIGKILL),
    "sigterm": lambda fault: os.kill(os.getpid(), signal.SIGTERM),
    "exit": lambda fault: os._exit(int(fault.argument or 1)),
    "sleep": lambda fault: time.sleep(float(fault.argument)),
    "hang": lambda fault: threading.Event().wait(),
    "raise": _raise,
    "oserror": _oserror,
}
_FACTORS: dict[str, Callable[[Fault], float]] = {
    "nan": lambda fault: float("nan"),
    "scale": lambda fault: float(fault.argument),
}

_armed: list[Fault] | None = None  # None: the environment has not been read yet


def point(name: str, index: int | None = None) -> None:
    """Reaches the fault point `name`: does what an armed fault says, nothing otherwise."""
    faults = _armed if _armed is not None else _arm(os.environ.get("MMJAX_FAULTS", ""))
    if not faults:
        return
    if name not in POINTS:
        raise KeyError(unknown_name("fault point", name, POINTS))
    for fault in faults:
        if fault.action in _ACTIONS and fault.matches(name, index):
            _ACTIONS[fault.action](fault)


def traced(name: str, index: Any, tree: Any) -> Any:
    """`tree` inside a compiled function: its floating leaves are multiplied by NaN or a factor at step `index` (traced)
    where a fault is armed at `name`; otherwise it is `tree` itself, with nothing added to the program."""
    faults = _armed if _armed is not None else _arm(os.environ.get("MMJAX_FAULTS", ""))
    factors = [(fault.index, _FACTORS[fault.action](fault)) for fault in faults if fault.name == name]
    if not factors:
        return tree
    import jax
    import jax.numpy as jnp

    factor = 1.0
    for when, value in factors:
        factor = jnp.where(True if when is None else index == when, value, factor)
    scaled = lambda x: x * factor.astype(x.dtype) if jnp.issubdtype(x.dtype, jnp.inexact) else x  # noqa: E731
    return jax.tree.map(scaled, tree)


def parse(text: str) -> list[Fault]:
    """The faults of a specification. Raises UserError for an unknown point, action or form."""
    faults = []
    for word in filter(None, (part.strip() for part in re.split("[,;]", text))):
        found = _SPEC.fullmatch(word)
        if found is None:
            raise UserError(f"MMJAX_FAULTS: {word!r} is not name[:index][#hit]=action[:argument], such as step:7=kill")
        name, action = found["name"], found["action"]
        if name not in POINTS:
            raise UserError("MMJAX_FAULTS: " + unknown_name("fault point", name, POINTS))
        if action not in _ACTIONS | _FACTORS:
            raise UserError("MMJAX_FAULTS: " + unknown_name("action", action, _ACTIONS | _FACTORS))
        index = None if found["index"] in (None, "*") else int(found["index"])
        faults.append(Fault(name, index, int(found["hit"]) if found["hit"] else None, action, found["argument"] or ""))
    return faults


def _arm(text: str) -> list[Fault]:
    global _armed
    if text and os.environ.get("MMJAX_TESTING") != "1":
        raise UserError(
            f"MMJAX_FAULTS={text} would break this run on purpose; that is for tests only. "
            "Unset MMJAX_FAULTS (or set MMJAX_TESTING=1 if breaking it is what you want)"
        )
    _armed = parse(text)
    return _armed


@contextlib.contextmanager
def injected(text: str) -> Iterator[list[Fault]]:
    """Arms the faults of `text` in this process for a while; needs `MMJAX_TESTING=1` as the environment form does."""
    global _armed
    before = _armed
    try:
        yield _arm(text)
    finally:
        _armed = before
