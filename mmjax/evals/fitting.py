"""Whether a model tells that a picture and a text belong together.   B rows   N examples"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float

from mmjax.core.batch import Batch
from mmjax.core.errors import UserError, unknown_name
from mmjax.core.protocols import Data, EvalContext
from mmjax.evals.generation import rows_of
from mmjax.evals.judging import Grouping
from mmjax.evals.results import Record
from mmjax.evals.tallies import Tally, ratio

Array = np.ndarray


@dataclasses.dataclass(frozen=True)
class Fitting:
    """How often true pairs are taken for true, and false ones, which the model draws from the batch as in training, for
    false; `balanced` is the mean of the two, and chance is one half.

    Reads what `heads.matching.Matching` gives. How hard false pairs are depends on the batch: compare runs on the same
    data, in the same order and with the same batch. Results are those of `Grouping.results`.
    """

    data: Data
    grouping: Grouping = Grouping()

    def evaluate(self, context: EvalContext) -> Record:
        """See the class. Raises UserError for a model that does not judge pairs."""
        rows = rows_of(self.data, self.grouping.labels(), _counted(context, self.data))
        counts = np.stack(rows.values)
        scores = {"balanced": balanced, "true": true_pairs, "false": false_pairs}
        half = Tally(np.tile([0.5, 1.0, 0.5, 1.0], (len(counts), 1)), balanced)
        return {
            "kind": "fitting",
            "fingerprint": dict(self.data.fingerprint()),
            **self.grouping.results(
                rows.about,
                {name: Tally(counts, score) for name, score in scores.items()},
                dict.fromkeys(scores, half),
                {},
            ),
        }


def balanced(counts: Float[Array, "... 4"]) -> Float[Array, "..."]:
    """The mean of the two rates."""
    return (true_pairs(counts) + false_pairs(counts)) / 2


def true_pairs(counts: Float[Array, "... 4"]) -> Float[Array, "..."]:
    """True pairs that were taken for true."""
    return ratio(counts[..., 0], counts[..., 1])


def false_pairs(counts: Float[Array, "... 4"]) -> Float[Array, "..."]:
    """False pairs that were taken for false."""
    return ratio(counts[..., 2], counts[..., 3])


def _counted(context: EvalContext, data: Data) -> Iterator[tuple[Float[Array, "B 4"], Batch]]:
    """(true and right, true, false and right, false) of each row."""
    for outputs, batch in context.outputs(data, "matching"):
        if "matching" not in outputs:
            raise UserError(unknown_name("output of the model", "matching", outputs))
        logit, valid = (np.asarray(outputs["matching"][name]) for name in ("logit", "valid"))
        if len(logit) != batch.rows:
            raise UserError(f"the model judges {len(logit)} of {batch.rows} rows; in evaluation it must judge them all")
        right = valid & ((logit > 0) == (np.arange(logit.shape[1]) == 0))
        columns = right[:, 0], valid[:, 0], right[:, 1:].sum(1), valid[:, 1:].sum(1)
        yield np.stack(columns, axis=1).astype(np.float64), batch
