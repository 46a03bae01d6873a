"""The manifest of a checkpoint: every file with size and hash, every tree with paths, shapes, formats, under one hash.

Storage flips bits, and array formats restore most flipped bits without a word; a checkpoint is used only after each of
its bytes was hashed again and found equal. xxh3-128 (Y. Collet, xxHash) runs faster than disks read.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import xxhash

from mmjax.core.pytrees import flatten_names
from mmjax.training import durable

NAME = "manifest.json"
FORMAT = 1
_CHUNK = 1 << 22

Leaf = tuple[tuple[int, ...], str]  # shape, dtype name


class Damaged(Exception):
    """A checkpoint is not what its manifest says; the text names the file, what was expected and what was found."""


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a published checkpoint must hold. files: path -> (bytes, hash). trees: item -> path -> (shape, dtype).
    meta: what the run wants to know again, as JSON. digest: the one hash over all of this."""

    step: int
    files: Mapping[str, tuple[int, str]]
    trees: Mapping[str, Mapping[str, Leaf]]
    meta: Mapping[str, Any]
    digest: str

    @property
    def bytes(self) -> int:
        """Size of all files together."""
        return sum(size for size, _ in self.files.values())


def tree_table(tree: Any) -> dict[str, Leaf]:
    """path -> (shape, dtype) of each leaf (array or ShapeDtypeStruct)."""
    return {name: (tuple(leaf.shape), str(leaf.dtype)) for name, leaf in flatten_names(tree).items()}


def write(folder: pathlib.Path, step: int, trees: Mapping[str, Mapping[str, Leaf]], meta: Mapping[str, Any]) -> None:
    """Hashes every file below `folder` and writes its manifest there; flushes nothing."""
    files = {name: (path.stat().st_size, hash_file(path)) for name, path in sorted(_files(folder).items())}
    body = {"format": FORMAT, "step": step, "meta": meta, "trees": trees, "files": files}
    text = json.dumps({"xxh3_128": _hash(_canonical(body)), "body": body})
    (folder / NAME).write_text(text, encoding="utf-8")


def read(folder: pathlib.Path) -> Manifest:
    """The manifest of a checkpoint folder, itself verified. Raises Damaged."""
    if folder.is_symlink() or (folder / NAME).is_symlink():
        raise Damaged(f"{folder.name} is a symbolic link; a checkpoint is a real folder")
    try:
        tree = json.loads(durable.retry((folder / NAME).read_bytes))
        body, given = tree["body"], tree["xxh3_128"]
        if (found := _hash(_canonical(body))) != given:
            raise Damaged(f"{NAME}: expected hash {given}, found {found}")
        if body["format"] != FORMAT:
            raise Damaged(f"{NAME}: written in format {body['format']}; this version reads format {FORMAT}")
        files = {name: (size, text) for name, (size, text) in body["files"].items()}
        trees = {
            item: {name: (tuple(shape), dtype) for name, (shape, dtype) in table.items()}
            for item, table in body["trees"].items()
        }
        return Manifest(body["step"], files, trees, body["meta"], given)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise Damaged(f"it has no {NAME}: it was never finished, or the file was deleted") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise Damaged(f"{NAME} is not readable as a manifest") from None


def verify(folder: pathlib.Path) -> Manifest:
    """Reads and hashes every byte of a checkpoint. Raises Damaged, naming a file that is not as it was written."""
    manifest = read(folder)
    if folder.name.isdigit() and int(folder.name) != manifest.step:
        raise Damaged(f"its manifest belongs to step {manifest.step}")
    for name, (size, expected) in manifest.files.items():
        path = folder / name
        if path.is_symlink():
            raise Damaged(f"{name}: a symbolic link stands in its place")
        try:
            found_size = path.stat().st_size
            if found_size != size:
                raise Damaged(f"{name}: expected {size:,} bytes, found {found_size:,}")
            found = durable.retry(lambda path=path: hash_file(path))
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise Damaged(f"{name}: missing") from None
        if found != expected:
            raise Damaged(f"{name}: expected hash {expected}, found {found}")
    return manifest


def hash_file(path: pathlib.Path) -> str:
    """xxh3-128 of a file's bytes, in hex."""
    digest = xxhash.xxh3_128()
    with open(path, "rb", buffering=0) as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _files(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    found = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            path = pathlib.Path(parent, name)
            found[path.relative_to(folder).as_posix()] = path
    found.pop(NAME, None)
    return found


def _canonical(body: Any) -> bytes:
    return json.dumps(body, sort_keys=True, separators=(",", ":")).encode()


def _hash(data: bytes) -> str:
    return xxhash.xxh3_128(data).hexdigest()
