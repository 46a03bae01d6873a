"""How well a model predicts the text it was given.

B rows   T text slots
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from mmjax.core.batch import Batch
from mmjax.core.errors import UserError, unknown_name
from mmjax.core.protocols import Data, EvalContext
from mmjax.evals.absent import Without
from mmjax.evals.generation import rows_of
from mmjax.evals.judging import Grouping, Tallies
from mmjax.evals.results import Record
from mmjax.evals.tallies import Tally, ratio

Array = np.ndarray


@dataclasses.dataclass(frozen=True)
class Perplexity:
    """Accuracy of the next token, its negative log-likelihood in nats, and the perplexity: exp of the sum of the
    likelihoods over the sum of the tokens, of all texts together, each token weighted by its loss weight.

    Reads the outputs `nll` and `hit` [B T] of a language head. Perplexities compare between models of one tokenizer.
    Results are those of `Grouping.results`; `image_absent` scores the same texts without the picture.
    """

    data: Data
    grouping: Grouping = Grouping()
    absent: str | None = "image"

    def evaluate(self, context: EvalContext) -> Record:
        """See the class."""
        rows = rows_of(self.data, self.grouping.labels(), _counted(context, self.data))
        baselines = {}
        if self.absent is not None:
            blind = Without(self.data, self.absent)
            counts = rows_of(blind, (), _counted(context, blind)).of(rows.about.id)
            baselines[f"{self.absent}_absent"] = tallies(np.stack(counts))
        return {
            "kind": "perplexity",
            "fingerprint": dict(self.data.fingerprint()),
            **self.grouping.results(rows.about, tallies(np.stack(rows.values)), {}, baselines),
        }


def tallies(counts: Float[Array, "N 3"]) -> Tallies:
    """Scores of (negative log-likelihood, right tokens, tokens) of each text."""
    return {"accuracy": Tally(counts, accuracy), "nll": Tally(counts, nll), "perplexity": Tally(counts, perplexity)}


def accuracy(counts: Float[Array, "... 3"]) -> Float[Array, "..."]:
    """How many tokens were the most likely ones."""
    return ratio(counts[..., 1], counts[..., 2])


def nll(counts: Float[Array, "... 3"]) -> Float[Array, "..."]:
    """Nats per token."""
    return ratio(counts[..., 0], counts[..., 2])


def perplexity(counts: Float[Array, "... 3"]) -> Float[Array, "..."]:
    """Between how many equally likely tokens the model is torn."""
    return np.exp(nll(counts))


def _counted(context: EvalContext, data: Data) -> Iterator[tuple[Float[Array, "B 3"], Batch]]:
    for outputs, batch in context.outputs(data, "nll", "hit"):
        weight = np.asarray(batch.text.loss, np.float64) * (np.asarray(batch.text.position) > 0)
        columns = [_scored(outputs, "nll", weight), _scored(outputs, "hit", weight), weight]
        yield np.stack([column.sum(1) for column in columns], axis=1), batch


def _scored(outputs: Mapping[str, Any], name: str, weight: Float[Array, "B T"]) -> Float[Array, "B T"]:
    if name not in outputs:
        raise UserError(
            f"perplexity needs a model with a language head: {unknown_name('output of the model', name, outputs)}"
        )
    return np.where(weight > 0, np.asarray(outputs[name], np.float64), 0) * weight
