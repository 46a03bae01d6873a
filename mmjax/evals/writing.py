"""How a model writes for an evaluation.  B rows   T places"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from mmjax.core.batch import Batch, Text
from mmjax.core.protocols import Data, EvalContext
from mmjax.decoding.generate import generate
from mmjax.decoding.samplers import Greedy, Sampler


class Speller(Protocol):
    """What knows how ids are written; a chat feature of a data pipeline does."""

    def answers(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """The text of each row of ids."""
        ...

    @property
    def stops(self) -> tuple[int, ...]:
        """Ids that end an answer."""
        ...


@dataclasses.dataclass(frozen=True)
class Writer:
    """Continues each row's prompt with `mmjax.decoding.generate`: the generator of the evaluators of written text.

    steps: how many ids an answer may have; seed: of samplers that draw."""

    speller: Speller
    steps: int = 32
    sampler: Sampler = Greedy()
    seed: int = 0

    def __call__(self, context: EvalContext, data: Data) -> Iterator[tuple[Sequence[str], Batch]]:
        """See `mmjax.evals.generation.Generator`."""
        with jax.transfer_guard("allow"):
            for number, batch in enumerate(data.batches()):
                context.poll()
                key = jax.random.fold_in(jax.random.key(self.seed), number)
                yield self._written(context.model, context.params, batch, key), batch

    def _written(self, model: Any, params: Any, batch: Batch, key: jax.Array) -> list[str]:
        made = generate(model, params, prompts(batch), self.sampler, self.steps, end=self.speller.stops, rng=key)
        ids, lengths = np.asarray(made.ids), np.asarray(made.lengths)
        return self.speller.answers([row[:length].tolist() for row, length in zip(ids, lengths, strict=True)])


def prompts(batch: Batch) -> Batch:
    """The batch (numpy) with each row cut before its first place that carries a loss weight."""
    text = batch.text
    given = np.cumsum(np.asarray(text.loss) > 0, axis=1) == 0

    def cut(name: str, empty: int) -> np.ndarray:
        return np.where(given, getattr(text, name), empty)

    kept = {name: cut(name, 0) for name in ("ids", "segment", "block", "position")}
    return batch.replace(text=Text(**kept, slot=cut("slot", -1), loss=np.zeros_like(text.loss), per_item=text.per_item))
