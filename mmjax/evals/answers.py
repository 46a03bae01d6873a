"""Metrics of short answers: accuracy against ten people, exact match, and edit distance.

Q questions
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence

import numpy as np

from mmjax.evals.tallies import Tally, check_pairs, mean_of

_NUMBERS = {"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6"} | {
    "seven": "7",
    "eight": "8",
    "nine": "9",
    "ten": "10",
}
_ARTICLES = ("a", "an", "the")
_CONTRACTED = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't
    not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll
    somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd
    there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll
    what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's
    won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
_APOSTROPHES = {word.replace("'", ""): word for word in _CONTRACTED.split()}
_MARKS = re.compile(r"""[;/\[\]"{}()=+\\_\-><@`,?!]""")


def normalised_answer(text: str) -> str:
    """The rules of the VQA evaluation (arXiv 1505.00468, and the script beside its data): lower case, no articles,
    digits for numbers up to ten, apostrophes where contractions lack them, no full stops except in numbers.

    A punctuation mark becomes a space where it joins two words (`black/white`) and nothing where a space stands beside
    it; in a text with a comma between digits (`1,000`) all marks become nothing."""
    text = " ".join(text.split())
    glued = re.search(r"\d,\d", text) is not None
    beside = {mark for mark in _MARKS.findall(text) if glued or f"{mark} " in text or f" {mark}" in text}
    text = _MARKS.sub(lambda found: "" if found.group() in beside else " ", text)
    words = re.sub(r"\.(?!\d)", "", text).lower().split()
    words = [_NUMBERS.get(word, word) for word in words]
    return " ".join(_whole(word) for word in words if word not in _ARTICLES)


def _whole(word: str) -> str:
    return _APOSTROPHES.get(word.replace("'", ""), word)


def lowered(text: str) -> str:
    """Lower case, single spaces: what document questions compare."""
    return " ".join(text.lower().split())


@dataclasses.dataclass(frozen=True)
class VqaAccuracy:
    """An answer that `enough` of the other people gave is right; fewer count in part. The mean over leaving each person
    out (arXiv 1505.00468; the VQA v2 challenge has 10 people and `enough` = 3).

    The answer and the people's answers are normalised alike, as the challenge's server does; its older script left the
    articles and number words of the people's answers as they were, which version 2 of the data no longer has."""

    enough: int = 3
    normalise: Callable[[str], str] = normalised_answer

    def __call__(self, said: Sequence[str], truths: Sequence[Sequence[str]]) -> dict[str, Tally]:
        """`vqa_accuracy`."""
        check_pairs(said, truths)
        return {"vqa_accuracy": mean_of(np.array([self._score(*pair) for pair in zip(said, truths, strict=True)]))}

    def _score(self, answer: str, people: Sequence[str]) -> float:
        mine = self.normalise(answer)
        agrees = np.array([self.normalise(one) == mine for one in people])
        if len(agrees) == 1:
            return float(agrees[0])  # nobody is left when the only one is left out
        return float(np.minimum((agrees.sum() - agrees) / min(self.enough, len(agrees) - 1), 1).mean())


@dataclasses.dataclass(frozen=True)
class ExactMatch:
    """Equal to one of the truths after both are normalised."""

    normalise: Callable[[str], str] = normalised_answer

    def __call__(self, said: Sequence[str], truths: Sequence[Sequence[str]]) -> dict[str, Tally]:
        """`exact_match`."""
        check_pairs(said, truths)
        pairs = zip(said, truths, strict=True)
        hits = [self.normalise(text) in {self.normalise(one) for one in given} for text, given in pairs]
        return {"exact_match": mean_of(np.array(hits))}


@dataclasses.dataclass(frozen=True)
class Anls:
    """Average normalised Levenshtein similarity (ST-VQA, arXiv 1905.13648, equation 1): the nearest truth, and nothing
    for an answer that is `threshold` or more of its length away. Forgives misread letters, not wrong words."""

    threshold: float = 0.5
    normalise: Callable[[str], str] = lowered

    def __call__(self, said: Sequence[str], truths: Sequence[Sequence[str]]) -> dict[str, Tally]:
        """`anls`."""
        check_pairs(said, truths)
        return {"anls": mean_of(np.array([self._score(*pair) for pair in zip(said, truths, strict=True)]))}

    def _score(self, text: str, given: Sequence[str]) -> float:
        mine, theirs = self.normalise(text), [self.normalise(one) for one in given]
        away = min(edits(mine, one) / max(len(mine), len(one), 1) for one in theirs)
        return 1 - away if away < self.threshold else 0.0


def edits(a: str, b: str) -> int:
    """Levenshtein distance: letters to insert, drop or change."""
    row = list(range(len(b) + 1))
    for i, letter in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, other in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (letter != other))
    return row[-1]
