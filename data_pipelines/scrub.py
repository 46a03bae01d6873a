"""Hashes of all files of a data set, written once and compared later: copies that went wrong, disks that forget."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping, Sequence

from data_pipelines.sources.files import content_digest, existing, listing
from mmjax.core.errors import DataError, ExitCode

FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What became of the files that a list of hashes names."""

    files: int
    changed: Sequence[str]
    missing: Sequence[str]
    added: Sequence[str]

    @property
    def intact(self) -> bool:
        """Whether every listed file is there with the same bytes."""
        return not self.changed and not self.missing


def hashes_of(path: str) -> dict[str, str]:
    """Hash by relative name, of a file or of everything under a folder (hidden files are left out)."""
    root = existing(path)
    if root.is_file():
        return {root.name: content_digest(root)}
    return {name: content_digest(root / name) for name in listing(root, ("",))}


def write_hashes(path: str, target: pathlib.Path) -> int:
    """Writes the hashes of `path` to `target` and returns how many files they cover."""
    hashes = hashes_of(path)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    part.write_text(json.dumps({"format": FORMAT, "hash": "blake2b-64", "files": hashes}, indent=1), encoding="utf-8")
    os.replace(part, target)
    return len(hashes)


def compare(path: str, against: pathlib.Path) -> Comparison:
    """The files under `path` now, against the hashes in `against`. Raises DataError when that is no such list."""
    then, now = _read(against), hashes_of(path)
    changed = [name for name in then if name in now and now[name] != then[name]]
    missing = [name for name in then if name not in now]
    inside = existing(path) / against.name == against.absolute()  # the list itself may lie with the data
    added = [name for name in now if name not in then and not (inside and name == against.name)]
    return Comparison(len(then), changed, missing, added)


def _read(against: pathlib.Path) -> Mapping[str, str]:
    try:
        tree = json.loads(against.read_text(encoding="utf-8"))
        if tree["format"] == FORMAT and all(isinstance(value, str) for value in tree["files"].values()):
            return tree["files"]
    except OSError as error:
        raise DataError(f"{against} cannot be read: {error.strerror}", code=ExitCode.NO_INPUT) from None
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise DataError(f"{against} is no list of hashes; write one with: mmjax data verify PATH --write {against.name}")
