"""Whether two modalities belong together, judged on both at once.  B rows   T, S tokens   D width"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array

from mmjax.core.batch import Batch
from mmjax.core.errors import UserError
from mmjax.core.tokens import Tokens
from mmjax.nn.linear import Linear
from mmjax.ops.negatives import Negatives, hard_negatives
from mmjax.ops.pairwise import Relation


class Matching(nn.Module):
    """Image-text matching (ALBEF, arXiv 2107.07651, section 3.2): of each sample the pair itself, its left with a hard
    negative right, and a hard negative left with its right; all three through `fuse`, one logit each.

    fuse: a module or function `(left: Tokens, right: Tokens, train=...)` -> a vector per row [3B D]. left, right, same,
    alike: as in `objectives.contrastive`, so that a picture's other caption is never taken for a mistake. Gives
    {"matching": {"logit" float32 [B 3], "valid" bool [B 3]}}, the true pair first. Negatives are drawn in training by
    the step's own randomness, in evaluation the same for every call; under gradient accumulation, from the micro-batch.
    hardness: 1 draws them as the paper does, by the softmax of the contrastive scores; 0 without regard to these.
    """

    fuse: Callable[..., Array]
    left: str = "image"
    right: str = "text"
    same: str | None = None
    alike: tuple[str, ...] = ()
    hardness: float = 1.0

    @nn.compact
    def __call__(
        self, left: Tokens, right: Tokens, outputs: Mapping[str, Any], batch: Batch, *, train: bool = False
    ) -> dict[str, dict[str, Array]]:
        """`outputs` are those of the contrastive head: embeddings, present, scale."""
        rows, samples = batch.fault.shape
        if samples > 1:
            raise UserError(f"matching takes one sample per row; these rows are packed with {samples}")
        relation, picked = self._pick(outputs, batch, train)
        lefts, rights = triples(left, right, picked)
        logit = Linear("bd,de->be", (1,), name="score")(self.fuse(lefts, rights, train=train)).astype(jnp.float32)
        whole = relation.left & relation.right
        valid = jnp.stack([whole, relation.left & picked.has_right, relation.right & picked.has_left], axis=1)
        return {"matching": {"logit": logit.reshape(3, rows).T, "valid": valid}}

    def _pick(self, outputs: Mapping[str, Any], batch: Batch, train: bool) -> tuple[Relation, Negatives]:
        sides = outputs["embeddings"][self.left], outputs["embeddings"][self.right]
        here = outputs["present"][self.left], outputs["present"][self.right]
        relation = Relation.labelled(batch, *here, self.same, self.alike)
        key = self.make_rng("dropout") if train else jax.random.key(0)
        return relation, hard_negatives(key, *sides, self.hardness * outputs["scale"], relation)


def triples(left: Any, right: Any, picked: Negatives) -> tuple[Any, Any]:
    """[B ...] -> [3B ...]: each pair, each left with its negative right, each right with its negative left."""

    def rows(x: Array, negative: Array, second: bool) -> Array:
        other = x[negative]
        return jnp.concatenate([x, other, x] if second else [x, x, other])

    lefts = jax.tree.map(lambda x: rows(x, picked.left, False), left)
    return lefts, jax.tree.map(lambda x: rows(x, picked.right, True), right)
