"""Captions: what a model writes about a picture against what people wrote."""

from __future__ import annotations

import dataclasses
from typing import Any

from mmjax.core.protocols import Data, EvalContext
from mmjax.evals.generation import Field, Generator, Label, Rows
from mmjax.evals.judging import Grouping, judge, written
from mmjax.evals.meteor import Meteor
from mmjax.evals.ngrams import Bleu, CiderD
from mmjax.evals.results import Record, codes
from mmjax.evals.rouge import RougeL
from mmjax.evals.tallies import Metric


@dataclasses.dataclass(frozen=True)
class Captioning:
    """CIDEr-D, BLEU-1 to 4, ROUGE-L and METEOR (`metrics`; the first one picks the examples), per slice and overall.

    An example has its references under `truth`. Where the data repeats a picture with one caption each, `same` names
    the label that tells pictures apart: the picture is judged once per value of `grouping.macro` (the language),
    against all captions of that language. Results are those of `Grouping.results`; each number holds `image_absent`,
    the score of what the same model writes without the picture.
    """

    data: Data
    generator: Generator
    truth: Field | Label = Field("caption")
    same: str | None = None
    metrics: tuple[Metric, ...] = (CiderD(), Bleu(), RougeL(), Meteor())
    grouping: Grouping = Grouping()
    absent: str | None = "image"

    def evaluate(self, context: EvalContext) -> Record:
        """See the class."""
        said = written(context, self, self.same)
        said, truths = self._pooled(said, self.truth.of(self.data, said.about))
        return {"kind": "captioning", **judge(context, self, said, truths)}

    def _pooled(self, said: Rows, truths: list[tuple[Any, ...]]) -> tuple[Rows, list[tuple[Any, ...]]]:
        """One row per picture and language, with the references of all of its rows."""
        picture = codes(said.about.identity(self.same), self.grouping.group(said.about))
        pools: dict[int, list[int]] = {}
        for row, key in enumerate(picture.tolist()):
            pools.setdefault(key, []).append(row)
        first = [rows[0] for rows in pools.values()]
        merged = [tuple(dict.fromkeys(one for row in rows for one in truths[row])) for rows in pools.values()]
        return Rows([said.values[row] for row in first], said.about.select(first)), merged
