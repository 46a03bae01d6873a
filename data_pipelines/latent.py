"""Word vectors before the first step: what the captions alone say about which words go together.

N documents   V vocabulary   D width
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from data_pipelines.cache import cached
from data_pipelines.protocols import Source
from data_pipelines.tokenizers import Tokenizer
from mmjax.core.errors import UserError

Array = np.ndarray
_ROUNDS = 3  # of subspace iteration: enough for directions that matter


@dataclasses.dataclass(frozen=True)
class LatentSemantics:
    """An initialiser for a table of word vectors [V D]: latent semantic analysis of the captions (Deerwester et al.
    1990) on positive pointwise mutual information (Levy et al. 2015, section 2).

    Each record of `source` is a document that holds all its captions. Where these are one name in several languages,
    words that translate each other start close together, so that no step is spent on finding that out. It sees captions
    of the source it is given and nothing else: give it the training split. share: label whose equal values share one
    document's weight, so that a thing shown in many variants does not outweigh the others. deviation: root mean square
    of the entries; `noise` times that is added, for words too rare to have a direction. power: of the singular values.
    """

    tokenizer: Tokenizer
    source: Source
    field: str = "caption"
    share: str | None = None
    deviation: float = 0.3
    power: float = 0.5
    noise: float = 0.1

    def __call__(self, rng: Any, shape: Sequence[int], dtype: Any) -> Float[Array, "V D"]:
        """The table. `rng` changes nothing: the same captions give the same vectors. Raises UserError for a table that
        is smaller than the vocabulary or wider than there are documents."""
        vocabulary, width = shape
        if vocabulary < self.tokenizer.size or width > len(self.source):
            raise UserError(
                f"latent semantics of {len(self.source)} documents and {self.tokenizer.size} ids cannot fill a table "
                f"of {vocabulary} x {width}: it needs a row for each id and a document for each column"
            )

        def make(path: pathlib.Path) -> None:
            with open(path, "wb") as file:
                np.save(file, self._vectors(vocabulary, width), allow_pickle=False)

        made_from = self._made_from() | {"shape": list(shape)}
        return np.load(cached("latent.npy", made_from, make), allow_pickle=False).astype(dtype)

    def _made_from(self) -> Mapping[str, Any]:
        settings = {name: getattr(self, name) for name in ("field", "share", "deviation", "power", "noise")}
        return {**self.source.fingerprint(), **self.tokenizer.fingerprint(), "settings": settings}

    def _vectors(self, vocabulary: int, width: int) -> Float[Array, "V D"]:
        rng = np.random.default_rng(0)
        information = self._information(vocabulary)
        basis = information @ rng.normal(size=(vocabulary, min(width + 32, len(information)))).astype(np.float32)
        for _ in range(_ROUNDS):
            basis = np.linalg.qr(information @ (information.T @ basis))[0]
        left, strength, _ = np.linalg.svd(information.T @ basis, full_matrices=False)
        vectors = left[:, :width] * strength[:width] ** self.power
        vectors *= self.deviation / np.sqrt(np.mean(vectors**2))
        return vectors + rng.normal(size=vectors.shape) * self.deviation * self.noise

    def _information(self, vocabulary: int) -> Float[Array, "N V"]:
        """Positive pointwise mutual information of documents and words, rows scaled by the root of their weight."""
        records = [self.source[index] for index in range(len(self.source))]
        weight = self._weights(records)
        counts = np.zeros((len(records), vocabulary), np.float32)
        for row, record in enumerate(records):
            texts = record.get(self.field) or ()
            for text in (texts,) if isinstance(texts, str) else texts:
                np.add.at(counts[row], list(self.tokenizer.encode(text)), weight[row])
        joint = counts / counts.sum()
        apart = joint.sum(1, keepdims=True) * joint.sum(0)
        ratio = np.divide(joint, apart, out=np.ones_like(joint), where=joint > 0)
        return np.maximum(np.log(ratio), 0) * np.sqrt(weight)[:, None]

    def _weights(self, records: Sequence[Mapping[str, Any]]) -> Float[Array, " N"]:
        if self.share is None:
            return np.ones(len(records), np.float32)
        _, group, count = np.unique([record[self.share] for record in records], return_inverse=True, return_counts=True)
        return (1 / count[group]).astype(np.float32)
