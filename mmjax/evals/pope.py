"""POPE: does a model say yes to things that a picture does not show? (arXiv 2305.10355, section 5)"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from mmjax.core.errors import DataError
from mmjax.evals.tallies import Tally, check_pairs, ratio

Array = np.ndarray
_NO = re.compile(r"\b(?:no|not)\b")


def says_yes(text: str) -> bool:
    """As the published script reads an answer: its first sentence, yes unless "no" or "not" is a word of it."""
    return not _NO.search(text.split(".")[0].lower())


@dataclasses.dataclass(frozen=True)
class Pope:
    """Accuracy, precision, recall and F1 of saying yes, and how often it is said; a model that invents things has a
    high `yes_ratio` and a low precision. Truths are "yes" or "no"."""

    def __call__(self, said: Sequence[str], truths: Sequence[Sequence[str]]) -> dict[str, Tally]:
        """`accuracy`, `precision`, `recall`, `f1`, `yes_ratio`."""
        check_pairs(said, truths)
        right = np.array([_truth(given[0]) for given in truths])
        yes = np.array([says_yes(text) for text in said])
        counts = np.stack([yes & right, yes & ~right, ~yes & right, ~yes & ~right], axis=1).astype(np.float64)
        return {score.__name__: Tally(counts, score) for score in (accuracy, precision, recall, f1, yes_ratio)}


def accuracy(counts: Float[Array, "... 4"]) -> Float[Array, "..."]:
    """Right answers; counts are (true yes, false yes, false no, true no)."""
    return ratio(counts[..., 0] + counts[..., 3], counts.sum(-1))


def precision(counts: Float[Array, "... 4"]) -> Float[Array, "..."]:
    """How much of what was said to be there is there; unknown when yes was never said."""
    return ratio(counts[..., 0], counts[..., 0] + counts[..., 1])


def recall(counts: Float[Array, "... 4"]) -> Float[Array, "..."]:
    """How much of what is there was said to be."""
    return ratio(counts[..., 0], counts[..., 0] + counts[..., 2])


def f1(counts: Float[Array, "... 4"]) -> Float[Array, "..."]:
    """The harmonic mean of precision and recall."""
    return ratio(2 * counts[..., 0], 2 * counts[..., 0] + counts[..., 1] + counts[..., 2])


def yes_ratio(counts: Float[Array, "... 4"]) -> Float[Array, "..."]:
    """How often the answer was yes."""
    return ratio(counts[..., 0] + counts[..., 1], counts.sum(-1))


def _truth(text: str) -> bool:
    if text.strip().lower() not in ("yes", "no"):
        raise DataError(f'whether a thing is in the picture must be "yes" or "no"; the data says {text!r}')
    return text.strip().lower() == "yes"
