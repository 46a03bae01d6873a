"""How likely given answers are.  B rows   S samples of a row   C choices   n ids of a choice   V vocabulary"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mmjax.core.batch import Batch
from mmjax.core.errors import UserError
from mmjax.core.pytrees import record
from mmjax.decoding.state import Fixed, advance, asked, start


def score(model: nn.Module, params: Any, batch: Batch) -> Float[Array, "B S"]:
    """Log-probability of each sample's own answer: of the ids whose `loss` weight is above 0, given all before."""
    return _score(Fixed(model), params, batch)


@functools.partial(jax.jit, static_argnames="fixed")
def _score(fixed: Fixed, params: Any, batch: Batch) -> Float[Array, "B S"]:
    model, params = fixed.with_parameters(params)
    nll, text = model.apply({"params": params}, batch)["nll"], batch.text
    told = jnp.where((text.loss > 0) & (text.position > 0), nll, 0.0)
    samples = 1 + jnp.arange(batch.fault.shape[1])
    return -jnp.einsum("bt,bst->bs", told, (text.segment[:, None] == samples[:, None]).astype(told.dtype))


@record
class Choices:
    """`log_prob` [B C] of each choice, -inf where a row has fewer; `best` [B] the index of the best of a row."""

    log_prob: Float[Array, "B C"]
    best: Int[Array, " B"]


def choose(
    model: nn.Module,
    params: Any,
    batch: Batch,
    choices: Sequence[Sequence[Sequence[int]]],
    *,
    per_length: float = 0.0,
) -> Choices:
    """The likeliest of given continuations: `choices[row]` are those of a row, ids each.

    Each prompt is read once, and all its choices in one step. per_length: the best has the highest log-probability
    over length to this power (0: of the whole, 1: per id). Raises UserError for rows without choices or empty ones."""
    if len(choices) != batch.rows:
        raise UserError(f"choose: there are {batch.rows} rows, but choices for {len(choices)}")
    lengths = [[len(choice) for choice in row] for row in choices]
    if not all(row and all(row) for row in lengths):
        bad = next(i for i, row in enumerate(lengths) if not row or not all(row))
        raise UserError(f"choose: each row needs choices of at least one id; row {bad} has lengths {lengths[bad]}")
    count, longest = max(map(len, lengths)), 1 << (max(map(max, lengths)) - 1).bit_length()
    ids, real = np.zeros((2, batch.rows, count, longest), np.int32)
    for row, its in enumerate(choices):
        for i, choice in enumerate(its):
            ids[row, i, : len(choice)], real[row, i, : len(choice)] = choice, 1
    log_prob = _choose(Fixed(model), params, asked(model, batch, longest), ids, real)
    ranked = log_prob / np.maximum(real.sum(-1), 1) ** per_length
    return Choices(log_prob, jnp.argmax(ranked, axis=1))


@functools.partial(jax.jit, static_argnames="fixed")
def _choose(
    fixed: Fixed, params: Any, batch: Batch, ids: Int[Array, "B C n"], real: Int[Array, "B C n"]
) -> Float[Array, "B C"]:
    model, params = fixed.with_parameters(params)
    rows, count, length = ids.shape
    logits, state = start(model, params, batch, room=length, slack=length - 1)
    spread = jnp.repeat(jnp.arange(rows), count)
    logits, ids = logits[spread][:, None], ids.reshape(rows * count, length)
    if length > 1:
        later, _ = advance(model, params, state.of_rows(spread), ids[:, :-1])
        logits = jnp.concatenate([logits, later], axis=1)
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
    told = jnp.take_along_axis(log_probs, ids[..., None], axis=-1)[..., 0].reshape(rows, count, length)
    return jnp.where(real.any(-1), jnp.sum(told * real, axis=-1), -jnp.inf)
