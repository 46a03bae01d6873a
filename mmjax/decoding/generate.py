"""Continuing rows of text.  B rows   T prompt tokens   V vocabulary

    generate(model, params, batch, Sampling(temperature=0.7, top_p=0.9), steps=64, end=(tokenizer.end,))

One compilation serves all batches of as many rows whose longest prompt falls in the same bucket (a power of two).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from mmjax.core.batch import Batch
from mmjax.core.compilation import TOKENS, Jitted
from mmjax.core.pytrees import record, static
from mmjax.decoding.constraints import Constraint, Free
from mmjax.decoding.samplers import Greedy, Sampler
from mmjax.decoding.state import Fixed, State, advance, asked, start


@record
class Generated:
    """Continuations: `ids` [B steps], -1 after the end; how many are real (the end id counts); the log-probability of
    each among those that the constraint allowed, 0 after the end."""

    ids: Int[Array, "B steps"]
    lengths: Int[Array, " B"]
    log_probs: Float[Array, "B steps"]

    @classmethod
    def of(cls, ids: Int[Array, "B steps"], log_probs: Float[Array, "B steps"]) -> Generated:
        """The record of ids that are -1 after the end."""
        return cls(ids, jnp.sum(ids >= 0, axis=-1, dtype=jnp.int32), jnp.where(ids >= 0, log_probs, 0.0))


@record
class Policy:
    """How the next id is chosen, and which ids end a row."""

    constraint: Constraint
    sampler: Sampler = static()
    end: tuple[int, ...] = static(())


@record
class Turn:
    """One more id for each row (-1 where it had ended), and what the next one needs."""

    ids: Int[Array, " B"]
    log_probs: Float[Array, " B"]
    ended: Bool[Array, " B"]
    number: Int[Array, ""]
    state: State
    memo: Any
    keys: Array

    @classmethod
    def first(cls, model: nn.Module, params: Any, batch: Batch, policy: Policy, keys: Array, room: int) -> Turn:
        """The ids right after the prompts."""
        logits, state = start(model, params, batch, room, abreast=1)
        text, rows = batch.text, batch.text.ids.shape[0]
        memo = policy.constraint.begin(text.ids, (text.segment > 0) & (text.slot < 0))
        nothing = jnp.zeros(rows, jnp.int32), jnp.zeros(rows), ~state.last.valid[:, 0], jnp.zeros((), jnp.int32)
        return cls(*nothing, state, memo, keys)._choose(policy, logits, state)

    def next(self, model: nn.Module, params: Any, policy: Policy) -> Turn:
        """The ids after these."""
        logits, state = advance(model, params, self.state, jnp.maximum(self.ids, 0)[:, None])
        return self._choose(policy, logits[:, 0], state)

    def _choose(self, policy: Policy, logits: Float[Array, "B V"], state: State) -> Turn:
        logits = policy.constraint.bend(logits.astype(jnp.float32), self.memo)
        ids = policy.sampler(logits, jax.vmap(jax.random.fold_in, (0, None))(self.keys, self.number))
        log_probs = jnp.take_along_axis(jax.nn.log_softmax(logits), ids[:, None], axis=1)[:, 0]
        memo = policy.constraint.follow(self.memo, ids)
        said = jnp.where(self.ended, -1, ids)
        return Turn(said, log_probs, self.ended | ends(ids, policy.end), self.number + 1, state, memo, self.keys)


def ends(ids: Int[Array, "*B"], end: tuple[int, ...]) -> Bool[Array, "*B"]:
    """Which ids end a row."""
    return functools.reduce(jnp.logical_or, [ids == one for one in end], jnp.zeros(ids.shape, bool))


def generate(
    model: nn.Module,
    params: Any,
    batch: Batch,
    sampler: Sampler = Greedy(),
    steps: int = 64,
    *,
    end: tuple[int, ...] = (),
    constraint: Constraint = Free(),
    rng: int | Array = 0,
) -> Generated:
    """Up to `steps` ids after each row of the batch; a row stops at an `end` id, the whole when all rows have.

    Rows do not depend on each other nor on padding. rng: a seed, a key, or a key per row [B]: a row's draws follow from
    its key alone. Raises UserError for a batch without text, for packed rows and for less than one step."""
    batch, keys = asked(model, batch, steps), row_keys(rng, batch.rows)
    return _generate(Fixed(model), params, batch, Policy(constraint, sampler, tuple(end)), keys, steps)


def row_keys(rng: int | Array, rows: int) -> Array:
    """A key per row."""
    key = jax.random.key(rng) if isinstance(rng, int) else rng
    return key if key.ndim else jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(rows))


@functools.partial(Jitted, options=TOKENS, static_argnames=("fixed", "steps"))
def _generate(fixed: Fixed, params: Any, batch: Batch, policy: Policy, keys: Array, steps: int) -> Generated:
    model, params = fixed.with_parameters(params)
    turn = Turn.first(model, params, batch, policy, keys, room=steps)
    rows = turn.ids.shape[0]

    def going(carry: tuple[Turn, Array, Array]) -> Array:
        return (carry[0].number < steps) & ~jnp.all(carry[0].ended)

    def one_more(carry: tuple[Turn, Array, Array]) -> tuple[Turn, Array, Array]:
        turn, ids, log_probs = carry
        number, turn = turn.number, turn.next(model, params, policy)
        return turn, ids.at[:, number].set(turn.ids), log_probs.at[:, number].set(turn.log_probs)

    ids = jnp.full((rows, steps), -1, jnp.int32).at[:, 0].set(turn.ids)
    log_probs = jnp.zeros((rows, steps)).at[:, 0].set(turn.log_probs)
    _, ids, log_probs = jax.lax.while_loop(going, one_more, (turn, ids, log_probs))
    return Generated.of(ids, log_probs)


def stream(
    model: nn.Module,
    params: Any,
    batch: Batch,
    sampler: Sampler = Greedy(),
    steps: int = 64,
    *,
    end: tuple[int, ...] = (),
    constraint: Constraint = Free(),
    rng: int | Array = 0,
) -> Iterator[np.ndarray]:
    """As `generate`, id by id: yields ids [B] as they come, -1 for rows that have ended."""
    batch, keys = asked(model, batch, steps), row_keys(rng, batch.rows)
    policy = Policy(constraint, sampler, tuple(end))
    turn = _first(Fixed(model), params, batch, policy, keys, steps)
    for number in range(steps):
        yield np.asarray(turn.ids)
        if np.all(turn.ended):
            return
        if number + 1 < steps:
            turn = _next(Fixed(model), params, policy, turn)


@functools.partial(Jitted, options=TOKENS, static_argnames=("fixed", "steps"))
def _first(fixed: Fixed, params: Any, batch: Batch, policy: Policy, keys: Array, steps: int) -> Turn:
    return Turn.first(*fixed.with_parameters(params), batch, policy, keys, room=steps)


@functools.partial(Jitted, options=TOKENS, static_argnames="fixed", donate_argnames="turn")
def _next(fixed: Fixed, params: Any, policy: Policy, turn: Turn) -> Turn:
    return turn.next(*fixed.with_parameters(params), policy)
