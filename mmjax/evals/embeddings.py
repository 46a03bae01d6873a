"""Outputs of a model over a whole data set, as plain arrays beside their labels.

N real examples   E embedding width
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from mmjax.core.errors import DataError, UserError, unknown_name
from mmjax.core.protocols import Data, EvalContext

Array = np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Embedded:
    """What `embed` found, in the order of the data, padding and null examples left out."""

    vectors: Mapping[str, Float[Array, "N E"]]  # by modality
    labels: Mapping[str, Int[Array, " N"]]
    id: Int[Array, " N"]
    names: Mapping[str, tuple[str, ...]]

    def identity(self, label: str | None, default: Array | None = None) -> Int[Array, " N"]:
        """What tells examples apart: equal where `label` is; an example without a value (-1) is like no other. Without
        a label: `default`, or every example for itself."""
        itself = np.arange(len(self.id))
        if label is None:
            return itself if default is None else default
        return np.where(self.labels[label] < 0, -1 - itself, self.labels[label])

    def name_of(self, label: str, value: int) -> str:
        """What a label's integer means, or the integer itself."""
        names = self.names.get(label, ())
        return names[value] if 0 <= value < len(names) else str(value)

    def select(self, rows: Array) -> Embedded:
        """Only these rows."""
        vectors = {name: value[rows] for name, value in self.vectors.items()}
        labels = {name: value[rows] for name, value in self.labels.items()}
        return Embedded(vectors, labels, self.id[rows], self.names)

    def unique(self, label: str | None) -> Embedded:
        """The first row of each value of `label`: one row per picture where captions repeat it."""
        return self.select(np.sort(np.unique(self.identity(label), return_index=True)[1]))


def embed(
    context: EvalContext,
    data: Data,
    modalities: Sequence[str],
    labels: Sequence[str | None] = (),
    output: str = "embeddings",
) -> Embedded:
    """One pass over `data`: `outputs[output][modality]` of every example that has all `modalities`, and its labels.

    Raises UserError for a label or modality that is not there, DataError when no example is left."""
    wanted = wanted_labels(data, labels)
    rows: list[list[Array]] = []
    for outputs, batch in context.outputs(data, output):
        values = _pick(outputs, output, modalities)
        real = np.asarray(batch.valid)[:, 0]
        for name in modalities:
            real = real & np.asarray(batch.present(name))[:, 0]
        columns = [*values, *(batch.labels[name][:, 0] for name in wanted), batch.id[:, 0]]
        rows.append([np.asarray(column)[real] for column in columns])
    if not rows or sum(len(row[-1]) for row in rows) == 0:
        raise DataError(f"nothing to evaluate: no example of the data has {' and '.join(modalities)}")
    merged = [np.concatenate(parts) for parts in zip(*rows, strict=True)]
    count = len(modalities)
    vectors = dict(zip(modalities, merged[:count], strict=True))
    return Embedded(vectors, dict(zip(wanted, merged[count:-1], strict=True)), merged[-1], data.names())


def wanted_labels(data: Data, labels: Sequence[str | None]) -> tuple[str, ...]:
    """The labels that are asked for, each once. Raises UserError for one that is not there, and for packed rows."""
    wanted = tuple(dict.fromkeys(name for name in labels if name is not None))
    spec = data.spec()
    for name in wanted:
        if name not in spec.labels:
            raise UserError(unknown_name("label of this data", name, spec.labels))
    if spec.fault.shape[1] != 1:
        raise UserError(f"evaluation wants one sample per row; this data packs up to {spec.fault.shape[1]}")
    return wanted


def normalised(vectors: Float[Array, "N E"]) -> Float[Array, "N E"]:
    """Rows of length 1 (float32), so that products are cosines; zero rows stay zero."""
    vectors = np.asarray(vectors, np.float32)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def _pick(outputs: Mapping, output: str, modalities: Sequence[str]) -> list[Array]:
    if output not in outputs:
        raise UserError(unknown_name("output of the model", output, outputs))
    for name in modalities:
        if name not in outputs[output]:
            raise UserError(unknown_name("modality of the model's outputs", name, outputs[output]))
    return [np.asarray(outputs[output][name], np.float32) for name in modalities]
