"""Derived files that are made once: named by the fingerprint of what they are made from, written atomically, made by
one process while others wait."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from mmjax.core.errors import StorageError
from mmjax.core.folders import cache_path


def cache_folder() -> pathlib.Path:
    """`cache_path()`, made when missing. Raises StorageError when it cannot be written."""
    folder = cache_path()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"the cache folder {folder} cannot be made ({error}); set MMJAX_CACHE to a writable folder"
        ) from error
    return folder


def fingerprint_of(value: Any) -> str:
    """16 hexadecimal digits that change when a JSON-like value does."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def cached(name: str, made_from: Mapping[str, Any], make: Callable[[pathlib.Path], None]) -> pathlib.Path:
    """The cache entry `name` for what it is `made_from`; `make(path)` writes it (a file) when it is not there yet.

    Safe among processes on one machine: one makes, the others wait for it; a killed maker leaves nothing behind that
    would be taken for the entry. Raises StorageError when the folder is full or not writable."""
    stem, dot, suffix = name.partition(".")
    path = cache_folder() / f"{stem}-{fingerprint_of(made_from)}{dot}{suffix}"
    if path.exists():
        return path
    try:
        with _lock(path.with_name(path.name + ".lock")):
            if not path.exists():
                _publish(path, make)
    except OSError as error:
        raise StorageError(
            f"the cache entry {path} cannot be written ({error}); free some space or set MMJAX_CACHE"
        ) from error
    return path


def _publish(path: pathlib.Path, make: Callable[[pathlib.Path], None]) -> None:
    unfinished = path.with_name(f".{uuid.uuid4().hex}-{path.name}")
    try:
        make(unfinished)
        with open(unfinished, "rb") as file:
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


@contextlib.contextmanager
def _lock(path: pathlib.Path) -> Iterator[None]:
    """Held until left or until the process dies, however it dies."""
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
