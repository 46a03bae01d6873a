r"""Stages: a run whose parameters come from other runs, by tables of paths.

    init=FromRuns(
        (
            From("runs/text", {"(embedding|stack|norm)/(.*)": r"\1/\2"}),
            From("runs/towers", {"image/encoder/(.*)": r"media_image/encoder/\1"}, weights=Averaged()),
        ),
        fresh=("media_image/connector/.*",),
    )

A run that starts so is a new one: its optimizer, average, step and data position begin at 0. Everything is decided from
declarations and manifests, and all faults are told at once, before an array is read or made. Which of its parameters
stay as they are is said by the optimizer (`optim.frozen`).
"""

from __future__ import annotations

import collections
import dataclasses
import math
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax

from mmjax.core.errors import CheckpointError, UserError, nearest, unknown_name
from mmjax.core.parameters import table
from mmjax.core.pytrees import matches
from mmjax.ops.patches import resample_table
from mmjax.training import manifest
from mmjax.training.checkpoints import CheckpointStore
from mmjax.training.origin import Lent, Origin, Source, checkpoint_folder
from mmjax.training.treediff import describe

SHOWN = 3
"""Parameters that a fault lists by name."""

Read = Callable[[pathlib.Path], manifest.Manifest]
Shape = tuple[int, ...]
Wanted = Mapping[str, tuple[Shape, tuple[str | None, ...]]]
"""Parameters of this model: path -> (shape, names of its dimensions)."""


@dataclasses.dataclass(frozen=True)
class Scratch:
    """Every parameter starts as the model initialises it."""

    def origin(self, declared: Any, read: Read = manifest.verify) -> Origin:
        """Nobody lends anything."""
        return Origin(declared)


@dataclasses.dataclass(frozen=True)
class Trained:
    """The parameters as the last step has left them."""

    def place(self, contents: manifest.Manifest) -> tuple[str, str]:
        """See `origin.Weights`."""
        return "state", "params/"

    def __str__(self) -> str:
        return ""


@dataclasses.dataclass(frozen=True)
class Averaged:
    """The average over the steps: what the run was judged with (`training.average`)."""

    def place(self, contents: manifest.Manifest) -> tuple[str, str]:
        """See `origin.Weights`. Raises UserError for a run that keeps no average."""
        if not any(name.startswith("average/") for name in contents.trees.get("state", {})):
            raise UserError("this run keeps no average of its weights; take weights=Trained()")
        return "params", ""

    def __str__(self) -> str:
        return ", averaged"


@dataclasses.dataclass(frozen=True)
class Unchanged:
    """A parameter as it was, at the path `to`. A plain text in a table means this."""

    to: str

    def misfit(self, shape: Shape, wanted: Shape, dims: tuple[str | None, ...]) -> str | None:
        """What to do about a saved array of this shape where another is wanted; None where it fits."""
        if shape == wanted:
            return None
        if dims[:1] == ("position",) and shape[1:] == wanted[1:]:
            return "these are positions: `Resampled(path)` in place of the path makes them fit another grid"
        return "build the two models alike there, or leave it out of the table so that it starts fresh"

    def fitted(self, array: jax.Array, wanted: jax.ShapeDtypeStruct) -> jax.Array:
        """See `origin.Fit`."""
        return array

    def __str__(self) -> str:
        return ""


@dataclasses.dataclass(frozen=True)
class Resampled:
    """A table of positions over a grid, for another one, at the path `to` (`ops.patches.resample_table`). was, becomes:
    rows and columns there and here; None is a square."""

    to: str
    was: tuple[int, int] | None = None
    becomes: tuple[int, int] | None = None

    def misfit(self, shape: Shape, wanted: Shape, dims: tuple[str | None, ...]) -> str | None:
        """See `Unchanged.misfit`."""
        if dims[:1] != ("position",) or shape[1:] != wanted[1:]:
            return "only tables of positions, of the same width, can be resampled"
        for name, grid, cells in (("was", self.was, shape[0]), ("becomes", self.becomes, wanted[0])):
            if math.prod(_grid(grid, cells)) != cells:
                return f"{name}={grid or 'None (a square)'} has not {cells} cells; say its rows and columns"
        return None

    def fitted(self, array: jax.Array, wanted: jax.ShapeDtypeStruct) -> jax.Array:
        """See `origin.Fit`."""
        was, becomes = _grid(self.was, array.shape[0]), _grid(self.becomes, wanted.shape[0])

        def resampled(cells: jax.Array) -> jax.Array:
            return resample_table(cells.reshape(*was, -1), becomes).reshape(wanted.shape)

        # Each device resamples the whole table, so that the last bits are the same on any number of them.
        return jax.device_put(jax.jit(resampled, out_shardings=array.sharding)(array), wanted.sharding)

    def __str__(self) -> str:
        return ", resampled"


def _grid(given: tuple[int, int] | None, cells: int) -> tuple[int, int]:
    return given or (math.isqrt(cells), math.isqrt(cells))


@dataclasses.dataclass(frozen=True)
class _Loan:
    """A parameter that goes from one path to another, and the rule that says so."""

    path: str
    here: str
    fit: Unchanged | Resampled
    rule: str


