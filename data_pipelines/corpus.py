"""Texts of several sources, for one tokenizer that serves them all."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from typing import Protocol

from data_pipelines.cache import fingerprint_of


class Writings(Protocol):
    """A source that tells its texts without the rest of its records."""

    def texts(self, field: str) -> Iterator[str]:
        """Every text of a field."""
        ...

    def fingerprint(self) -> Mapping[str, str]:
        """See `data_pipelines.protocols.Source`."""
        ...


@dataclasses.dataclass(frozen=True)
class Corpus:
    """The texts of `parts`, (source, field) each, of every part at most `each`, evenly spread over it: a tokenizer
    learns little from more, and slowly. `SentencePiece(Corpus(...))`."""

    parts: tuple[tuple[Writings, str], ...]
    each: int | None = None

    def texts(self, field: str = "") -> Iterator[str]:
        """All of them, whatever field is named: each part has its own."""
        for source, own in self.parts:
            found = list(source.texts(own))
            stride = 1 if self.each is None else max(1, -(-len(found) // self.each))
            yield from itertools.islice(found, 0, None, stride)

    def fingerprint(self) -> Mapping[str, str]:
        """Those of its parts."""
        parts = [[dict(source.fingerprint()), field] for source, field in self.parts]
        return {"corpus": fingerprint_of([parts, self.each])}
