"""One owner for signals, hangs, uncaught exceptions, exit codes and the run folder's lock.

    def main():
        with Supervisor(folder) as supervisor:
            ...                                   # poll supervisor.stopping, or call supervisor.raise_if_stopping()
    exit_code = run_supervised(main)

SIGTERM or SIGINT: before the first step is done (imports, compilation, data start-up) there is nothing to lose and the
process leaves at once; later the loop finishes its step, saves and leaves. Both ways with exit code 75 within the grace
time, whatever Python or XLA is doing: signals reach a thread of their own through a file descriptor. Further signals
change nothing.
"""

from __future__ import annotations

import collections
import contextlib
import faulthandler
import math
import os
import pathlib
import select
import signal
import socket
import statistics
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any

from mmjax.core.errors import ExitCode, UserError
from mmjax.training import durable, runfolder

SIGNALS = (signal.SIGTERM, signal.SIGINT)
TICK_S = 0.5
FIRST_S = 600.0  # the first step may take this long, data start-up included
SLOWEST_S = 60.0  # any step may take this long
SLOWER = 20.0  # ... or this many times the median step
_RETRIED = (ExitCode.INTERNAL, ExitCode.IO, ExitCode.RETRY)  # exits a scheduler answers with another start


class Stopped(UserError):
    """The run was asked to stop and has saved what it had; the same command goes on from there."""

    code = ExitCode.RETRY


