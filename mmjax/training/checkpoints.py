"""Checkpoints that can be trusted: Orbax writes the arrays, this file decides what counts as saved.

    RUN/checkpoints/<step>/           published: complete, flushed, hashed (`manifest.json`), visible by one rename
    RUN/checkpoints/<step>.corrupt    was found damaged; kept for you, never restored
    RUN/checkpoints/.<step>.partial   being written; removed by the next run that saves here

A save costs the training loop the copy from device to host; writing, hashing, flushing and renaming happen behind it.
For one process. A published folder is also an ordinary Orbax checkpoint whose items are plain nested dictionaries.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import errno
import json
import logging
import pathlib
import re
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import SingleDeviceSharding

from mmjax.core import faults
from mmjax.core.errors import CheckpointError, ExitCode, StorageError, UserError, unknown_name
from mmjax.core.pytrees import byte_count, flatten_names
from mmjax.training import durable, finite, manifest, treediff

log = logging.getLogger(__name__)

_STEP = re.compile(r"0|[1-9]\d*")
_CORRUPT = re.compile(r"(0|[1-9]\d*)\.corrupt(\.\d+)?")


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """When to save and what to keep. every: steps between saves. keep: how many of the newest intact ones stay.
    keep_every: steps that are a multiple of it stay for good."""

    every: int = 500
    keep: int = 3
    keep_every: int | None = None

    def __post_init__(self) -> None:
        for name in ("every", "keep", "keep_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"checkpoints.{name}={value}: expected a whole number from 1 on")


@dataclasses.dataclass(frozen=True)
class Restored:
    """What came back: the step it was saved after, the items that were asked for, and its JSON meta."""

    step: int
    items: Mapping[str, Any]
    meta: Mapping[str, Any]


class CheckpointStore:
    """The checkpoints of one run. Reading needs no lock; only the run that holds the folder may save.

    The loop asks `due(step)`, calls `save`, and calls `check()` after each step, where the failure of a save in the
    background is raised (StorageError 73 when the disk is full, 74 when storage fails for longer than its retries)."""

    def __init__(self, folder: pathlib.Path | str, policy: Checkpoints = Checkpoints()):
        self.folder = pathlib.Path(folder).absolute()  # Orbax takes no other
        self.policy = policy
        self._intact: set[int] = set()  # verified by this process: hashed after publishing, or before restoring
        self._pool = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: concurrent.futures.Future[None] | None = None
        self._step: int | None = None  # the step whose state was saved or restored last
        self._failures = 0  # transient ones in a row
        self._clean = False

    # ---------------------------------------------------------------------------------------------------------- saving

    def due(self, step: int) -> bool:
        """Whether the state after `step` is to be saved: by the policy, or because the last save failed transiently."""
        return self._failures > 0 or step % self.policy.every == 0

    def save(self, step: int, items: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
        """Saves trees of arrays and JSON meta as `step`; returns when the arrays may be donated, before all is written.

        Raises StorageError (73) where they cannot fit. Values that are not finite are never published: the next `check`
        or `wait` raises UserError (76). Waits for a save that is still running."""
        self.wait()
        if step == self._step and step in self._intact:
            return
        faults.point("checkpoint.begin", step)
        meta = json.loads(json.dumps(meta))
        with jax.transfer_guard("allow"):
            try:
                partial = self._prepare(step, items)
                self._pending, self._step = self._start(step, partial, items, meta), step
            except OSError as error:
                raise durable.storage_error(f"saving checkpoint {step}", error, self.folder) from error

    def save_now(self, step: int, items: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
        """`save` that has succeeded when it returns; a transient failure is retried. For the end of a run."""
        self.save(step, items, meta)
        self.wait()
        while self._failures:
            self.save(step, items, meta)
            self.wait()

    def check(self) -> None:
        """Raises the error of a save that has failed in the background; costs nothing otherwise. A transient one is
        forgiven up to three times in a row: `due` then asks for another save."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Returns when no save is running; raises as `check` does."""
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        try:
            pending.result()
            self._failures = 0
        except Exception as error:
            what = f"saving checkpoint {self._step}"
            if durable.cause(error) is None:
                raise
            if not durable.is_transient(error) or self._failures + 1 >= durable.ATTEMPTS:
                raise durable.storage_error(what, error, self.folder) from error
            self._failures += 1
            log.warning("%s failed (%s); it is tried again", what, durable.cause(error))

    def _prepare(self, step: int, items: Mapping[str, Any]) -> pathlib.Path:
        """A name to write to, in a folder without leftovers and with room."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self._clean:
            self._clear_leftovers()
            self._clean = True
        need, free = byte_count(dict(items)), shutil.disk_usage(self.folder).free
        if free < need:
            raise StorageError(
                f"checkpoint {step} needs {_size(need)}, and {self.folder} has {_size(free)} left; nothing was written "
                "and earlier checkpoints are intact. Free some space and rerun the same command: it goes on from there"
            )
        if free < 2 * need:
            log.warning("%s has %s left and a checkpoint takes %s", self.folder, _size(free), _size(need))
        return self.folder / f".{step}.partial"

    def _start(
        self, step: int, partial: pathlib.Path, items: Mapping[str, Any], meta: Mapping[str, Any]
    ) -> concurrent.futures.Future[None]:
        from orbax.checkpoint import v1 as ocp

        refuse_nonfinite = finite.watch(step, items)
        trees = {name: manifest.tree_table(tree) for name, tree in items.items()}
        writing = ocp.save_checkpointables_async(partial, {name: _nested(tree) for name, tree in items.items()})

        def describe() -> None:
            refuse_nonfinite()
            writing.result()
            faults.point("checkpoint.written", step)
            durable.retry(lambda: manifest.write(partial, step, trees, meta))

        return self._pool.submit(self._finish, step, partial, writing, describe)

    def _finish(self, step: int, partial: pathlib.Path, writing: Any, describe: Callable[[], None]) -> None:
        """What runs behind the loop: complete, describe, flush, publish, verify, and only then let old ones go."""
        try:
            faults.point("checkpoint.write", step)
            describe()
            faults.point("checkpoint.manifest", step)
            durable.retry(lambda: durable.flush_tree(partial))
            faults.point("checkpoint.rename", step)
            self._publish(partial, step)
        except BaseException:
            with contextlib.suppress(Exception):
                writing.result()  # Orbax must have stopped writing before its files can be removed
            for leftover in self.folder.glob(f".{step}.partial*"):
                shutil.rmtree(leftover, ignore_errors=True)
            raise
        faults.point("checkpoint.published", step)
        durable.retry(lambda: durable.flush(self.folder))
        self._intact.discard(step)
        if not self._verified(step):
            raise OSError(errno.EIO, "what was written reads back differently")
        self._retire()

    def _publish(self, partial: pathlib.Path, step: int) -> None:
        final, replaced = self.folder / str(step), self.folder / f".{step}.replaced"
        if final.exists():
            final.rename(replaced)
        partial.rename(final)
        shutil.rmtree(replaced, ignore_errors=True)

    def _retire(self) -> None:
        """Deletes what the policy no longer keeps. Only intact checkpoints count as kept, each verified once."""
        kept: list[int] = []
        for step in reversed(self._numbers()):
            if len(kept) < self.policy.keep:
                if self._verified(step):
                    kept.append(step)
            elif self.policy.keep_every is None or step % self.policy.keep_every:
                faults.point("checkpoint.retire", step)
                retired = self.folder / f".{step}.retired"
                try:
                    (self.folder / str(step)).rename(retired)
                    faults.point("checkpoint.delete", step)
                    shutil.rmtree(retired)
                except OSError as error:
                    log.warning("the old checkpoint %d could not be deleted: %s", step, error)

    def _verified(self, step: int) -> bool:
        if step not in self._intact:
            try:
                manifest.verify(self.folder / str(step))
            except manifest.Damaged as damage:
                self._set_aside(step, str(damage))
                return False
            self._intact.add(step)
        return True

    def _clear_leftovers(self) -> None:
        """Removes what a run that died in a save left behind; a checkpoint that was about to be replaced comes back."""
        for path in self.folder.glob(".*"):
            step, _, kind = path.name[1:].partition(".")
            if kind == "replaced" and _STEP.fullmatch(step) and not (self.folder / step).exists():
                path.rename(self.folder / step)
            elif kind.startswith(("partial", "replaced", "retired")) and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)

    # --------------------------------------------------------------------------------------------------------- reading

    def steps(self) -> list[int]:
        """Published steps whose manifest is readable, oldest first. Their bytes are verified when they are restored."""
        return [step for step in self._numbers() if self._described(step)]

    def latest(self) -> int | None:
        """The newest of `steps()`."""
        return next((step for step in reversed(self._numbers()) if self._described(step)), None)

    @property
    def empty(self) -> bool:
        """Nothing was ever published here, not even something now damaged: a run may start from the beginning."""
        return not self._numbers() and not self._corrupt()

    def contents(
        self, step: int | None = None, read: Callable[[pathlib.Path], manifest.Manifest] = manifest.verify
    ) -> manifest.Manifest:
        """What the newest checkpoint holds that `read` accepts (`manifest.verify`: the newest intact one,
        `manifest.read`: the newest by its description), or what `step` holds. Unlike `restore` it sets no damaged one
        aside: the folder may be another run's. Raises CheckpointError where there is none."""
        for number in reversed(self._numbers()):
            if step in (None, number):
                try:
                    return read(self.folder / str(number))
                except manifest.Damaged as damage:
                    log.warning("checkpoint %d in %s is damaged: %s", number, self.folder, damage)
        there = ", ".join(map(str, self._numbers())) or "none"
        asked = "intact checkpoint" if step is None else f"intact checkpoint {step}"
        raise CheckpointError(f"there is no {asked} in {self.folder}; there are: {there}")

    def restore(
        self, wanted: Mapping[str, Any], step: int | None = None, fit: treediff.Fit = treediff.exact
    ) -> Restored:
        """The newest intact checkpoint, or exactly `step`, as trees like `wanted`: item -> tree of ShapeDtypeStructs
        whose shardings say where the arrays go, on whatever mesh (without a sharding: the first device).

        Every byte is verified first. Damaged checkpoints are set aside as `<step>.corrupt` and the next older one is
        used; a `step` asked for by number is never another one. `fit` says which differences are allowed
        (`treediff.exact`: none, `treediff.casting`: number formats). Raises CheckpointError (66) when nothing is intact
        or the trees do not fit, StorageError (74) when storage does not answer."""
        try:
            if step is not None:
                return self._exactly(step, wanted, fit)
            return self._newest(wanted, fit)
        except OSError as error:
            raise StorageError(f"reading the checkpoints in {self.folder} failed: {error}", code=ExitCode.IO) from error

    def _exactly(self, step: int, wanted: Mapping[str, Any], fit: treediff.Fit) -> Restored:
        if step not in self._numbers():
            there = ", ".join(map(str, self._numbers())) or "none"
            raise CheckpointError(f"there is no checkpoint {step} in {self.folder}; there are: {there}")
        try:
            return self._load(step, wanted, fit)
        except manifest.Damaged as damage:
            raise CheckpointError(
                f"checkpoint {step} in {self.folder} is damaged: {damage}. "
                "It was asked for by number, so no other one is used; leave the number out for the newest intact one"
            ) from None

    def _newest(self, wanted: Mapping[str, Any], fit: treediff.Fit) -> Restored:
        self._name_strangers()
        damaged: dict[str, str] = dict.fromkeys(self._corrupt(), "set aside by an earlier start")
        found_now = []
        for step in reversed(self._numbers()):
            try:
                restored = self._load(step, wanted, fit)
            except manifest.Damaged as damage:
                damaged[str(step)] = str(damage)
                found_now.append(step)
                self._set_aside(step, str(damage))
                continue
            if found_now:
                log.warning("going on from checkpoint %d, the newest intact one, instead of %d", step, found_now[0])
            return restored
        if not damaged:
            raise CheckpointError(f"there is no checkpoint in {self.folder}")
        listed = "\n".join(f"  {name}: {reason}" for name, reason in damaged.items())
        raise CheckpointError(
            f"no intact checkpoint in {self.folder}:\n{listed}\n"
            "Put an intact copy back, or name another run folder to start from the beginning"
        )

    def _load(self, step: int, wanted: Mapping[str, Any], fit: treediff.Fit) -> Restored:
        faults.point("checkpoint.read", step)
        folder = self.folder / str(step)
        contents = manifest.verify(folder)
        _refuse_misfit(step, contents, wanted, fit)
        items = load_arrays(folder, wanted)
        self._intact.add(step)
        self._step = step
        return Restored(step, items, contents.meta)

    def _described(self, step: int) -> bool:
        try:
            return manifest.read(self.folder / str(step)).step == step
        except manifest.Damaged:
            return False

    def _numbers(self) -> list[int]:
        return sorted(int(path.name) for path in self._entries() if _STEP.fullmatch(path.name))

    def _corrupt(self) -> list[str]:
        return sorted(path.name for path in self._entries() if _CORRUPT.fullmatch(path.name))

    def _entries(self) -> list[pathlib.Path]:
        return list(self.folder.iterdir()) if self.folder.is_dir() else []

    def _name_strangers(self) -> None:
        known = (_STEP, _CORRUPT)
        strange = [p.name for p in self._entries() if p.name[0] != "." and not any(k.fullmatch(p.name) for k in known)]
        if strange:
            log.warning("ignored in %s, since no checkpoint is called so: %s", self.folder, ", ".join(sorted(strange)))

    def _set_aside(self, step: int, reason: str) -> None:
        """Renames a damaged checkpoint so that it is kept but not used again."""
        names = (f"{step}.corrupt" + (f".{n}" if n else "") for n in range(10_000))
        free = next(name for name in names if not (self.folder / name).exists())
        log.warning("checkpoint %d is damaged (%s); it is kept as %s", step, reason, free)
        try:
            (self.folder / str(step)).rename(self.folder / free)
        except OSError as error:
            log.warning("checkpoint %d could not be renamed: %s", step, error)


