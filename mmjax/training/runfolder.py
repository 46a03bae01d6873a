"""Whose a run folder is: refuses strangers' folders, proves it writable, lets one process at a time train in it, and
stops a run that starts again and again without getting anywhere."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import pathlib
import socket
from typing import Any

from mmjax.core.errors import ExitCode, StorageError, UserError
from mmjax.training import durable

LOCK = ".mmjax.lock"  # also the mark by which a folder is known as a run's, from its first second on
RUN_FILE = "experiment.json"
ATTEMPTS = "attempts.json"
STARTS = 3  # without a new checkpoint between them
SILENT_S = 120.0  # a holder on another machine that was silent for longer is taken for dead
HEARTBEAT_S = 15.0


def prepare(folder: pathlib.Path) -> None:
    """Makes `folder` and writes, flushes, renames and deletes a small file in it, before anything expensive is done.

    Raises UserError (2) for a folder that holds something else, StorageError (73) where it cannot be written."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"the run folder {folder} is a file; name a folder that is new, empty or an earlier run's")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = sorted(path.name for path in folder.iterdir() if path.name[0] != ".")
        if held and not (folder / RUN_FILE).exists() and not (folder / LOCK).exists():
            raise UserError(
                f"the run folder {folder} is not empty and holds no mmjax run (it has {', '.join(held[:3])}"
                f"{', ...' if len(held) > 3 else ''}); name a folder that is new, empty or an earlier run's"
            )
        probe = folder / ".probe"
        durable.write_text(probe, "can this folder be written?\n")
        probe.unlink()
    except OSError as error:
        raise durable.storage_error("writing to the run folder", error, folder) from error


@dataclasses.dataclass(frozen=True)
class Holder:
    """The process that trains in a folder. `started` tells it from a later process with the same number."""

    host: str
    boot: str
    pid: int
    started: str

    @staticmethod
    def here() -> Holder:
        """This process."""
        return Holder(socket.gethostname(), _boot(), os.getpid(), _started(os.getpid()))

    def alive(self) -> bool | None:
        """Whether it still runs; None where that cannot be seen from this machine."""
        if self.host != socket.gethostname():
            return None
        return self.boot == _boot() and self.started != "" and self.started == _started(self.pid)


class RunLock:
    """Held by the one process that trains in a folder. That of a process that died is taken over without asking."""

    def __init__(self, folder: pathlib.Path):
        self.path = folder / LOCK

    def acquire(self) -> None:
        """Raises UserError (2 for a process of this machine, 75 for another machine's) while somebody else holds it."""
        with self._file() as file:
            holder = _parse(file.read())
            if holder is not None and holder != Holder.here():
                self._refuse_living(holder)
            file.seek(0)
            file.truncate()
            file.write(json.dumps(dataclasses.asdict(Holder.here())))
            file.flush()
            os.fsync(file.fileno())

    def beat(self) -> None:
        """Shows other machines that this process lives."""
        with contextlib.suppress(OSError):
            os.utime(self.path)

    def release(self) -> None:
        """Lets the next process in; does nothing when another one has taken over."""
        with contextlib.suppress(OSError), self._file() as file:
            if _parse(file.read()) == Holder.here():
                file.truncate(0)

    @contextlib.contextmanager
    def _file(self) -> Any:
        with open(self.path, "a+", encoding="utf-8") as file:
            with contextlib.suppress(OSError):  # a file system without flock: the window is a few microseconds
                fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            yield file

    def _refuse_living(self, holder: Holder) -> None:
        alive = holder.alive()
        who = f"process {holder.pid} on {holder.host}"
        if alive:
            raise UserError(f"{who} is training in {self.path.parent}; wait for it, stop it or name another run folder")
        if alive is None and (silent_s := self._silent_s()) < SILENT_S:
            raise UserError(
                f"{who} was training in {self.path.parent} {silent_s:.0f} s ago, and cannot be seen from here; if it "
                f"is gone, wait {SILENT_S - silent_s:.0f} s (or delete {self.path}), else name another run folder",
                code=ExitCode.RETRY,
            )

    def _silent_s(self) -> float:
        """Seconds since the holder's last sign of life, by the clock of the file server alone."""
        now = self.path.with_name(f".now.{os.getpid()}")
        now.touch()
        try:
            return max(0.0, now.stat().st_mtime - self.path.stat().st_mtime)
        finally:
            now.unlink()


class Attempts:
    """How often a run was started since it last got further, in RUN/attempts.json."""

    def __init__(self, folder: pathlib.Path):
        self.path = folder / ATTEMPTS

    def begin(self, newest: int | None) -> None:
        """Counts a start whose newest checkpoint is `newest`. Raises UserError (70) at the fourth with the same one."""
        count = self._read(newest)
        if count >= STARTS:
            where = "before its first checkpoint" if newest is None else f"after checkpoint {newest}"
            raise UserError(
                f"this run was started {count} times and always died {where}; starting it once more would not help. "
                f"Look at its last messages and at crash_*.txt and hang_*.txt in {self.path.parent}; when the cause is "
                f"repaired, delete {self.path} and rerun the same command",
                code=ExitCode.INTERNAL,
            )
        self._write(newest, count + 1)

    def forgive(self) -> None:
        """This start did not die: it finished, was asked to stop, or said what was wrong."""
        self.path.unlink(missing_ok=True)

    def _read(self, newest: int | None) -> int:
        try:
            stored = json.loads(self.path.read_text())
            return int(stored["starts"]) if stored["newest_checkpoint"] == newest else 0
        except (OSError, ValueError, KeyError, TypeError):
            return 0

    def _write(self, newest: int | None, count: int) -> None:
        try:
            durable.write_text(self.path, json.dumps({"newest_checkpoint": newest, "starts": count}) + "\n")
        except OSError as error:
            raise StorageError(f"{self.path} cannot be written: {error}") from error


def newest_checkpoint(folder: pathlib.Path) -> int | None:
    """Number of the newest checkpoint folder of a run, by name only."""
    inside = folder / "checkpoints"
    steps = [int(path.name) for path in inside.iterdir() if path.name.isdigit()] if inside.is_dir() else []
    return max(steps, default=None)


def _parse(text: str) -> Holder | None:
    try:
        return Holder(**json.loads(text))
    except (ValueError, TypeError):
        return None  # empty (released) or torn by a crash while it was being taken


def _boot() -> str:
    with contextlib.suppress(OSError):
        return pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def _started(pid: int) -> str:
    """When process `pid` started, in clock ticks after boot; "" when there is none (or it is a zombie)."""
    try:
        after_name = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if after_name[0] in "ZX" else after_name[19]
