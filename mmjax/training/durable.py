"""Files that survive a power cut, and what an operating system's refusal to write means for a run."""

from __future__ import annotations

import errno
import os
import pathlib
import time
from collections.abc import Callable
from typing import TypeVar

from mmjax.core.errors import ExitCode, StorageError

T = TypeVar("T")

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}
TRANSIENT = {errno.EIO, errno.EAGAIN, errno.EBUSY, errno.ESTALE, errno.ETIMEDOUT, errno.ECONNRESET, errno.ENETUNREACH}
RERUN = "rerun the same command: it goes on from the newest checkpoint"
ATTEMPTS = 3
PAUSE_S = 0.2  # before the second attempt; doubles


def flush(path: pathlib.Path) -> None:
    """fsync of a file or folder: what it holds (for a folder: its names) is on the medium when this returns."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def flush_tree(folder: pathlib.Path) -> None:
    """fsync of every file and folder below `folder`, innermost first, and of `folder` itself."""
    for parent, _, names in os.walk(folder, topdown=False):
        for name in names:
            flush(pathlib.Path(parent, name))
        flush(pathlib.Path(parent))


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a small file so that a reader, even after a crash, finds the old text or the new one, never a part."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    flush(path.parent)


def cause(error: BaseException) -> OSError | None:
    """The OSError with a number at the bottom of a chain of exceptions; libraries wrap it, or only quote its text."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno:
            return seen
        seen = seen.__cause__ or seen.__context__
    for number in (*FULL, errno.EROFS, errno.EACCES, errno.EIO, errno.ESTALE):
        if os.strerror(number) in str(error):
            return OSError(number, os.strerror(number))
    return None


def is_transient(error: BaseException) -> bool:
    """Whether the same operation may work when it is tried again."""
    found = cause(error)
    return found is not None and found.errno in TRANSIENT


def retry(function: Callable[[], T]) -> T:
    """`function()`, tried up to three times while it fails with a transient OSError."""
    for attempt in range(ATTEMPTS - 1):
        try:
            return function()
        except OSError as error:
            if not is_transient(error):
                raise
            time.sleep(PAUSE_S * 2**attempt)
    return function()


def storage_error(what: str, error: BaseException, folder: pathlib.Path) -> StorageError:
    """An operating system's refusal in a user's words: what failed, why, what to do. 73: full, read-only; 74: other."""
    found = cause(error)
    reason = (found.strerror if found else None) or f"{type(error).__name__}: {error}"
    number = found.errno if found else None
    if number in FULL:
        return StorageError(f"{what} failed: {reason}, in {folder}; free some space and {RERUN}")
    if number in READ_ONLY:
        return StorageError(f"{what} failed: {reason}, in {folder}; name a folder that this user may write to")
    return StorageError(f"{what} failed: {reason}, in {folder}; {RERUN}", code=ExitCode.IO)
