"""What the training loop knows of data, evaluators and hooks: their shapes, not their names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from mmjax.core.batch import Batch
from mmjax.core.means import Mean


@runtime_checkable
class Data(Protocol):
    """An endless (training) or finite (evaluation) stream of batches that can start at any position.

    The batch at position `p` (examples seen so far, over all processes) is a pure function of the fingerprint and `p`.
    """

    def spec(self) -> Batch:
        """The *global* batch as ShapeDtypeStructs; of several shapes (`Shapes`) the one that takes most."""
        ...

    def fingerprint(self) -> Mapping[str, str]:
        """Everything that changes which bytes come in which order, part by part, as short strings. The batch size is
        not part of it: the position counts examples."""
        ...

    def batches(self, position: int = 0, process: int = 0, processes: int = 1) -> Iterator[Batch]:
        """Host batches (numpy) from `position` on: this process's contiguous share of the rows of each global batch.
        A finite stream pads its last batch with rows of fault "padding"."""
        ...

    def names(self) -> Mapping[str, tuple[str, ...]]:
        """What the integers of a label mean: `{"language": ("en", "es", ...)}`; labels without names are left out."""
        ...

    def example(self, index: int) -> Mapping[str, Any]:
        """Example `index` (a value of `Batch.id`) for human eyes: decoded pixels under "image", texts, label names."""
        ...


@runtime_checkable
class Shapes(Protocol):
    """Data whose batches come in several shapes, such as one for each length; a run compiles its step for each."""

    def specs(self) -> Sequence[Batch]:
        """Every global batch that may come, as ShapeDtypeStructs."""
        ...


def specs_of(data: Data) -> tuple[Batch, ...]:
    """Every global batch that may come, as ShapeDtypeStructs: one, unless the data tell of more."""
    return tuple(data.specs()) if isinstance(data, Shapes) else (data.spec(),)


@runtime_checkable
class Objective(Protocol):
    """A pure function of a model's outputs and the batch. `"loss"` is what is trained; other entries are reported."""

    def __call__(self, outputs: Mapping[str, Any], batch: Batch) -> dict[str, Mean]: ...


class EvalContext(Protocol):
    """What an evaluator is given."""

    model: Any
    params: Any
    step: int

    def outputs(self, data: Data, *names: str) -> Iterator[tuple[Mapping[str, Any], Batch]]:
        """(model outputs, host batch), both numpy, over one pass of `data`, in order; padding rows are included. With
        `names`, only these outputs, where the model has them all; what they do not need is not computed.
        Compiled once per batch shape. Stops the run cleanly (raises) when the process was asked to stop."""
        ...


@runtime_checkable
class Evaluator(Protocol):
    """Judges parameters and returns a JSON-like tree of results (`mmjax.evals.results` says how numbers look)."""

    def evaluate(self, context: EvalContext) -> Mapping[str, Any]: ...