def load_arrays(folder: pathlib.Path, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Trees like `wanted` (see `CheckpointStore.restore`) from a checkpoint folder that was verified. They may be part
    of what was saved: the rest is not read, and of an array each process reads the shards that it will hold."""
    from orbax.checkpoint import v1 as ocp

    targets = {name: jax.tree.map(_placed, tree) for name, tree in wanted.items()}
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    with context, jax.transfer_guard("allow"):
        loaded = ocp.load_checkpointables(folder, {name: _nested(tree) for name, tree in targets.items()})
    return {name: _like(tree, loaded[name]) for name, tree in targets.items()}


def _refuse_misfit(step: int, contents: manifest.Manifest, wanted: Mapping[str, Any], fit: treediff.Fit) -> None:
    found = []
    for name, tree in wanted.items():
        if name not in contents.trees:
            raise CheckpointError(f"checkpoint {step}: " + unknown_name("item", name, contents.trees))
        saved, want = contents.trees[name], manifest.tree_table(tree)
        rows = fit(saved, want)
        if rows:
            head = f"checkpoint {step} does not fit: {name}, {len(rows)} of {len({**saved, **want})} arrays"
            found += [head, treediff.report(rows, saved, want)]
    if found:
        raise CheckpointError("\n".join([*found, "Use the settings the run was started with, or a new run folder"]))


def _nested(tree: Any) -> dict[str, Any]:
    """A tree of any classes as nested dictionaries: a form that any reader of Orbax checkpoints understands."""
    nested: dict[str, Any] = {}
    for name, leaf in flatten_names(tree).items():
        *parents, last = name.split("/")
        node = nested
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return nested


def _like(tree: Any, loaded: Any) -> Any:
    named = flatten_names(loaded)
    return jax.tree.unflatten(jax.tree.structure(tree), [named[name] for name in flatten_names(tree)])


def _placed(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None) or SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _size(count: float) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} GiB"
