"""ROUGE-L (Lin 2004, section 3): the longest common subsequence with a reference, as the COCO evaluation scores it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from mmjax.evals.tallies import Tally, check_pairs, mean_of
from mmjax.evals.tokenise import Words, words


@dataclasses.dataclass(frozen=True)
class RougeL:
    """F-measure of the best precision and the best recall over the references; `beta` > 1 favours recall."""

    beta: float = 1.2
    words: Callable[[str], Words] = words

    def __call__(self, said: Sequence[str], truths: Sequence[Sequence[str]]) -> dict[str, Tally]:
        """`rouge_l`."""
        check_pairs(said, truths)
        pairs = zip(map(self.words, said), truths, strict=True)
        return {"rouge_l": mean_of(np.array([self._score(mine, list(map(self.words, refs))) for mine, refs in pairs]))}

    def _score(self, mine: Words, references: Sequence[Words]) -> float:
        common = [common_length(mine, reference) for reference in references]
        if max(common) == 0:
            return 0.0
        precision = max(common) / len(mine)
        recall = max(same / len(ref) for same, ref in zip(common, references, strict=True) if ref)
        return (1 + self.beta**2) * precision * recall / (recall + self.beta**2 * precision)


def common_length(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(b) + 1)
    for word in a:
        before = 0  # the cell above and to the left
        for j, other in enumerate(b, 1):
            before, row[j] = row[j], before + 1 if word == other else max(row[j], row[j - 1])
    return row[-1]