@dataclasses.dataclass(frozen=True)
class From:
    r"""Parameters of another run: of its newest intact checkpoint, or of that of `step`.

    paths: regular expression over the whole path of a parameter there -> its path here (`\1` for groups), or
    `Resampled` to it. The first that matches counts; what none matches is left behind."""

    run: str
    paths: Mapping[str, str | Resampled]
    weights: Trained | Averaged = Trained()
    step: int | None = None

    def source(self, read: Read) -> Source:
        """The checkpoint. Raises CheckpointError where there is none, UserError where it has no such weights."""
        folder = checkpoint_folder(self.run)
        if not folder.is_dir():
            near = nearest(self.run, [str(found.parent) for found in folder.parent.parent.glob("*/checkpoints")])
            advice = (
                f"did you mean {' or '.join(near)}?" if near else f"train it first: `mmjax train ... --run {self.run}`"
            )
            raise CheckpointError(f"there is no checkpoint in it; {advice}")
        contents = CheckpointStore(folder).contents(self.step, read)
        self.weights.place(contents)
        return Source(self.run, contents, self.weights)

    def loans(self, source: Source, wanted: Wanted, faults: list[str]) -> Iterator[_Loan]:
        """What the rules take and where it goes; adds to `faults` what is wrong with them."""
        left = dict(source.leaves)
        if not self.paths:
            faults.append(f"{self.run}: its table of paths is empty; leave the run out, or say what it lends")
        for pattern, rule in self.paths.items():
            fit = Unchanged(rule) if isinstance(rule, str) else rule
            try:
                found = {name: re.fullmatch(pattern, name) for name in left}
                moved = {name: match.expand(fit.to) for name, match in found.items() if match}
            except (re.error, IndexError) as error:
                faults.append(f"{pattern!r} -> {fit.to!r} is not a regular expression and what replaces it: {error}")
                continue
            wrong = [] if moved else [_idle(pattern, source)]
            for name, here in moved.items():
                shape, _ = left.pop(name)
                if fault := _refused(name, shape, here, wanted, fit):
                    wrong.append(fault)
                else:
                    yield _Loan(name, here, fit, f"{pattern!r} of {self.run}")
            faults += [f"{self.run}: {fault}" for fault in _short(wrong)]


@dataclasses.dataclass(frozen=True)
class FromRuns:
    """Parameters that other runs lend. fresh: paths of the others, which start as the model initialises them; a
    parameter that nobody lends and that no pattern of `fresh` matches is a fault."""

    runs: tuple[From, ...]
    fresh: tuple[str, ...] = (".*",)

    def origin(self, declared: Any, read: Read = manifest.verify) -> Origin:
        """What is taken from where, for a model's declared parameters; `read`: how a checkpoint is opened. Raises
        CheckpointError that lists all faults: runs without a checkpoint, rules that match nothing or fill one parameter
        twice, shapes that do not fit, parameters that nobody fills."""
        wanted = {name: (shape, dims) for name, shape, dims, _ in table(declared)}
        faults: list[str] = []
        lent: list[Lent] = []
        rules = collections.defaultdict(list)
        for part in self.runs:
            try:
                source = part.source(read)
            except UserError as error:
                faults.append(f"{part.run}: {error}")
                continue
            loans = list(part.loans(source, wanted, faults))
            lent.append(Lent(source, {loan.here: (loan.path, loan.fit) for loan in loans}))
            for loan in loans:
                rules[loan.here].append(f"{loan.path} ({loan.rule})")
        twice = [f"{here} is filled by {' and by '.join(by)}" for here, by in rules.items() if len(by) > 1]
        faults += [*_short(twice), *([] if faults else self._unfilled(wanted, rules))]
        if faults:
            raise CheckpointError("init: this run cannot start from others:\n- " + "\n- ".join(faults))
        return Origin(declared, tuple(lent))

    def _unfilled(self, wanted: Wanted, filled: Mapping[str, Any]) -> Iterator[str]:
        for pattern in self.fresh:
            if not any(matches(pattern, name) for name in wanted):
                yield f"fresh: {pattern!r} matches no parameter; " + unknown_name("parameter", pattern, wanted)
        left = [n for n in wanted if n not in filled and not any(matches(pattern, n) for pattern in self.fresh)]
        if left:
            named = ", ".join(left[:SHOWN]) + (f" and {len(left) - SHOWN} more" if len(left) > SHOWN else "")
            yield f"nobody fills {named}; add a rule, or let them start anew by `fresh`"


def _idle(pattern: str, source: Source) -> str:
    """What is wrong with a rule that matches nothing."""
    if any(re.fullmatch(pattern, name) for name in source.leaves):
        return f"{pattern!r} matches nothing that the rules before it have left; put it before them"
    near = unknown_name("parameter", pattern, source.leaves)
    return f"{pattern!r} matches no parameter of step {source.contents.step} (it must match the whole path): {near}"


def _refused(path: str, shape: Shape, here: str, wanted: Wanted, fit: Unchanged | Resampled) -> str | None:
    """Why a saved array cannot go to the path `here`, or None."""
    if here not in wanted:
        return f"{path} goes to {here}: " + unknown_name("parameter of this model", here, wanted)
    advice = fit.misfit(shape, *wanted[here])
    if advice is None:
        return None
    alike = [name for name, (other, _) in wanted.items() if other == shape]
    near = f" (of its shape: {', '.join(nearest(here, alike) or alike[:SHOWN])})" if alike else ""
    there, mine = describe((shape, "")), describe((wanted[here][0], ""))
    return f"{path} {there} does not fit {here} {mine}: {advice}{near}"


def _short(faults: Sequence[str]) -> list[str]:
    """Some of many faults of one kind."""
    return [*faults[:SHOWN], *([f"... and {len(faults) - SHOWN} more like these"] if len(faults) > SHOWN else [])]
