"""Text -> ids -> text. A tokenizer is a frozen value: its model is trained when it is first needed, and kept in the
cache under the fingerprint of what it was trained on."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import io
import pathlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import sentencepiece

from data_pipelines.cache import cached, fingerprint_of
from data_pipelines.protocols import Source
from mmjax.core.errors import DataError, UserError, unknown_name

MAX_BYTES = 16_384
"""A text is cut here before it is tokenised: unigram search is quadratic in places, and no caption is longer."""


@runtime_checkable
class Tokenizer(Protocol):
    """`size` ids, of which `pad` fills up rows; `encode` adds no marks of its own."""

    @property
    def size(self) -> int: ...

    @property
    def pad(self) -> int: ...

    def encode(self, text: str) -> Sequence[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...

    def fingerprint(self) -> Mapping[str, str]: ...


def clean(text: str) -> str:
    """Text that UTF-8 can carry, of at most MAX_BYTES bytes: half characters (lone surrogates, which JSON can hold)
    become U+FFFD, and the cut falls between characters."""
    data = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").encode()
    return data[:MAX_BYTES].decode("utf-8", "ignore")


@dataclasses.dataclass(frozen=True)
class SentencePiece:
    """Sub-words learnt from the texts of a source: a unigram language model (Kudo 2018, arXiv 1804.10959) with bytes
    for characters it has not seen, so that no text is unknown.

    vocabulary: how many pieces at most (few texts give fewer: `size` is the true number). normalisation: of Unicode;
    `nfkc` (full-width to half-width, ligatures apart), `nfkc_cf` also folds case, `identity` none (sentencepiece,
    doc/normalization.md). White space at the ends goes, runs become one. coverage: share of the characters that get a
    piece of their own. Ids: 0 padding, 1 unknown (unused), 2 begin, 3 end, then 256 bytes.
    """

    source: Source
    field: str = "caption"
    vocabulary: int = 8_000
    normalisation: str = "nfkc"
    coverage: float = 1.0

    pad, begin, end = 0, 2, 3

    @property
    def size(self) -> int:
        """Number of ids; trains the model when the cache has none."""
        return self._model.vocab_size()

    def encode(self, text: str) -> list[int]:
        """The most probable pieces."""
        return self._model.encode(clean(text))

    def decode(self, ids: Sequence[int]) -> str:
        """The normalised text; marks and padding vanish."""
        return self._model.decode([int(number) for number in ids if number > self.end])

    def normalise(self, text: str) -> str:
        """What `decode(encode(text))` gives back."""
        return self._model.normalize(clean(text)).replace("\u2581", " ").removeprefix(" ")

    def best(self, text: str, count: int) -> list[tuple[float, list[int]]]:
        """The `count` most probable ways to cut a text into pieces, with their log-probabilities."""
        ways = self._model.nbest_encode_as_ids(clean(text), nbest_size=count) or [[]]
        return [(sum(self._model.get_score(piece) for piece in way), way) for way in ways]

    def fingerprint(self) -> Mapping[str, str]:
        """What the model is made from; nothing is trained for this."""
        return {"tokenizer": fingerprint_of(self._made_from())}

    def _made_from(self) -> dict[str, Any]:
        settings = {name: getattr(self, name) for name in ("field", "vocabulary", "normalisation", "coverage")}
        version = importlib.metadata.version("sentencepiece")
        return {"source": dict(self.source.fingerprint()), "settings": settings, "sentencepiece": version}

    @functools.cached_property
    def _model(self) -> sentencepiece.SentencePieceProcessor:
        with _LOADING:
            path = cached("sentencepiece.model", self._made_from(), self._train)
            return sentencepiece.SentencePieceProcessor(model_proto=path.read_bytes())

    def _train(self, path: pathlib.Path) -> None:
        texts = sorted({clean(text) for text in texts_of(self.source, self.field)} - {""})
        if not texts:
            raise DataError(f"no text to train a tokenizer on: no record has anything under {self.field!r}")
        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(text.replace("\n", " ") for text in texts),
                model_writer=model,
                model_type="unigram",
                vocab_size=self.vocabulary,
                hard_vocab_limit=False,
                character_coverage=self.coverage,
                byte_fallback=True,
                normalization_rule_name=self.normalisation,
                max_sentence_length=MAX_BYTES,
                input_sentence_size=2_000_000,
                num_threads=1,  # the sums of the EM steps, and so the pieces, depend on it
                pad_id=self.pad, unk_id=1, bos_id=self.begin, eos_id=self.end,
                minloglevel=2,
            )  # fmt: skip
        except (RuntimeError, ValueError, OSError) as error:
            what = f"{len(texts)} texts, vocabulary={self.vocabulary}, normalisation={self.normalisation}"
            raise UserError(f"sentencepiece cannot be trained ({what}): {str(error).strip()}") from None
        path.write_bytes(model.getvalue())


_LOADING = threading.Lock()  # threads of one process wait for one training


@dataclasses.dataclass(frozen=True)
class Bytes:
    """UTF-8 bytes as they are: no training, no loss (lone surrogates too), four to ten times longer rows.

    Ids: 0 padding, 2 begin, 3 end, then 256 bytes."""

    pad, begin, end = 0, 2, 3
    size = 260

    def encode(self, text: str) -> list[int]:
        """Byte b is id b + 4."""
        return [byte + 4 for byte in text.encode("utf-8", "surrogatepass")[:MAX_BYTES]]

    def decode(self, ids: Sequence[int]) -> str:
        """The text; what is not UTF-8 (a cut character) becomes U+FFFD."""
        data = bytes(int(number) - 4 for number in ids if number > self.end)
        try:
            return data.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            return data.decode("utf-8", "replace")

    def fingerprint(self) -> Mapping[str, str]:
        """Never changes."""
        return {"tokenizer": "bytes"}


@dataclasses.dataclass(frozen=True)
class Marked:
    """A tokenizer with marks of its own behind its ids: openings and closings of turns, places, actions.

    No text is ever encoded to a mark, so that what a user types cannot pass for one; decoding leaves marks out."""

    tokenizer: Tokenizer
    marks: tuple[str, ...]

    def __post_init__(self):
        if len(set(self.marks)) < len(self.marks) or {"begin", "end", "pad"} & set(self.marks):
            raise UserError(f"marks must differ from each other and from begin, end and pad; got {self.marks}")

    @property
    def size(self) -> int:
        """Number of ids, marks included."""
        return self.tokenizer.size + len(self.marks)

    @property
    def pad(self) -> int:
        """That of the tokenizer, as are `begin` and `end`."""
        return self.tokenizer.pad

    @property
    def begin(self) -> int:
        """See `pad`."""
        return self.tokenizer.begin

    @property
    def end(self) -> int:
        """See `pad`."""
        return self.tokenizer.end

    def mark(self, name: str) -> int:
        """The id of a mark."""
        return self.tokenizer.size + self.marks.index(name)

    def encode(self, text: str) -> Sequence[int]:
        """What the tokenizer makes of it."""
        return self.tokenizer.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """The text without marks."""
        return self.tokenizer.decode([number for number in ids if number < self.tokenizer.size])

    def fingerprint(self) -> Mapping[str, str]:
        """That of the tokenizer, and the marks."""
        return {**self.tokenizer.fingerprint(), "marks": fingerprint_of(list(self.marks))}


def mark_names(tokenizer: Tokenizer) -> tuple[str, ...]:
    """The marks that `mark_id` knows."""
    standard = tuple(name for name in ("begin", "end") if hasattr(tokenizer, name))
    return standard + tuple(getattr(tokenizer, "marks", ()))


def mark_id(tokenizer: Tokenizer, name: str) -> int:
    """The id of "begin", "end", or a mark of `Marked`. Raises UserError for another name."""
    if name not in mark_names(tokenizer):
        raise UserError(unknown_name("mark of the tokenizer", name, mark_names(tokenizer)))
    return getattr(tokenizer, name) if name in ("begin", "end") else tokenizer.mark(name)


@dataclasses.dataclass(frozen=True)
class Subwords:
    """Sub-word regularisation: one of the `best` ways to cut a text, drawn with probability in proportion to
    p(way) ** alpha (Kudo 2018, arXiv 1804.10959, section 3.3). alpha 0: all alike; large: only the best."""

    best: int = 8
    alpha: float = 0.3

    def ways(self, tokenizer: SentencePiece, text: str) -> tuple[list[list[int]], np.ndarray]:
        """The ways, and the running sum of their chances."""
        scores, ways = zip(*tokenizer.best(text, self.best), strict=True)
        chances = np.exp(self.alpha * (np.array(scores) - max(scores)))
        return list(ways), np.cumsum(chances / chances.sum())


_MOST = 200_000  # texts


def from_memory(memory: dict[Any, Any], text: str | None, made: Callable[[Any], Any]) -> Any:
    """`made(text)`, from `memory` where it is there: captions and questions come again in each epoch. A dictionary that
    the caller owns travels to worker processes with it; the caches of functools do not."""
    found = memory.get(text)
    if found is None:
        if len(memory) >= _MOST:
            memory.clear()
        found = memory[text] = made(text)
    return found


def texts_of(source: Source, field: str) -> Iterator[str]:
    """Every text of a field: from `source.texts(field)` where the source has that (fast), else record by record."""
    if callable(getattr(source, "texts", None)):
        yield from source.texts(field)
        return
    for index in range(len(source)):
        value = source[index].get(field)
        yield from (value,) if isinstance(value, str) else tuple(value or ())
