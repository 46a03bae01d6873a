"""Beam search.  B rows   W beams of a row   V vocabulary   C candidates of a row in one step"""

from __future__ import annotations

import dataclasses
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
from mmjax.decoding.constraints import Constraint, Free
from mmjax.decoding.generate import Generated, ends
from mmjax.decoding.state import Fixed, State, advance, asked, start


@record
class Hypotheses:
    """W continuations of each row, best first: `ids` [B W steps], -1 after the end; log-probability of each id; `score`
    [B W], their sum over the length penalty; -inf, and no ids, where a row has fewer."""

    ids: Int[Array, "B W steps"]
    log_probs: Float[Array, "B W steps"]
    score: Float[Array, "B W"]

    def best(self) -> Generated:
        """The best of each row."""
        return Generated.of(self.ids[:, 0], self.log_probs[:, 0])

    def pick(self, index: Int[Array, "B W2"]) -> Hypotheses:
        """Those at `index` of each row."""
        return jax.tree.map(lambda x: _pick(x, index), self)

    def top(self, other: Hypotheses) -> Hypotheses:
        """The W best of both."""
        both = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), self, other)
        return both.pick(jax.lax.top_k(both.score, self.score.shape[1])[1])


@record
class _Beams:
    live: Hypotheses  # score: the plain sum
    done: Hypotheses
    closed: Bool[Array, " B"]
    count: Int[Array, ""]
    state: State
    memo: Any


@dataclasses.dataclass(frozen=True)
class _Rules:
    width: int
    steps: int
    penalty: float
    end: tuple[int, ...]

    def weigh(self, total: Array, length: Array | int) -> Array:
        """The score of a sum of log-probabilities (arXiv 1609.08144, equation 14)."""
        return total / ((5 + length) / 6) ** self.penalty


def beam(
    model: nn.Module,
    params: Any,
    batch: Batch,
    width: int = 4,
    steps: int = 64,
    *,
    penalty: float = 0.0,
    end: tuple[int, ...] = (),
    constraint: Constraint = Free(),
) -> Hypotheses:
    """The `width` best continuations of up to `steps` ids that a search of so many beams finds; one is greedy.

    A row is closed when `width` of its hypotheses have ended, each among the best `width` of its step. penalty: the
    alpha of the length penalty; 0 is none, larger favours longer. Raises UserError as `generate`, and for no beams."""
    if width < 1:
        raise UserError(f"beam search takes at least one beam; got {width}")
    return _beam(
        Fixed(model), params, asked(model, batch, steps), constraint, _Rules(width, steps, penalty, tuple(end))
    )


@functools.partial(Jitted, options=TOKENS, static_argnames=("fixed", "rules"))
def _beam(fixed: Fixed, params: Any, batch: Batch, constraint: Constraint, rules: _Rules) -> Hypotheses:
    model, params = fixed.with_parameters(params)
    text, rows, width = batch.text, batch.text.ids.shape[0], rules.width
    logits, state = start(model, params, batch, rules.steps, abreast=width)
    memo = constraint.begin(text.ids, (text.segment > 0) & (text.slot < 0))
    spread = jnp.repeat(jnp.arange(rows), width)
    none = jnp.full((rows, width, rules.steps), -1), jnp.zeros((rows, width, rules.steps))
    live = Hypotheses(*none, jnp.where(jnp.arange(width) == 0, 0.0, jnp.full((rows, width), -jnp.inf)))
    done = Hypotheses(*none, jnp.full((rows, width), -jnp.inf))
    memo = jax.tree.map(lambda x: x[spread], memo)
    first = _Beams(live, done, ~state.last.valid[:, 0], jnp.array(0), state.of_rows(spread), memo)
    now = _choose(first, logits[spread], constraint, rules)

    def going(now: _Beams) -> Array:
        return (now.count < rules.steps) & ~jnp.all(now.closed)

    def one_more(now: _Beams) -> _Beams:
        last = jax.lax.dynamic_index_in_dim(now.live.ids, now.count - 1, 2, keepdims=False)
        logits, state = advance(model, params, now.state, jnp.maximum(last, 0).reshape(-1, 1))
        return _choose(dataclasses.replace(now, state=state), logits[:, 0], constraint, rules)

    now = jax.lax.while_loop(going, one_more, now)
    unended = rules.weigh(now.live.score, now.count)
    unended = dataclasses.replace(now.live, score=jnp.where(now.closed[:, None], -jnp.inf, unended))
    found = now.done.top(unended)
    real = (found.score > -jnp.inf)[..., None]
    return Hypotheses(jnp.where(real, found.ids, -1), jnp.where(real, found.log_probs, 0.0), found.score)


def _choose(now: _Beams, logits: Float[Array, "BW V"], constraint: Constraint, rules: _Rules) -> _Beams:
    """The best continuations by one id: those that end join `done`, the others live on."""
    width, vocab = rules.width, logits.shape[-1]
    logits = constraint.bend(logits.astype(jnp.float32), now.memo)
    log_probs = jax.nn.log_softmax(logits).reshape(-1, width, vocab)
    total = (now.live.score[..., None] + log_probs).reshape(-1, width * vocab)
    score, flat = jax.lax.top_k(total, min(width * (1 + len(rules.end)), width * vocab))
    parent, ids = flat // vocab, flat % vocab
    spoken = now.live.pick(parent)
    said = jnp.take_along_axis(log_probs.reshape(-1, width * vocab), flat, axis=1)
    grown = Hypotheses(spoken.ids.at[:, :, now.count].set(ids), spoken.log_probs.at[:, :, now.count].set(said), score)
    over, count = ends(ids, rules.end), now.count + 1
    ended = over & (jnp.arange(ids.shape[1]) < width) & ~now.closed[:, None]
    ended_score = jnp.where(ended, rules.weigh(score, count), -jnp.inf)
    done = now.done.top(dataclasses.replace(grown, score=ended_score))
    best = jax.lax.top_k(jnp.where(over, -jnp.inf, score), width)[1]
    live = grown.pick(best)
    live = dataclasses.replace(live, score=jnp.where(_pick(over, best), -jnp.inf, live.score))
    rows = (jnp.arange(ids.shape[0])[:, None] * width + _pick(parent, best)).reshape(-1)
    memo = constraint.follow(jax.tree.map(lambda x: x[rows], now.memo), _pick(ids, best).reshape(-1))
    closed = now.closed | (jnp.sum(done.score > -jnp.inf, axis=1) >= width) | jnp.all(live.score == -jnp.inf, axis=1)
    return _Beams(live, done, closed, count, now.state.of_rows(rows), memo)


def _pick(x: Array, index: Int[Array, "B W"]) -> Array:
    return jnp.take_along_axis(x, index.reshape(*index.shape, *[1] * (x.ndim - 2)), axis=1)
