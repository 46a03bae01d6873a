"""Answers of classifiers: for models with a fixed list of things to say.  B rows   C classes"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from mmjax.core.batch import Batch
from mmjax.core.errors import UserError, unknown_name
from mmjax.core.protocols import Data, EvalContext


@dataclasses.dataclass(frozen=True)
class Chosen:
    """Says the name of the class that scores highest: the generator of evaluators of written text for a model that
    classifies (`heads.classify`), so that it is judged as one that writes.

    label: of the data, whose names are the classes. output: of the model, [B C] or [B 1 C]. Raises UserError for a
    label without names, and when there are not as many as the model has classes."""

    label: str
    output: str = "logits"

    def __call__(self, context: EvalContext, data: Data) -> Iterator[tuple[Sequence[str], Batch]]:
        """See `mmjax.evals.generation.Generator`."""
        named = data.names()
        if self.label not in named:
            raise UserError(unknown_name("label of this data that has names", self.label, named))
        names = named[self.label]
        for outputs, batch in context.outputs(data, self.output):
            logits = outputs[self.output].reshape(batch.rows, -1)
            if logits.shape[1] != len(names):
                raise UserError(
                    f"the model scores {logits.shape[1]} classes per row in {self.output!r}; {self.label!r} has "
                    f"{len(names)} names"
                )
            yield [names[place] for place in logits.argmax(axis=1).tolist()], batch
