"""METEOR 1.5 (Denkowski and Lavie 2014) without Java: an alignment of words, then a weighted F-mean less a penalty for
words that stand in another order.

Words are aligned in stages: the same word, the same stem, a synonym. The published scorer has one more stage, a table
of paraphrases (60 MB, English), so its scores are higher by about 0.01 (0.2530 to 0.2419 on this project's 44 test
captions with exact and stem). The name of the score says which stages it had, `meteor_exact_stem`, and is never
plain `meteor`; that is `evals.coco_java.MeteorJar`.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from mmjax.core.errors import UserError
from mmjax.evals.tallies import Tally, check_pairs, ratio
from mmjax.evals.tokenise import Words, words

Array = np.ndarray
Keys = frozenset[Hashable]


@dataclasses.dataclass(frozen=True)
class Stage:
    """One way for two words to match: they share a key. `weight` is what such a match is worth."""

    name: str
    weight: float
    keys: Callable[[str], Keys]


def itself(word: str) -> Keys:
    """Equal words match."""
    return frozenset((word,))


@dataclasses.dataclass(frozen=True)
class Snowball:
    """Words of one stem match. Needs the package snowballstemmer, which knows some thirty languages."""

    language: str = "english"

    def __call__(self, word: str) -> Keys:
        return _stem(self.language, word)


@dataclasses.dataclass(frozen=True)
class WordNet:
    """Words that share a sense of WordNet 3.0 match. Needs the package nltk and its data set `wordnet`."""

    def __call__(self, word: str) -> Keys:
        return _senses(word)


EXACT = Stage("exact", 1.0, itself)
STEM = Stage("stem", 0.6, Snowball())
SYNONYM = Stage("synonym", 0.8, WordNet())

_FREQUENT = """
    the to of and a in that for is on 's it with was as said at he by be from have has are his but an this not i will
    they who their had we which were been more or s its would about new one after you also up when there than all out
    her people she year two can if last first over other into some what so no time years could 't ' $ -lrb- -rrb-
"""
FUNCTION_WORDS = tuple(_FREQUENT.split())
"""English words of a relative frequency above 1/1000, which count less."""

_REMEMBERED = 2**16
"""Words whose keys are kept: texts use the same ones over and over."""

_AGAIN = re.compile(r"-[lr][rcs]b-|(?<=[^\W_])'\w+|'|/|:|[^-'/:]+")


def words_again(text: str) -> Words:
    """`words`, cut once more at hyphens, slashes and apostrophes: the published evaluation hands the words of the
    Treebank tokenizer to a scorer that has a tokenizer of its own."""
    return tuple(part for word in words(text) for part in _AGAIN.findall(word))


@dataclasses.dataclass(frozen=True)
class Meteor:
    """The English parameters that were fitted to human rankings. For other languages the paper gives `alpha=0.7,
    beta=1.4, gamma=0.3, delta=0.7`, exact matches alone and that language's own frequent words."""

    stages: tuple[Stage, ...] = (EXACT, STEM)
    alpha: float = 0.85  # recall over precision
    beta: float = 0.2  # shape of the penalty
    gamma: float = 0.6  # size of the penalty
    delta: float = 0.75  # content over function words
    function: tuple[str, ...] = FUNCTION_WORDS
    words: Callable[[str], Words] = words_again

    def __call__(self, said: Sequence[str], truths: Sequence[Sequence[str]]) -> dict[str, Tally]:
        """`meteor_` and the names of the stages."""
        check_pairs(said, truths)
        counts = np.array([self._best(*pair) for pair in zip(said, truths, strict=True)], np.float64)
        name = "_".join(("meteor", *(stage.name for stage in self.stages)))
        return {name: Tally(counts, self.score)}

    def score(self, counts: Float[Array, "... 7"]) -> Float[Array, "..."]:
        """Of summed counts: weighted lengths and weighted matches (of text, of reference), matches, chunks, words of
        both. 0 where nothing matches, NaN where there is nothing."""
        length, reference, right, found, matches, chunks, total = np.moveaxis(np.asarray(counts, np.float64), -1, 0)
        precision, recall = ratio(right, length), ratio(found, reference)
        mean = ratio(precision * recall, self.alpha * precision + (1 - self.alpha) * recall)
        whole = (2 * matches == total) & (chunks == 1)
        broken = np.where(whole, 0, ratio(chunks, matches))
        score = mean * (1 - self.gamma * broken**self.beta)
        return np.where(total > 0, np.maximum(np.nan_to_num(score), 0), np.nan)

    def _best(self, text: str, references: Sequence[str]) -> list[float]:
        mine = self.words(text)
        tried = [self._counts(mine, self.words(reference)) for reference in references]
        return tried[int(np.argmax(np.nan_to_num(self.score(np.array(tried)), nan=-1)))]

    def _counts(self, mine: Words, reference: Words) -> list[float]:
        pairs = align(mine, reference, self.stages)
        weigh = functools.partial(_weight, frozenset(self.function), self.delta)
        return [
            sum(map(weigh, mine)),
            sum(map(weigh, reference)),
            sum(weigh(mine[i]) * self.stages[stage].weight for i, _, stage in pairs),
            sum(weigh(reference[j]) * self.stages[stage].weight for _, j, stage in pairs),
            len(pairs),
            _chunks(pairs),
            len(mine) + len(reference),
        ]


