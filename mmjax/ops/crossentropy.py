"""The vocabulary loss: cross entropy of hidden states against a table of all words, without all scores at once.

N places (of any shape [*n])   D width   V vocabulary entries

    Dense()               all N x V scores, differentiated by JAX: the reference, fastest while they are small
    Recompute()           chunks of the vocabulary, twice: log z first, gradients in the backward pass. N x C scores
                          at a time, 4/3 of the arithmetic of Dense
    GradientInForward()   chunks of places, once: gradients beside the loss. C x V scores at a time and a float32
                          gradient of the table, the arithmetic of Dense

Related: Cut Cross-Entropy (arXiv 2411.09009) and Liger's fused linear cross entropy (arXiv 2410.10989).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mmjax.core.errors import UserError
from mmjax.core.pytrees import record
from mmjax.ops.vocabulary import (
    PLACES,
    WORDS,
    Chunk,
    Form,
    Spread,
    Words,
    first_best,
    over_chunks,
    slopes_of,
    words_of,
)


@dataclasses.dataclass(frozen=True)
class Dense:
    """All scores at once."""


@dataclasses.dataclass(frozen=True)
class Recompute:
    """`entries` of the vocabulary at a time. Any gradient may flow into every place's `nll` and `log_z`."""

    entries: int = 2048


@dataclasses.dataclass(frozen=True)
class GradientInForward:
    """`places` places at a time, scores taken once.

    The gradient of the table is a sum over places, so what each place counts must be known before the loss is: it is
    that of sum(weight * (nll + z_loss * log_z ** 2)), times whatever number multiplies this sum. A backward pass that
    finds that something else was asked for does what `Recompute` does: never wrong, but dearer."""

    places: int = 512
    z_loss: float = 0.0
    otherwise: Recompute = Recompute()


@dataclasses.dataclass(frozen=True)
class Auto:
    """Dense up to `scores` scores, `beyond` above."""

    scores: int = 2**24
    beyond: Recompute | GradientInForward = Recompute()


Execution = Dense | Recompute | GradientInForward | Auto


@record
class Scores:
    """What each place tells; all zero where its target is negative. `nll` and `log_z` have gradients."""

    nll: Float[Array, "*n"]  # -log probability of the target
    log_z: Float[Array, "*n"]  # log of the sum of exp(score)
    hit: Bool[Array, "*n"]  # whether the target has the best score (of equal ones, the first)


def cross_entropy(
    x: Float[Array, "*n D"],
    table: Float[Array, "V D"],
    target: Int[Array, "*n"],
    *,
    bias: Float[Array, " V"] | None = None,
    weight: Float[Array, "*n"] | None = None,
    form: Form | None = None,
    execution: Execution = Auto(),
) -> Scores:
    """Scores x . table (+ bias) of the vocabulary, and what they say of `target`, per place, in float32.

    A negative target is nothing to predict; a target that the vocabulary does not have makes the loss NaN, which the
    guard of a run sees. `weight` is what the objective will multiply each place with; only `GradientInForward` uses it,
    and no gradient flows into it. Under a layout, each device takes its places and its part of the vocabulary. Raises
    UserError for shapes that do not fit."""
    form = form or Form(table.shape[0])
    words = words_of(table, bias, form.vocab, x.shape[-1])
    if target.shape != x.shape[:-1]:
        raise UserError(f"targets must be one per place, {x.shape[:-1]}; got {target.shape}")
    if isinstance(execution, Auto):
        small = math.prod(target.shape) * table.shape[0] <= execution.scores
        execution = Dense() if small else execution.beyond
    if isinstance(execution, Dense):
        return _dense(form, x, words, target)
    weight = jnp.ones(target.shape, jnp.float32) if weight is None else weight.astype(jnp.float32)
    plan = Plan(form, Spread.of(target.shape, table.shape[0]))
    return _chunked(plan, execution, x, words, target, weight)


def _dense(form: Form, x: Array, words: Words, target: Array) -> Scores:
    z = form.scores(x, words)
    if form.vocab < z.shape[-1]:
        z = jnp.where(jnp.arange(z.shape[-1]) < form.vocab, z, -jnp.inf)
    known = jnp.maximum(target, 0)
    log_z, at = _sum_and_score(z, known)
    before = jnp.arange(z.shape[-1]) < known[..., None]
    best = (at == jnp.max(z, axis=-1)) & (jnp.max(jnp.where(before, z, -jnp.inf), axis=-1) < at)
    return _told(form, target, log_z, at, best)


@jax.custom_vjp
def _sum_and_score(z: Float[Array, "*n V"], index: Int[Array, "*n"]) -> tuple[Array, Array]:
    """log of the sum of exp(z), and z at `index`. Their gradient is one loop over the scores; by itself, that of the
    latter would be a second array of their size."""
    return jax.nn.logsumexp(z, axis=-1), jnp.take_along_axis(z, index[..., None], axis=-1, mode="clip")[..., 0]


def _sum_and_score_forward(z: Array, index: Array) -> tuple[tuple[Array, Array], tuple[Array, Array, Array]]:
    log_z, at = _sum_and_score(z, index)
    return (log_z, at), (z, index, log_z)


