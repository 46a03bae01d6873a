"""Speculative decoding: a small model guesses, the large one checks many guesses in one step (arXiv 2211.17192).

B rows   G guesses of a round   V vocabulary
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mmjax.core.batch import Batch
from mmjax.core.compilation import TOKENS, Jitted
from mmjax.core.errors import UserError
from mmjax.core.pytrees import record
from mmjax.decoding.generate import Generated, ends
from mmjax.decoding.state import Fixed, State, advance, asked, start
from mmjax.ops.vocabulary import likeliest


@record
class Speculated:
    """What was generated, and how many rounds of the large model it took."""

    generated: Generated
    rounds: Int[Array, ""]


@record
class _Round:
    """After a round: buffers with room for one more, the last id of each row, where both models stand."""

    ids: Int[Array, "B room"]
    log_probs: Float[Array, "B room"]
    last: Int[Array, " B"]
    ended: Bool[Array, " B"]
    count: Int[Array, ""]
    rounds: Int[Array, ""]
    large: State
    small: State


def speculate(
    model: nn.Module,
    params: Any,
    draft: nn.Module,
    draft_params: Any,
    batch: Batch,
    steps: int = 64,
    *,
    guesses: int = 4,
    end: tuple[int, ...] = (),
) -> Speculated:
    """The ids of `generate` with `Greedy()`, with fewer steps of the large model the better `draft` guesses.

    All rows of a batch take as many guesses as the row that agrees least. Both models read the same batch and
    vocabulary. Raises UserError for what `generate` refuses and for less than one guess."""
    if guesses < 1:
        raise UserError(f"speculative decoding takes at least one guess a round; got {guesses}")
    models, batches = (Fixed(model), Fixed(draft)), (asked(model, batch, steps), asked(draft, batch, steps))
    return _speculate(models, (params, draft_params), batches, steps, guesses, tuple(end))


@functools.partial(Jitted, options=TOKENS, static_argnames=("models", "steps", "guesses", "end"))
def _speculate(
    models: tuple[Fixed, Fixed],
    params: tuple[Any, Any],
    batches: tuple[Batch, Batch],
    steps: int,
    guesses: int,
    end: tuple[int, ...],
) -> Speculated:
    (large, large_params), (small, small_params) = map(Fixed.with_parameters, models, params)
    room = steps + guesses + 1
    logits, state = start(large, large_params, batches[0], room, slack=guesses, abreast=guesses + 1)
    last, log_prob = _said(logits)
    rows = last.shape[0]
    ids = jnp.full((rows, room), -1, jnp.int32).at[:, 0].set(last)
    log_probs = jnp.zeros((rows, room)).at[:, 0].set(log_prob)
    ended = ends(last, end) | ~state.last.valid[:, 0]
    draft = start(small, small_params, batches[1], room, slack=guesses, abreast=1)[1]
    first = _Round(ids, log_probs, last, ended, jnp.array(1), jnp.array(0), state, draft)

    def going(now: _Round) -> Array:
        return (now.count < steps) & ~jnp.all(now.ended)

    def round_(now: _Round) -> _Round:
        guess = functools.partial(_guess, small, small_params)
        state, guessed = jax.lax.scan(guess, (now.small, now.last), length=guesses + 1)
        tried = jnp.concatenate([now.last[:, None], guessed[:-1].T], axis=1)  # the last guess only filled the cache
        logits, big = advance(large, large_params, now.large, tried)
        said, log_probs = _said(logits)
        right = jnp.cumprod(tried[:, 1:] == said[:, :-1], axis=1).sum(axis=1)
        taken = jnp.min(jnp.where(now.ended, guesses, right)) + 1
        over = jnp.cumsum(ends(said, end) & (jnp.arange(guesses + 1) < taken), axis=1)
        put = lambda x, new: jax.lax.dynamic_update_slice_in_dim(x, new, now.count, 1)  # noqa: E731
        unused = guesses + 1 - taken
        return _Round(
            put(now.ids, said),
            put(now.log_probs, log_probs),
            jnp.take(said, taken - 1, axis=1),
            now.ended | (over[:, -1] > 0),
            now.count + taken,
            now.rounds + 1,
            big.back(unused),
            state[0].back(unused),
        )

    done = jax.lax.while_loop(going, round_, first)
    return Speculated(_cut(done, steps, end, batches[0]), done.rounds)


def _guess(model: nn.Module, params: Any, carry: tuple[State, Array], _: None) -> tuple[tuple[State, Array], Array]:
    logits, state = advance(model, params, carry[0], carry[1][:, None])
    ids = likeliest(logits[:, 0])
    return (state, ids), ids


def _said(logits: Float[Array, "*B V"]) -> tuple[Int[Array, "*B"], Float[Array, "*B"]]:
    """The likeliest ids and their log-probabilities."""
    logits = logits.astype(jnp.float32)
    return likeliest(logits), jnp.max(jax.nn.log_softmax(logits), axis=-1)


def _cut(done: _Round, steps: int, end: tuple[int, ...], batch: Batch) -> Generated:
    """What stands before the limit, and up to the first end of each row."""
    ids = done.ids[:, :steps]
    over = jnp.cumsum(ends(ids, end), axis=1) - ends(ids, end)
    real = (over == 0) & (jnp.arange(steps) < done.count) & jnp.any(batch.text.segment > 0, axis=1)[:, None]
    return Generated.of(jnp.where(real, ids, -1), done.log_probs[:, :steps])
