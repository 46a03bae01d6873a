"""Heads that predict the ids of a token row.  B rows   T places   D width   V vocabulary   K further distances"""

from __future__ import annotations

import math
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mmjax.core.batch import Text
from mmjax.core.parameters import declare, slot
from mmjax.core.tokens import Places
from mmjax.nn.linear import Normal
from mmjax.nn.norms import RMSNorm
from mmjax.ops.crossentropy import Auto, Execution, cross_entropy
from mmjax.ops.divergence import divergence
from mmjax.ops.few import FEW
from mmjax.ops.vocabulary import Form, Words


class Language(nn.Module):
    """Scores of the next id from each place's hidden state, and what they say of the row's own ids.

    Without a table from outside (that of the embedding: tied weights, arXiv 1608.05859) it has its own, of `rows`
    vectors (None: vocab). vocab: ids that are real; further rows of a table are padding, which lets it be split over
    devices. bias: an offset for each id. cap: of the scores (Gemma 2, arXiv 2408.00118, section 2). execution: how the
    loss is computed; every choice gives the same numbers. scored: what share of all places of
    a batch has a loss weight at most; then these alone are scored, the others tell nothing, and "nll" of a batch with
    more is NaN, which the guard of a run sees. Worth it on one device where answers are short and questions long.
    """

    vocab: int
    rows: int | None = None
    bias: bool = False
    cap: float | None = None
    execution: Execution = Auto()
    scored: float | None = None

    @nn.compact
    def words(self, width: int, table: Float[Array, "V D"] | None = None) -> Words:
        """What scores are taken against."""
        if table is None:
            table = declare(self, "table", Normal(width**-0.5), vocab=self.rows or self.vocab, width=width)
        bias = declare(self, "bias", nn.initializers.zeros, vocab=table.shape[0]) if self.bias else None
        return Words(table, bias)

    @property
    def form(self) -> Form:
        """What a score is."""
        return Form(self.vocab, self.cap)

    def __call__(
        self, x: Float[Array, "B T D"], text: Text, table: Float[Array, "V D"] | None = None, distance: int = 1
    ) -> dict[str, Array]:
        """{"nll", "log_z" float32 [B T], "hit" bool [B T]} of predicting `text.ids[b, t]` from `x[b, t - distance]`.

        All zero where there is nothing to predict or nothing to predict it from: at media, at padding, at the first
        `distance` places of a sample. Packed samples predict nothing of each other."""
        target, weight = ahead(text, distance)
        told = self._told(x, table, target, weight) if self.scored is None else self._some(x, table, target, weight)
        return {name: later(y, distance) for name, y in told.items()}

    def _told(self, x: Array, table: Array | None, target: Array, weight: Array) -> dict[str, Array]:
        words = self.words(x.shape[-1], table)
        form, execution = self.form, self.execution
        told = cross_entropy(x, words.table, target, bias=words.bias, weight=weight, form=form, execution=execution)
        return {name: getattr(told, name) for name in ("nll", "log_z", "hit")}

    def _some(self, x: Array, table: Array | None, target: Array, weight: Array) -> dict[str, Array]:
        """The same of the places that count, gathered."""
        counts = weight.reshape(-1) > 0
        most = math.ceil(self.scored * counts.size)
        where = jax.lax.top_k(counts.astype(jnp.float32), most)[1]
        x, target, counting = (y.reshape(counts.size, *y.shape[2:])[where] for y in (x, target, weight))
        told = self._told(x, table, jnp.where(counting > 0, target, -1), counting)
        whole = {name: jnp.zeros(counts.size, y.dtype).at[where].set(y) for name, y in told.items()}
        whole["nll"] = jnp.where(jnp.sum(counts) > most, jnp.nan, whole["nll"])
        return {name: y.reshape(weight.shape) for name, y in whole.items()}

    def logits(self, x: Float[Array, "*b D"], table: Float[Array, "V D"] | None = None) -> Float[Array, "*b V"]:
        """float32 scores of every id after each place; -inf at the padding of the table."""
        words = self.words(x.shape[-1], table)
        scores = self.form.scores_of_few if math.prod(x.shape[:-1]) <= FEW else self.form.scores
        return jnp.where(jnp.arange(words.table.shape[0]) < self.vocab, scores(x, words), -jnp.inf)

    def divergence(
        self,
        x: Float[Array, "B T D"],
        text: Text,
        teacher: Float[Array, "B T D2"],
        teacher_table: Float[Array, "V D2"],
        table: Float[Array, "V D"] | None = None,
        temperature: float = 1.0,
    ) -> Float[Array, "B T"]:
        """KL divergence of the teacher's next-id distribution from ours at each place that predicts one (distillation,
        arXiv 1503.02531, section 2), without all scores at once; stands at the place that is predicted."""
        words, (target, _) = self.words(x.shape[-1], table), ahead(text, 1)
        found = divergence(x, words, teacher, Words(teacher_table), form=self.form, temperature=temperature)
        return later(jnp.where(target >= 0, found, 0.0), 1)


def ahead(text: Text, distance: int) -> tuple[Int[Array, "B T"], Float[Array, "B T"]]:
    """The id that stands `distance` places on in the same sample, -1 where none does; and what predicting it counts."""

    def sooner(x: Array) -> Array:
        return jnp.pad(x[:, distance:], ((0, 0), (0, distance)))

    real = (text.segment > 0) & (sooner(text.segment) == text.segment) & (sooner(text.slot) < 0)
    return jnp.where(real, sooner(text.ids), -1), jnp.where(real, sooner(text.loss), 0.0)


def later(x: Float[Array, "B T"], distance: int) -> Float[Array, "B T"]:
    """What was told at a place, at the place it is about."""
    return jnp.pad(x[:, :-distance], ((0, 0), (distance, 0)))


class MultiToken(nn.Module):
    """Predicts the next `count` ids, each from its own block on the shared trunk, with one shared vocabulary
    (multi-token prediction, arXiv 2404.19737, section 2). Outputs are those of `head` for the next id, and under
    "ahead" the same names [B T K] for distances 2, 3 .. count. Decoding needs the first block only: `logits`."""

    head: Language
    block: nn.Module
    count: int = 4
    norm: nn.Module = slot(RMSNorm)

    @nn.compact
    def hidden(self, x: Float[Array, "B T D"], places: Places | None, index: int, train: bool) -> Float[Array, "B T D"]:
        """What predicts `index + 1` places on."""
        y = self.block.clone(parent=self, name=f"block_{index}")(x, places, train=train)
        return self.norm.clone(parent=self, name=f"norm_{index}")(y)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        text: Text,
        table: Float[Array, "V D"] | None = None,
        places: Places | None = None,
        *,
        train: bool = False,
    ) -> dict[str, Array | Mapping[str, Array]]:
        told = [self.head(self.hidden(x, places, i, train), text, table, i + 1) for i in range(self.count)]
        further = {name: jnp.stack([each[name] for each in told[1:]], axis=-1) for name in told[0]}
        return told[0] | {"ahead": further}

    def logits(
        self, x: Float[Array, "B T D"], table: Float[Array, "V D"] | None = None, places: Places | None = None
    ) -> Float[Array, "B T V"]:
        """float32 scores of the next id after each place."""
        return self.head.logits(self.hidden(x, places, 0, False), table)