def _chunks(pairs: Sequence[tuple[int, int, int]]) -> int:
    """Runs of words that stand side by side in both."""
    breaks = (b[0] != a[0] + 1 or b[1] != a[1] + 1 for a, b in itertools.pairwise(pairs))
    return bool(pairs) + sum(breaks)


def _weight(function: frozenset[str], delta: float, word: str) -> float:
    return 1 - delta if word in function else delta


class _Path(NamedTuple):
    """Part of an alignment, from the start of the reference on; the first three are what is minimised."""

    matched: int = 0  # less the words of exact matches
    chunks: int = 0  # that are closed
    distance: int = 0
    used: frozenset[int] = frozenset()  # words of the text
    end: int = -1  # one after the open chunk, -1 without one
    pairs: tuple[tuple[int, int, int], ...] = ()

    def take(self, i: int, j: int, stage: int) -> _Path:
        gain = 2 if stage == 0 else 0  # the published program rounds the 0.5 of the other stages down, and so do we
        broken = self.chunks + (self.end not in (-1, i))
        pairs = (*self.pairs, (i, j, stage))
        return _Path(self.matched - gain, broken, self.distance + abs(i - j), self.used | {i}, i + 1, pairs)

    def skip(self) -> _Path:
        return self._replace(chunks=self.chunks + (self.end != -1), end=-1)


def align(
    mine: Words, reference: Words, stages: Sequence[Stage] = (EXACT,), beam: int = 40
) -> list[tuple[int, int, int]]:
    """Pairs (place in the text, place in the reference, stage): most words, then fewest chunks, then the shortest way,
    by a beam search over the reference (METEOR 1.3, Denkowski and Lavie 2011)."""
    options = _matches(mine, reference, stages)
    claims = np.bincount([i for choices in options for i, _ in choices], minlength=len(mine) or 1)
    paths = [_Path(used=frozenset(c[0][0] for c in options if len(c) == 1 and claims[c[0][0]] == 1))]
    for j, choices in enumerate(options):
        if len(choices) == 1 and claims[choices[0][0]] == 1:  # nobody else wants either word
            grown = [path.take(*choices[0][:1], j, choices[0][1]) for path in paths]
        else:
            grown = [new for path in paths for new in (*_taken(path, j, choices), path.skip())]
        paths = sorted(grown, key=lambda path: path[:3])[:beam]
    return list(min((path.skip() for path in paths), key=lambda path: path[:3]).pairs)


def _taken(path: _Path, j: int, choices: Sequence[tuple[int, int]]) -> list[_Path]:
    return [path.take(i, j, stage) for i, stage in choices if i not in path.used]


def _matches(mine: Words, reference: Words, stages: Sequence[Stage]) -> list[list[tuple[int, int]]]:
    """For each word of the reference: (place in the text, stage) of each match; equal words match in the first only."""
    options: list[list[tuple[int, int]]] = [[] for _ in reference]
    for number, stage in enumerate(stages):
        keys = [stage.keys(word) for word in mine]
        for j, word in enumerate(reference):
            theirs = stage.keys(word)
            fresh = (i for i, own in enumerate(keys) if own & theirs and (number == 0 or mine[i] != word))
            options[j] += [(i, number) for i in fresh]
    return options


@functools.lru_cache(_REMEMBERED)
def _stem(language: str, word: str) -> Keys:
    return frozenset((_stemmer(language).stemWord(word),))


@functools.lru_cache(_REMEMBERED)
def _senses(word: str) -> Keys:
    return frozenset(sense.name() for sense in _wordnet().synsets(word))


@functools.cache
def _stemmer(language: str):
    try:
        import snowballstemmer
    except ImportError:
        raise UserError(
            "METEOR's stems need the package snowballstemmer, which is not installed: pip install snowballstemmer, or "
            "compare without stems: Meteor(stages=(EXACT,))"
        ) from None
    known = snowballstemmer.algorithms()
    if language not in known:
        raise UserError(f"there are no stems for {language!r}; snowballstemmer knows: {', '.join(sorted(known))}")
    return snowballstemmer.stemmer(language)


@functools.cache
def _wordnet():
    try:
        from nltk.corpus import wordnet

        wordnet.ensure_loaded()
    except (ImportError, LookupError):
        raise UserError(
            "METEOR's synonyms need the package nltk and its WordNet, and one is missing: pip install nltk, then "
            "python -m nltk.downloader wordnet; or compare without synonyms: Meteor(stages=(EXACT, STEM))"
        ) from None
    return wordnet
