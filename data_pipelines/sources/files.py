"""What sources need of a file system: listing, safe references, reads that cannot come back short, fingerprints."""

from __future__ import annotations

import errno
import hashlib
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import NoReturn

from data_pipelines.protocols import BadRecord
from data_pipelines.schema import Opener
from mmjax.core.errors import DataError, ExitCode, UserError, nearest

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")
OTHER_IMAGE_SUFFIXES = (".tif", ".tiff", ".svg", ".heic", ".avif", ".jxl", ".psd", ".raw", ".ico")
"""Pictures that are not read (`data_pipelines.images.FORMATS`); named so that an error can say what to convert."""
_HIDDEN = (".", "__MACOSX", "Thumbs.db")
_NAMES_NO_FILE = (errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL)


def existing(path: str) -> pathlib.Path:
    """The path, `~` expanded. Raises DataError (exit 66) with near names when nothing is there."""
    found = pathlib.Path(path).expanduser()
    if found.exists():
        return found
    parent = found.parent
    names = [entry.name for entry in parent.iterdir()] if parent.is_dir() else []
    near = nearest(found.name, names)
    hint = (
        f"; did you mean {parent / near[0]}?" if near else "" if parent.is_dir() else f"; {parent} is not there either"
    )
    raise DataError(f"there is no file or folder {path!r}{hint}", code=ExitCode.NO_INPUT)


def listing(folder: pathlib.Path, suffixes: Sequence[str]) -> list[str]:
    """Files under `folder` with one of `suffixes`, as sorted relative names with `/`. Hidden ones are left out, links
    followed, each folder once."""
    found, seen = [], set()
    for base, folders, names in os.walk(folder, onerror=_unreadable, followlinks=True):
        real = os.path.realpath(base)
        folders[:] = [] if real in seen else sorted(name for name in folders if not name.startswith(_HIDDEN))
        if real in seen:
            continue
        seen.add(real)
        kept = [name for name in names if name.lower().endswith(tuple(suffixes)) and not name.startswith(_HIDDEN)]
        found += [pathlib.Path(base, name).relative_to(folder).as_posix() for name in kept]
    return sorted(found)


def _unreadable(error: OSError) -> NoReturn:
    if isinstance(error, PermissionError):
        raise DataError(
            f"{error.filename} may not be read; check its owner and mode", code=ExitCode.PERMISSION
        ) from None
    raise error


def shards(path: str, suffixes: Sequence[str]) -> list[pathlib.Path]:
    """The file itself, or the files with these suffixes in a folder, sorted. Raises DataError when there is none."""
    root = existing(path)
    if root.is_file():
        return [root]
    found = [root / name for name in listing(root, suffixes)]
    if not found:
        raise DataError(f"{path!r} holds no {' or '.join(suffixes)} file", code=ExitCode.NO_INPUT)
    return found


def read_at(path: pathlib.Path, offset: int, size: int) -> bytes:
    """`size` bytes from `offset`. Raises DataError when the file ends before: it changed since it was indexed."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read(size)
    except PermissionError as error:
        _unreadable(error)
    if len(data) != size:
        raise DataError(
            f"{path} is {size - len(data)} bytes short at offset {offset}: it was cut off or replaced while in use; "
            "copy it again from its origin and rerun the same command"
        )
    return data


def opener(folder: pathlib.Path) -> Opener:
    """Reads files that records name, relative to `folder`, and refuses to leave it."""
    root = os.path.realpath(folder)

    def read(reference: str) -> bytes:
        return _read(_inside(root, reference), reference)

    return read


def _inside(root: str, reference: str) -> str:
    if "://" in reference:
        raise BadRecord("bad_value", f"{reference!r} is an address on a network; download it first and name the file")
    try:
        full = os.path.realpath(os.path.join(root, reference))
    except ValueError:  # a NUL, or half a surrogate pair
        raise BadRecord("bad_value", f"{reference!r} has a character that no file name can have") from None
    if full != root and not full.startswith(root.rstrip(os.sep) + os.sep):
        raise BadRecord("bad_value", f"{reference!r} leads out of the data's folder; name files inside {root}")
    return full


def _read(full: str, reference: str) -> bytes:
    try:
        with open(full, "rb") as file:
            return file.read()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise BadRecord("missing_file", f"there is no file {reference!r}") from None
    except OSError as error:
        if error.errno in _NAMES_NO_FILE:
            raise BadRecord("missing_file", f"{reference[:80]!r} names no file: {error.strerror}") from None
        _unreadable(error)


def digest(parts: Iterable[str | bytes]) -> str:
    """16 hex digits over parts in order."""
    total = hashlib.blake2b(digest_size=8)
    for part in parts:
        data = part.encode("utf-8", "surrogateescape") if isinstance(part, str) else part
        total.update(len(data).to_bytes(8, "little") + data)
    return total.hexdigest()


def content_digest(path: pathlib.Path) -> str:
    """The hash of a whole file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=8)).hexdigest()


def ends_digest(path: pathlib.Path, span: int = 1 << 16) -> str:
    """The hash of a big file's size and of its first and last 64 KiB, where containers keep their indices."""
    size = path.stat().st_size
    return digest([str(size), read_at(path, 0, min(span, size)), read_at(path, max(0, size - span), min(span, size))])


def missing_package(package: str, install: str, what: str) -> UserError:
    """The error for a package that is not installed; `install` is what pip is given."""
    return UserError(f"{what} needs the package {package}, which is not installed: pip install '{install}'")
