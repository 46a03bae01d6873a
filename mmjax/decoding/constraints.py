"""What may come next, and what should: values that bend logits as a row grows.  B rows   V vocabulary   Q states

A constraint is a record with three functions: `begin(ids [B T], valid [B T])` -> its memo of the prompt, `bend(logits,
memo)` -> logits (-inf: forbidden), `follow(memo, ids [B])` -> the memo after one more id. Leaves of a memo lead with B.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from mmjax.core.errors import UserError
from mmjax.core.pytrees import record, static


class Constraint(Protocol):
    """See the head of this file."""

    def begin(self, ids: Int[Array, "B T"], valid: Bool[Array, "B T"]) -> Any: ...

    def bend(self, logits: Float[Array, "B V"], memo: Any) -> Float[Array, "B V"]: ...

    def follow(self, memo: Any, ids: Int[Array, " B"]) -> Any: ...


@record
class Free:
    """Anything goes."""

    def begin(self, ids: Array, valid: Array) -> tuple[()]:
        return ()

    def bend(self, logits: Array, memo: tuple[()]) -> Array:
        return logits

    def follow(self, memo: tuple[()], ids: Array) -> tuple[()]:
        return memo


@record
class Each:
    """Several constraints in turn."""

    parts: tuple[Constraint, ...]

    def begin(self, ids: Array, valid: Array) -> tuple[Any, ...]:
        return tuple(part.begin(ids, valid) for part in self.parts)

    def bend(self, logits: Array, memo: tuple[Any, ...]) -> Array:
        for part, its in zip(self.parts, memo, strict=True):
            logits = part.bend(logits, its)
        return logits

    def follow(self, memo: tuple[Any, ...], ids: Array) -> tuple[Any, ...]:
        return tuple(part.follow(its, ids) for part, its in zip(self.parts, memo, strict=True))


@record
class TokenSet:
    """Only ids that are `allowed` [V]."""

    allowed: Bool[Array, " V"]

    @classmethod
    def only(cls, ids: Sequence[int], vocab: int) -> TokenSet:
        """Nothing but `ids`. Raises UserError for ids beyond the vocabulary."""
        allowed = np.zeros(vocab, bool)
        allowed[_known(ids, vocab)] = True
        return cls(allowed)

    @classmethod
    def without(cls, ids: Sequence[int], vocab: int) -> TokenSet:
        """All but `ids`. Raises UserError for ids beyond the vocabulary."""
        return cls(~cls.only(ids, vocab).allowed)

    def begin(self, ids: Array, valid: Array) -> tuple[()]:
        return ()

    def bend(self, logits: Array, memo: tuple[()]) -> Array:
        return jnp.where(self.allowed, logits, -jnp.inf)

    def follow(self, memo: tuple[()], ids: Array) -> tuple[()]:
        return memo


@record
class Repetition:
    """Logits of ids that the row has had, its prompt included, are divided by `penalty` where they are positive and
    multiplied by it where they are negative (CTRL, arXiv 1909.05858, section 4.1). 1 changes nothing."""

    vocab: int = static()
    penalty: float = static(1.2)

    def begin(self, ids: Array, valid: Array) -> Bool[Array, "B V"]:
        rows = jnp.arange(ids.shape[0])[:, None]
        return jnp.zeros((ids.shape[0], self.vocab), bool).at[rows, ids].max(valid, mode="drop")

    def bend(self, logits: Array, memo: Bool[Array, "B V"]) -> Array:
        return jnp.where(memo, jnp.where(logits > 0, logits / self.penalty, logits * self.penalty), logits)

    def follow(self, memo: Bool[Array, "B V"], ids: Array) -> Bool[Array, "B V"]:
        return memo.at[jnp.arange(ids.shape[0]), ids].set(True, mode="drop")


@record
class Automaton:
    """A finite automaton over ids: `table` [Q V] holds the state after each id, -1 where the id is forbidden; rows
    begin in state 0. `mmjax.decoding.patterns.matching` makes one of a regular expression, `one_of` of choices."""

    table: Int[Array, "Q V"]

    def begin(self, ids: Array, valid: Array) -> Int[Array, " B"]:
        return jnp.zeros(ids.shape[0], jnp.int32)

    def bend(self, logits: Array, memo: Int[Array, " B"]) -> Array:
        return jnp.where(jnp.take(self.table, memo, axis=0) >= 0, logits, -jnp.inf)

    def follow(self, memo: Int[Array, " B"], ids: Array) -> Int[Array, " B"]:
        return jnp.maximum(jnp.asarray(self.table)[memo, ids], 0).astype(jnp.int32)


def one_of(choices: Sequence[Sequence[int]], vocab: int, end: int) -> Automaton:
    """Rows say one of `choices` (ids each), then `end`. Raises UserError for no choices and unknown ids."""
    if not choices:
        raise UserError("a choice needs at least one alternative; got none")
    states: dict[tuple[int, ...], int] = {(): 0}
    steps = []
    for choice in choices:
        whole = (*_known(choice, vocab), end)
        for i, token in enumerate(whole):
            after = states.setdefault(whole[: i + 1], len(states))
            steps.append((states[whole[:i]], token, after))
    table = np.full((len(states), vocab), -1, np.int32)
    for state, token, after in steps:
        table[state, token] = after
    return Automaton(table)


def _known(ids: Sequence[int], vocab: int) -> list[int]:
    unknown = [i for i in ids if not 0 <= i < vocab]
    if unknown:
        raise UserError(f"the vocabulary has ids 0 to {vocab - 1}; got {', '.join(map(str, unknown[:5]))}")
    return list(ids)