def _sum_and_score_backward(kept: tuple[Array, Array, Array], slopes: tuple[Array, Array]) -> tuple[Array, None]:
    (z, index, log_z), (of_sum, of_score) = kept, (slope[..., None] for slope in slopes)
    here = jnp.arange(z.shape[-1]) == jnp.minimum(index, z.shape[-1] - 1)[..., None]
    return of_sum * jnp.exp(z - log_z[..., None]) + jnp.where(here, of_score, 0.0), None


_sum_and_score.defvjp(_sum_and_score_forward, _sum_and_score_backward)


def _told(form: Form, target: Array, log_z: Array, at: Array, best: Array) -> Scores:
    """Zero where nothing is to be predicted, NaN where what is to be is no word."""
    real = target >= 0
    nll = log_z - jnp.where(target < form.vocab, at, jnp.nan)
    return Scores(jnp.where(real, nll, 0.0), jnp.where(real, log_z, 0.0), real & best)


@record
class _Sums:
    """What is known of each place once some entries have been seen."""

    best: Float[Array, " N"]
    index: Int[Array, " N"]  # number of the first entry with the best score
    total: Float[Array, " N"]  # sum of exp(score - best)
    at: Float[Array, " N"]  # score of the target

    @classmethod
    def start(cls, places: int) -> _Sums:
        zeros = jnp.zeros(places, jnp.float32)
        return cls(zeros + jnp.finfo(jnp.float32).min, jnp.zeros(places, jnp.int32), zeros, zeros)

    def fold(self, z: Float[Array, "N C"], number: Int[Array, " C"], target: Int[Array, " N"]) -> _Sums:
        """With some more entries. A score of -inf is not there."""
        top = jnp.max(z, axis=1)
        index = first_best(z, top, number)
        best = jnp.maximum(self.best, top)
        total = self.total * jnp.exp(self.best - best) + jnp.sum(jnp.exp(z - best[:, None]), axis=1)
        mine = (number == target[:, None]) & (z > -jnp.inf)
        at = self.at + jnp.sum(jnp.where(mine, z, 0.0), axis=1)
        return _Sums(best, jnp.where(top > self.best, index, self.index), total, at)

    def merge(self, spread: Spread) -> _Sums:
        """Over the devices that share the vocabulary."""
        if not spread.vocab:
            return self
        best = jax.lax.pmax(self.best, spread.vocab)
        index = jnp.where(self.best == best, self.index, jnp.iinfo(jnp.int32).max)
        total, at = spread.over_vocab((self.total * jnp.exp(self.best - best), self.at))
        return _Sums(best, jax.lax.pmin(index, spread.vocab), total, at)

    @property
    def log_z(self) -> Float[Array, " N"]:
        return self.best + jnp.log(self.total)

    def scores(self, form: Form, target: Int[Array, "*n"]) -> Scores:
        """Told in the shape of the targets."""
        log_z, at, index = (x.reshape(target.shape) for x in (self.log_z, self.at, self.index))
        return _told(form, target, log_z, at, index == target)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What the chunked forms need to know beside arrays."""

    form: Form
    spread: Spread

    def gather(self, size: int, x: Float[Array, "N D"], words: Words, target: Int[Array, " N"]) -> _Sums:
        """One look at the vocabulary, `size` entries at a time, for places in a row."""

        def visit(state: _Sums, chunk: Chunk) -> _Sums:
            known = chunk.fresh & (chunk.number < self.form.vocab)
            return state.fold(jnp.where(known, self.form.scores(x, chunk.words), -jnp.inf), chunk.number, target)

        first = self.spread.first(words.table.shape[0])
        return over_chunks(words, size, first, visit, _Sums.start(x.shape[0])).merge(self.spread)

    def slope(self, z: Array, number: Array, target: Array, log_z: Array, nll: Array, z_bar: Array) -> Array:
        """Gradient of the scores [N C], given those of `nll` and `log_z`; in what the cap was put on."""
        real = target >= 0
        both, own = jnp.where(real, nll + z_bar, 0.0), jnp.where(real, nll, 0.0)
        slope = both[:, None] * jnp.exp(z - log_z[:, None]) - jnp.where(number == target[:, None], own[:, None], 0.0)
        return jnp.where(number < self.form.vocab, self.form.uncap(slope, z), 0.0)

    def slopes(self, size: int, x, words: Words, target, log_z, nll, z_bar) -> tuple[Array, Words]:
        """A second look: gradients of this device's share of `x` and `words`, summed over devices."""
        flat = x.reshape(-1, x.shape[-1])
        target, log_z, nll, z_bar = (part.reshape(-1) for part in (target, log_z, nll, z_bar))

        def visit(state: Any, chunk: Chunk) -> Any:
            z = self.form.scores(flat, chunk.words)
            return chunk.pull(self.slope(z, chunk.number, target, log_z, nll, z_bar), flat, *state)

        zeros = jax.tree.map(jnp.zeros_like, words), jnp.zeros(flat.shape, jnp.float32)
        found, wide = over_chunks(words, size, self.spread.first(words.table.shape[0]), visit, zeros)
        wide = self.spread.over_vocab(wide)
        return wide.reshape(x.shape).astype(x.dtype), self.spread.over_places(found)

    def at_once(self, execution: GradientInForward, x, words: Words, target, weight) -> tuple[Any, Array, Words]:
        """(scores and log z, gradient of `x`, gradient of `words`) of the weighted sum, one look for each place."""
        number = self.spread.first(words.table.shape[0]) + jnp.arange(words.table.shape[0])

        def visit(total: Words, part: tuple[Array, ...]) -> Any:
            x, target, weight = part
            z = self.form.scores(x, words)
            sums = _Sums.start(x.shape[0]).fold(jnp.where(number < self.form.vocab, z, -jnp.inf), number, target)
            sums = sums.merge(self.spread)
            slope = self.slope(z, number, target, sums.log_z, weight, 2 * execution.z_loss * weight * sums.log_z)
            total = jax.tree.map(jnp.add, total, slopes_of(slope, x, words))
            table = words.table.astype(x.dtype)
            wide = jnp.einsum("nv,vd->nd", slope.astype(x.dtype), table, preferred_element_type=jnp.float32)
            return total, (sums, wide)

        count = math.prod(target.shape)
        size = min(execution.places, count)
        pad = -count % size

        def cut(part: Array, fill: float = 0) -> Array:
            flat = part.reshape(count, *part.shape[target.ndim :])
            filled = jnp.pad(flat, [(0, pad)] + [(0, 0)] * (flat.ndim - 1), constant_values=fill) if pad else flat
            return filled.reshape(-1, size, *flat.shape[1:])

        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), words)
        found, (sums, wide) = jax.lax.scan(visit, zeros, (cut(x), cut(target, -1), cut(weight)))
        sums, wide = jax.tree.map(lambda part: part.reshape(-1, *part.shape[2:])[:count], (sums, wide))
        found = jax.tree.map(lambda total, like: total.astype(like.dtype), found, words)
        wide = self.spread.over_vocab(wide).reshape(x.shape).astype(x.dtype)
        told = sums.scores(self.form, target), sums.log_z.reshape(target.shape)
        return told, wide, self.spread.over_places(found)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _chunked(plan: Plan, execution, x: Array, words: Words, target: Array, weight: Array) -> Scores:
    """Without a gradient asked for, one look is all there is."""
    return _look(plan, execution, x, words, target)[0]