class Supervisor:
    """Watches over one training process in one run folder. grace_s: seconds from the first signal to the exit.
    step_timeout_s: how long a step may take before the process counts as hung (default: 60 s or 20 times the median
    step, whichever is longer; 600 s for the first)."""

    def __init__(
        self,
        folder: pathlib.Path | str,
        grace_s: float = 25.0,
        step_timeout_s: float | None = None,
        process: int = 0,
    ):
        self.folder = pathlib.Path(folder)
        self.grace_s = grace_s
        self.step_timeout_s = step_timeout_s
        self.process = process
        self.stopping = False
        self.step: int | None = None  # the last step that was done; None: there is nothing to lose yet
        self._lock = runfolder.RunLock(self.folder)
        self._attempts = runfolder.Attempts(self.folder)
        self._leave_by_s = math.inf
        self._signal_name = ""
        self._beat_s = 0.0
        self._steps_s: collections.deque[float] = collections.deque(maxlen=31)
        self._pauses = 0
        self._doing = "starting"
        self._done = threading.Event()

    # -------------------------------------------------------------------------------------------- what the loop calls

    def beat(self, step: int) -> None:
        """Step `step` is done: from now on there is something to lose, and the next step is waited for."""
        now = time.monotonic()
        if self._beat_s:
            self._steps_s.append(now - self._beat_s)
        self._beat_s, self.step = now, step

    @contextlib.contextmanager
    def pause(self, what: str) -> Iterator[None]:
        """Stops the step clock during `what` (compilation, an evaluation), which may take as long as it takes."""
        self._pauses += 1
        self._doing = what
        try:
            yield
        finally:
            self._pauses -= 1
            self._doing = "training"
            self._beat_s = time.monotonic()

    def raise_if_stopping(self) -> None:
        """Raises Stopped once the process was asked to stop."""
        if self.stopping:
            raise self.stopped()

    def stopped(self) -> Stopped:
        """What the loop raises after it has saved."""
        return Stopped(f"stopped by {self._signal_name or 'request'}{self._where()}; {durable.RERUN}")

    # ------------------------------------------------------------------------------------------------------ life cycle

    def __enter__(self) -> Supervisor:
        runfolder.prepare(self.folder)
        self._lock.acquire()
        try:
            self._attempts.begin(runfolder.newest_checkpoint(self.folder))
        except BaseException:
            self._lock.release()
            raise
        self._hooks = (sys.excepthook, threading.excepthook)
        sys.excepthook, threading.excepthook = self._uncaught, self._uncaught_in_thread
        self._bell, self._ringer = socket.socketpair()
        self._bell.setblocking(False)
        self._ringer.setblocking(False)
        self._owns_signals = threading.current_thread() is threading.main_thread()
        if self._owns_signals:
            self._wakeup = signal.set_wakeup_fd(self._ringer.fileno(), warn_on_full_buffer=False)
            self._handlers = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
        self._watcher = threading.Thread(target=self._watch, name="supervisor", daemon=True)
        self._watcher.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._ring()
        self._watcher.join()
        if self._owns_signals:
            signal.set_wakeup_fd(self._wakeup)
            for number, handler in self._handlers.items():  # once told to stop, a process is deaf until it is gone
                signal.signal(number, signal.SIG_IGN if self.stopping else handler)
        sys.excepthook, threading.excepthook = self._hooks
        self._bell.close()
        self._ringer.close()
        self._settle(error)

    def _settle(self, error: BaseException | None) -> None:
        """Clears the count of deaths unless this one is a death, and lets the next process in."""
        with contextlib.suppress(OSError):
            if error is None or isinstance(error, Stopped) or getattr(error, "code", ExitCode.RETRY) not in _RETRIED:
                self._attempts.forgive()
            elif not isinstance(error, UserError):
                text = "".join(traceback.format_exception(error))
                (self.folder / f"crash_{self.process}.txt").write_text(f"while {self._doing}{self._where()}\n\n{text}")
        self._lock.release()

    # --------------------------------------------------------------------------------------------------- the watcher

    def _watch(self) -> None:
        heartbeat_s = time.monotonic()
        while not self._done.is_set():
            ready, _, _ = select.select([self._bell], [], [], TICK_S)
            now = time.monotonic()
            if ready:
                self._hear(self._bell.recv(64), now)
            if now > self._leave_by_s:
                self._settle(None)
                self._leave(f"stopped by {self._signal_name}{self._where()}, not finished within {self.grace_s:g} s")
            elif not self.stopping and (limit_s := self._limit_s()) is not None and now - self._beat_s > limit_s:
                self._hung(now - self._beat_s)
            if now - heartbeat_s > runfolder.HEARTBEAT_S:
                heartbeat_s = now
                self._lock.beat()

    def _hear(self, numbers: bytes, now: float) -> None:
        asked = [number for number in numbers if number in SIGNALS]
        if not asked or self.stopping:
            return
        self._leave_by_s, self._signal_name = now + self.grace_s, signal.Signals(asked[0]).name
        self.stopping = True
        if self.step is None:
            self._settle(None)
            self._leave(str(self.stopped()))
        _say(f"{self._signal_name}: finishing the step and saving, at most {self.grace_s:g} s")

    def _limit_s(self) -> float | None:
        """Seconds the present step may take; None while nobody waits for one."""
        if self._pauses or not self._beat_s:
            return None
        if self.step_timeout_s is not None:
            return self.step_timeout_s
        return max(SLOWEST_S, SLOWER * statistics.median(self._steps_s)) if self._steps_s else FIRST_S

    def _hung(self, silent_s: float) -> None:
        path = self.folder / f"hang_{self.process}.txt"
        with contextlib.suppress(OSError), open(path, "w") as file:
            file.write(f"process {self.process}: no step for {silent_s:.0f} s{self._where()}, {self._doing}\n\n")
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)
        self._leave(f"hung: no step for {silent_s:.0f} s{self._where()}; what every thread was doing is in {path}")

    def _leave(self, message: str) -> None:
        """Ends the process from a thread: nothing may hold it up any more, and the newest checkpoint is safe."""
        self._lock.release()
        _say(message)
        _flush_streams()
        os._exit(ExitCode.RETRY)

    def _ring(self) -> None:
        with contextlib.suppress(OSError):
            self._ringer.send(b"\0")

    # -------------------------------------------------------------------------------------------- uncaught exceptions

    def _uncaught(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        self._fatal(error, "main thread")

    def _uncaught_in_thread(self, arguments: threading.ExceptHookArgs) -> None:
        if arguments.exc_value is not None and not isinstance(arguments.exc_value, SystemExit):
            self._fatal(arguments.exc_value, f"thread {arguments.thread.name if arguments.thread else '?'}")

    def _fatal(self, error: BaseException, thread: str) -> None:
        """A thread that died would leave the others waiting for it: the process goes as a whole."""
        code = explain(error, f"process {self.process}, {thread}{self._where()}: ")
        self._settle(error)
        _flush_streams()
        os._exit(code)

    def _where(self) -> str:
        return "" if self.step is None else f" after step {self.step}"


def run_supervised(function: Callable[[], Any]) -> ExitCode:
    """Calls `function` and returns the exit code of what became of it. A user's mistake, a full disk or a stop is one
    message on stderr; only a bug prints a stack trace. A signal that comes before the Supervisor means 75, too."""
    owned = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, _leave_early) for number in SIGNALS} if owned else {}
    try:
        function()
        return ExitCode.DONE
    except SystemExit:
        raise
    except BaseException as error:
        return explain(error)
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is _leave_early:
                signal.signal(number, handler)


def _leave_early(number: int, frame: FrameType | None) -> None:
    _say(f"stopped by {signal.Signals(number).name} before training began; {durable.RERUN}")
    os._exit(ExitCode.RETRY)


def explain(error: BaseException, where: str = "") -> ExitCode:
    """Prints what happened on stderr and says which exit code it means."""
    if isinstance(error, Stopped):
        _say(str(error))
        return error.code
    if isinstance(error, UserError):
        _say(f"error: {error}")
        return error.code
    if isinstance(error, KeyboardInterrupt):
        _say("stopped by the keyboard; rerun the same command: it goes on from its newest checkpoint")
        return ExitCode.RETRY
    if isinstance(error, OSError) and error.errno in durable.FULL | durable.READ_ONLY | durable.TRANSIENT:
        refused = durable.storage_error("writing", error, pathlib.Path(error.filename or "."))
        _say(f"error: {refused}")
        return refused.code
    _say(where + "".join(traceback.format_exception(error)).rstrip())
    return ExitCode.INTERNAL


def _say(text: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


def _flush_streams() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
