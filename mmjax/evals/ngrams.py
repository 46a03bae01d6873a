"""Metrics that count runs of words: BLEU and CIDEr-D, with the definitions of the COCO caption evaluation.

Q examples   n length of a run of words
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from mmjax.evals.tallies import Tally, check_pairs, mean_of
from mmjax.evals.tokenise import Words, words

Array = np.ndarray
Runs = Counter[Words]

_SMALL, _TINY = 1e-9, 1e-15  # the reference's guards against nothing to divide by


def runs(text: Words, n: int) -> Runs:
    """How often each run of 1..n words occurs."""
    return Counter(text[i : i + k] for k in range(1, n + 1) for i in range(len(text) - k + 1))


@dataclasses.dataclass(frozen=True)
class Bleu:
    """BLEU-1 to BLEU-n of a corpus (Papineni et al. 2002): the geometric mean of clipped precisions, with the brevity
    penalty towards the reference of the nearest length (the shorter one of two)."""

    n: int = 4
    words: Callable[[str], Words] = words

    def __call__(self, said: Sequence[str], truths: Sequence[Sequence[str]]) -> dict[str, Tally]:
        """`bleu1` .. `bleu{n}`."""
        check_pairs(said, truths)
        counts = np.array([self._counts(*pair) for pair in zip(said, truths, strict=True)], np.float64)
        return {f"bleu{k}": Tally(counts, functools.partial(bleu, n=self.n, k=k)) for k in range(1, self.n + 1)}

    def _counts(self, text: str, references: Sequence[str]) -> list[int]:
        """[length, reference length, runs said of 1..n words, runs that were right of 1..n words]."""
        mine, theirs = self.words(text), [self.words(reference) for reference in references]
        allowed: Runs = functools.reduce(Counter.__or__, (runs(reference, self.n) for reference in theirs))
        right = Counter()
        for run, count in (runs(mine, self.n) & allowed).items():
            right[len(run)] += count
        nearest = min((abs(len(reference) - len(mine)), len(reference)) for reference in theirs)[1]
        lengths = range(1, self.n + 1)
        return [len(mine), nearest, *(max(0, len(mine) - k + 1) for k in lengths), *(right[k] for k in lengths)]


def bleu(counts: Float[Array, "... 2+2n"], n: int, k: int) -> Float[Array, "..."]:
    """BLEU-k of summed counts (see `Bleu._counts`); 0 for an empty text, NaN for no text at all."""
    said, right = counts[..., 2 : 2 + k], counts[..., 2 + n : 2 + n + k]
    precision = np.prod((right + _TINY) / (said + _SMALL), axis=-1) ** (1 / k)
    length = (counts[..., 0] + _TINY) / (counts[..., 1] + _SMALL)
    score = precision * np.exp(np.minimum(1 - 1 / length, 0))
    return np.where(counts[..., 1] > 0, score, math.nan)


@dataclasses.dataclass(frozen=True)
class CiderD:
    """CIDEr-D (arXiv 1411.5726): tf-idf cosines of runs of 1..n words, clipped, with a
    Gaussian of width `sigma` on the difference in length, times 10.

    Rare words weigh more: how rare is counted over the references of the given corpus, so scores of different sets (or
    of part of a set) do not compare. A corpus of one picture scores 0.
    """

    n: int = 4
    sigma: float = 6.0
    words: Callable[[str], Words] = words

    def __call__(self, said: Sequence[str], truths: Sequence[Sequence[str]]) -> dict[str, Tally]:
        """`cider_d`."""
        check_pairs(said, truths)
        theirs = [[runs(self.words(reference), self.n) for reference in references] for references in truths]
        seen = Counter(run for references in theirs for run in set().union(*references))
        rarity = functools.partial(_rarity, seen, math.log(len(said)))
        scores = []
        for text, references in zip(said, theirs, strict=True):
            mine = _Vector.of(runs(self.words(text), self.n), rarity, self.n)
            pairs = [self._similarity(mine, _Vector.of(reference, rarity, self.n)) for reference in references]
            scores.append(10 * float(np.mean(pairs)))
        return {"cider_d": mean_of(np.array(scores))}

    def _similarity(self, mine: _Vector, reference: _Vector) -> float:
        shared = np.zeros(self.n)
        for run in mine.weight.keys() & reference.weight.keys():
            shared[len(run) - 1] += min(mine.weight[run], reference.weight[run]) * reference.weight[run]
        norms = mine.norm * reference.norm
        cosine = np.divide(shared, norms, out=shared, where=norms > 0)
        return float(cosine.mean() * math.exp(-((mine.length - reference.length) ** 2) / (2 * self.sigma**2)))


def _rarity(seen: Counter[Words], total: float, run: Words) -> float:
    return total - math.log(max(1, seen[run]))


@dataclasses.dataclass(frozen=True, eq=False)
class _Vector:
    weight: dict[Words, float]
    norm: Float[Array, " n"]  # of the runs of each length
    length: int  # in pairs of words, as the reference counts it

    @classmethod
    def of(cls, found: Runs, rarity: Callable[[Words], float], n: int) -> _Vector:
        weight = {run: count * rarity(run) for run, count in found.items()}
        square = np.zeros(n)
        for run, value in weight.items():
            square[len(run) - 1] += value * value
        return cls(weight, np.sqrt(square), max(sum(count for run, count in found.items() if len(run) == 1) - 1, 0))