def _look(plan: Plan, execution: Recompute | GradientInForward, x: Array, words: Words, target: Array) -> Any:
    """(scores, log z of every place)."""
    entries = execution.entries if isinstance(execution, Recompute) else execution.otherwise.entries

    def here(x: Array, words: Words, target: Array) -> Any:
        sums = plan.gather(entries, x.reshape(-1, x.shape[-1]), words, target.reshape(-1))
        return sums.scores(plan.form, target), sums.log_z.reshape(target.shape)

    return plan.spread.run(here, (PLACES, WORDS, PLACES), PLACES)(x, words, target)


def _forward(plan: Plan, execution, x: Array, words: Words, target: Array, weight: Array) -> Any:
    if isinstance(execution, Recompute):
        scores, log_z = _look(plan, execution, x, words, target)
        return scores, (x, words, target, log_z)
    one = plan.spread.run(
        functools.partial(plan.at_once, execution), (PLACES, WORDS, PLACES, PLACES), (PLACES, PLACES, WORDS)
    )
    (scores, log_z), *found = one(x, words, target, weight)
    return scores, (x, words, target, log_z, weight, *found)


def _backward(plan: Plan, execution, kept: tuple[Any, ...], cotangent: Scores) -> Any:
    x, words, target, log_z, *rest = kept

    def again() -> tuple[Array, Words]:
        entries = execution.entries if isinstance(execution, Recompute) else execution.otherwise.entries
        look = plan.spread.run(
            functools.partial(plan.slopes, entries), (PLACES, WORDS, PLACES, PLACES, PLACES, PLACES), (PLACES, WORDS)
        )
        return look(x, words, target, log_z, cotangent.nll, cotangent.log_z)

    if not rest:
        return *again(), None, None
    weight, *found = rest
    real = target >= 0
    weight, nll, z_bar = (jnp.where(real, part, 0.0) for part in (weight, cotangent.nll, cotangent.log_z))
    power = jnp.sum(weight * weight)
    factor = jnp.sum(nll * weight) / jnp.where(power > 0, power, 1.0)
    near = 1e-4 * jnp.abs(factor * weight)
    expected = 2 * execution.z_loss * factor * weight * log_z
    as_told = (jnp.abs(nll - factor * weight) <= near) & (jnp.abs(z_bar - expected) <= near)
    slopes = jax.lax.cond(
        jnp.all(as_told), lambda: jax.tree.map(lambda part: (part * factor).astype(part.dtype), tuple(found)), again
    )
    return *slopes, None, jnp.zeros_like(rest[0])


_chunked.defvjp(_forward, _backward)
