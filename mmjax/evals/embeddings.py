"""Outputs of a model over a whole data set, as plain arrays beside their labels.

N real examples   E embedding width
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from mmjax.core.batch import Batch
from mmjax.core.errors import DataError, UserError, unknown_name
from mmjax.core.protocols import Data, EvalContext
from mmjax.evals.once import FIRST, Once

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
    once: tuple[str, str | None] | None = None,
) -> Embedded:
    """One pass over `data`: `outputs[output][modality]` of every example that has all `modalities`, and its labels.

    once: (modality, label): examples of equal label share what they have of that modality, which is encoded once, apart
    from the rest; where it is the only modality, only the first example of each value is there. Raises UserError for a
    label or modality that is not there, DataError when no example is left."""
    wanted = wanted_labels(data, labels if once is None else (*labels, once[1]))
    if once is not None and once[1] is not None and _apart(data.spec(), modalities, once[0]):
        return _shared(context, Once(data, tuple(modalities), *once), wanted, output)
    found = [_read(*pair, output, modalities, wanted) for pair in context.outputs(data, output)]
    vectors, columns = _merged(found, modalities, modalities, wanted)
    whole = Embedded(vectors, {name: columns[name] for name in wanted}, columns[ID], data.names())
    return whole if once is None or tuple(modalities) != once[:1] else whole.unique(once[1])


def _shared(context: EvalContext, data: Once, wanted: Sequence[str], output: str) -> Embedded:
    """`embed` where the examples share a modality."""
    rest, labels = tuple(name for name in data.modalities if name != data.shared), (*wanted, FIRST)
    found: dict[bool, list] = {True: [], False: []}
    for outputs, batch in context.outputs(data, output):
        alone = getattr(batch, data.shared) is not None
        found[alone].append(_read(outputs, batch, output, (data.shared,) if alone else rest, labels))
    vectors, columns = _merged(found[True], data.modalities, (data.shared,), labels)
    if rest:
        order = np.argsort(columns[ID], kind="stable")
        owner, (shared,) = columns[ID][order], vectors.values()
        others, columns = _merged(found[False], data.modalities, rest, labels)
        vectors = {**others, data.shared: shared[order][np.searchsorted(owner, columns[FIRST])]}
    return Embedded(vectors, {name: columns[name] for name in wanted}, columns[ID], data.names())


def _apart(spec: Batch, modalities: Sequence[str], shared: str) -> bool:
    """Whether all modalities are there, and text has no places for `shared`: then neither needs the other."""
    return set(modalities) <= set(spec.modalities()) and (spec.text is None or shared not in spec.landing())


ID = "id of the example"


def _read(
    outputs: Mapping, batch: Batch, output: str, modalities: Sequence[str], labels: Sequence[str]
) -> tuple[list[Array], dict[str, Array]]:
    """Vectors and columns of the real examples of a batch."""
    values, real = _pick(outputs, output, modalities), np.asarray(batch.valid)[:, 0]
    for name in modalities:
        real = real & np.asarray(batch.present(name))[:, 0]
    if FIRST in labels:
        real = real & (batch.labels[FIRST][:, 0] >= 0)
    columns = {name: np.asarray(batch.labels[name])[:, 0][real] for name in labels}
    return [x[real] for x in values], {**columns, ID: np.asarray(batch.id)[:, 0][real]}


def _merged(
    found: Sequence[tuple[list[Array], dict[str, Array]]],
    needed: Sequence[str],
    modalities: Sequence[str],
    labels: Sequence[str],
) -> tuple[dict[str, Array], dict[str, Array]]:
    if not sum(len(columns[ID]) for _, columns in found):
        raise DataError(f"nothing to evaluate: no example of the data has {' and '.join(needed)}")
    vectors = {name: np.concatenate([parts[i] for parts, _ in found]) for i, name in enumerate(modalities)}
    return vectors, {name: np.concatenate([columns[name] for _, columns in found]) for name in (*labels, ID)}


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
