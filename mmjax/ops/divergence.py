"""How far a student's distribution over a vocabulary is from its teacher's, without all scores at once.

N places (of any shape [*n])   D, E widths of student and teacher   V vocabulary entries   C entries of a chunk
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mmjax.core.errors import UserError
from mmjax.core.pytrees import record
from mmjax.ops.vocabulary import PLACES, WORDS, Chunk, Form, Spread, Words, over_chunks, words_of


def divergence(
    x: Float[Array, "*n D"],
    words: Words,
    teacher: Float[Array, "*n E"],
    teacher_words: Words,
    *,
    form: Form,
    temperature: float = 1.0,
    entries: int = 2048,
) -> Float[Array, "*n"]:
    """temperature ** 2 * KL(softmax(teacher's scores / temperature) || softmax(ours / temperature)), float32, per place
    (arXiv 1503.02531, section 2). Scores are taken twice, `entries` words at a time; gradients go to the student alone.
    Raises UserError when the two vocabularies differ in size."""
    words_of(words.table, words.bias, form.vocab, x.shape[-1])
    words_of(teacher_words.table, teacher_words.bias, form.vocab, teacher.shape[-1])
    if words.table.shape[0] != teacher_words.table.shape[0]:
        raise UserError(
            f"student and teacher need one vocabulary; their tables hold {words.table.shape[0]} and "
            f"{teacher_words.table.shape[0]} entries: pad the smaller one"
        )
    plan = _Plan(form, Spread.of(x.shape[:-1], words.table.shape[0]), temperature, entries)
    return _divergence(plan, x, teacher, (words, teacher_words))


@record
class _Sums:
    """What is known of each place once some entries have been seen: of either side the best score and the sum of
    exp(score - best); and the sum of exp(teacher's score - best) * (teacher's score - ours)."""

    best: tuple[Float[Array, " N"], Float[Array, " N"]]
    total: tuple[Float[Array, " N"], Float[Array, " N"]]
    gap: Float[Array, " N"]

    def scaled(self, best: tuple[Array, Array]) -> _Sums:
        """The same relative to a better best."""
        ours, theirs = (jnp.exp(old - new) for old, new in zip(self.best, best, strict=True))
        return _Sums(best, (self.total[0] * ours, self.total[1] * theirs), self.gap * theirs)

    def fold(self, ours: Float[Array, "N C"], theirs: Float[Array, "N C"]) -> _Sums:
        """With some more entries; -inf is not there."""
        seen = self.scaled(tuple(jnp.maximum(b, jnp.max(z, 1)) for b, z in zip(self.best, (ours, theirs), strict=True)))
        share, mass = (jnp.exp(z - best[:, None]) for z, best in zip((ours, theirs), seen.best, strict=True))
        gap = jnp.where(mass > 0, mass * (theirs - ours), 0.0)
        total = seen.total[0] + jnp.sum(share, 1), seen.total[1] + jnp.sum(mass, 1)
        return _Sums(seen.best, total, seen.gap + jnp.sum(gap, 1))

    @property
    def log_z(self) -> tuple[Float[Array, " N"], Float[Array, " N"]]:
        """Of ours and theirs."""
        ours, theirs = (best + jnp.log(total) for best, total in zip(self.best, self.total, strict=True))
        return ours, theirs


@dataclasses.dataclass(frozen=True)
class _Plan:
    form: Form
    spread: Spread
    temperature: float
    entries: int

    def scores(self, x: Array, teacher: Array, chunk: Chunk) -> tuple[Float[Array, "N C"], Float[Array, "N C"]]:
        """Of both sides, over the temperature."""
        ours, theirs = chunk.words
        plain = dataclasses.replace(self.form, cap=None)  # the cap is of our model; its teacher's scores are its own
        return self.form.scores(x, ours) / self.temperature, plain.scores(teacher, theirs) / self.temperature

    def over(self, words: Any, visit: Any, state: Any) -> Any:
        return over_chunks(words, self.entries, self.spread.first(words[0].table.shape[0]), visit, state)

    def tell(self, x: Array, teacher: Array, words: tuple[Words, Words]) -> tuple[Array, tuple[Array, Array]]:
        """The divergence, and both sides' log z."""
        flat = x.reshape(-1, x.shape[-1]), teacher.reshape(-1, teacher.shape[-1])

        def visit(state: _Sums, chunk: Chunk) -> _Sums:
            known = chunk.fresh & (chunk.number < self.form.vocab)
            return state.fold(*(jnp.where(known, z, -jnp.inf) for z in self.scores(*flat, chunk)))

        zeros = jnp.zeros(flat[0].shape[0], jnp.float32)
        least = zeros + jnp.finfo(jnp.float32).min
        sums = self.over(words, visit, _Sums((least, least), (zeros, zeros), zeros))
        if self.spread.vocab:
            sums = sums.scaled(jax.lax.pmax(sums.best, self.spread.vocab))
            sums = _Sums(sums.best, *self.spread.over_vocab((sums.total, sums.gap)))
        ours, theirs = sums.log_z
        told = self.temperature**2 * (sums.gap / sums.total[1] - theirs + ours)
        return jax.tree.map(lambda part: part.reshape(x.shape[:-1]), (told, (ours, theirs)))

    def slopes(self, x: Array, teacher: Array, words: Any, log_z: Any, cotangent: Array) -> tuple[Array, Words]:
        """Gradients of this device's share of our `x` and words, summed over devices."""
        flat = x.reshape(-1, x.shape[-1]), teacher.reshape(-1, teacher.shape[-1])
        log_ours, log_theirs, pull = (part.reshape(-1, 1) for part in (*log_z, cotangent * self.temperature))

        def visit(state: Any, chunk: Chunk) -> Any:
            ours, theirs = self.scores(*flat, chunk)
            slope = self.form.uncap(
                pull * (jnp.exp(ours - log_ours) - jnp.exp(theirs - log_theirs)), ours * self.temperature
            )
            slope = jnp.where(chunk.number < self.form.vocab, slope, 0.0)
            return dataclasses.replace(chunk, words=chunk.words[0]).pull(slope, flat[0], *state)

        zeros = jax.tree.map(jnp.zeros_like, words[0]), jnp.zeros(flat[0].shape, jnp.float32)
        found, wide = self.over(words, visit, zeros)
        return self.spread.over_vocab(wide).reshape(x.shape).astype(x.dtype), self.spread.over_places(found)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _divergence(plan: _Plan, x: Array, teacher: Array, words: tuple[Words, Words]) -> Array:
    return _forward(plan, x, teacher, words)[0]


def _forward(plan: _Plan, x: Array, teacher: Array, words: tuple[Words, Words]) -> Any:
    told, log_z = plan.spread.run(plan.tell, (PLACES, PLACES, WORDS), PLACES)(x, teacher, words)
    return told, (x, teacher, words, log_z)


def _backward(plan: _Plan, kept: Any, cotangent: Array) -> Any:
    _, teacher, words, _ = kept
    look = plan.spread.run(plan.slopes, (PLACES, PLACES, WORDS, PLACES, PLACES), (PLACES, WORDS))
    x, found = look(*kept, cotangent)
    return x, jnp.zeros_like(teacher), (found, jax.tree.map(jnp.zeros_like, words[1]))


_divergence.defvjp(_forward, _backward)
