"""A row that grows: prefill, step, and going back.  B rows   T prompt tokens   S slots   n new tokens   V vocabulary

A model that decodes has three methods (as `mmjax.models.decoder.Decoder`): `fuse(batch) -> Fused`, `prefill(fused) ->
logits [B V]` and `step(ids [B n], live places, memory) -> logits [B n V]`, the latter two with the collections of
`mmjax.nn.cache`. Everything in this folder is functions of such a model.
"""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mmjax.core.batch import MODALITIES, Batch
from mmjax.core.config import leaves, override
from mmjax.core.errors import UserError
from mmjax.core.parameters import unbox
from mmjax.core.pytrees import record
from mmjax.core.tokens import Live, Places, Tokens
from mmjax.nn.cache import CACHE, FRESH, LAID, MEMORY, opened, regrouped, written
from mmjax.nn.stack import apart, at, placed, stacks_called, without
from mmjax.ops.few import FEW

SMALLEST = 16  # tokens of the smallest bucket


@dataclasses.dataclass(frozen=True)
class Fixed:
    """A model as a static argument of `jax.jit`. (Modules that hold dictionaries have no hash of their own.)"""

    model: nn.Module

    def __hash__(self) -> int:
        return hash(repr(self.model))

    def with_parameters(self, params: Any) -> tuple[nn.Module, Any]:
        """Model and parameters as decoding likes them. On CPUs, float32: products of narrower numbers are slower
        there, and parameters are widened once instead of at every token."""
        if jax.default_backend() != "cpu":
            return self.model, params
        formats = [name for name, _ in leaves(self.model) if name.split(".")[-2:-1] == ["dtypes"]]
        model = override(self.model, dict.fromkeys(formats, "float32"))
        wide = lambda x: x.astype(jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x  # noqa: E731
        return model, jax.tree.map(wide, unbox(params))


@record
class State:
    """Where decoding stands. `last` [B 1] are the places of the rows' last tokens. `layers`: parameters of the stacks
    whose layers the steps read one by one, by their path in the parameters; their cache lies in the same way, and so do
    the matrices that are `laid` out for a few rows."""

    cache: Any
    kept: Any  # keys and values of the memory
    memory: Tokens | None
    slots: Places
    last: Places
    cursor: Int[Array, ""]
    layers: Any
    laid: Any

    def back(self, count: Int[Array, ""]) -> State:
        """As if the last `count` tokens had not been: what they wrote is overwritten before anyone sees it."""
        last = self.last.replace(position=self.last.position - count, block=self.last.block - count)
        return dataclasses.replace(self, last=last, cursor=self.cursor - count)

    def of_rows(self, rows: Int[Array, " R"]) -> State:
        """Other rows: row i goes on from what `rows[i]` was."""
        take = lambda tree: jax.tree.map(lambda x: jnp.take(x, rows, axis=0), tree)  # noqa: E731
        return State(
            _folded(regrouped(_unfolded(self.cache), rows)),
            regrouped(self.kept, rows),
            take(self.memory),
            take(self.slots),
            take(self.last),
            self.cursor,
            self.layers,
            self.laid,
        )


def start(
    model: nn.Module, params: Any, batch: Batch, room: int, slack: int = 0, abreast: int = 0
) -> tuple[Float[Array, "B V"], State]:
    """Logits of what follows each prompt, and the state with `room` slots for more. slack: see `nn.cache.opened`.
    abreast: how many ids each row will go on with at every step, where there are many steps."""
    variables, on_cpu = {"params": params}, jax.default_backend() == "cpu"
    fused = model.apply(variables, batch, method="fuse")
    with stacks_called() as stacks:
        logits, made = model.apply(variables, fused, method="prefill", mutable=[FRESH, MEMORY])
    layers = {}
    if on_cpu:  # XLA:CPU copies a layer out of its stack: 3 times the bytes at every token
        for path in stacks:
            made = {kind: placed(tree, path, apart(at(tree, path))) for kind, tree in made.items()}
            layers[path] = apart(at(params, path))
    length = fused.row.x.shape[1]
    slots = jax.tree.map(lambda x: jnp.pad(x, [(0, 0), (0, room)]), fused.row.places)
    last = jax.tree.map(lambda x: x[:, -1:], fused.row.places)
    last = last.replace(modality=jnp.full_like(last.modality, MODALITIES.index("text")))
    cache, kept = opened(made.get(FRESH, {}), length + room, slack), made.get(MEMORY, {})
    cursor = jnp.array(length, jnp.int32)
    state = State(_folded(cache), kept, fused.memory, slots, last, cursor, layers, {})
    few = on_cpu and 1 <= batch.rows * abreast <= FEW
    return logits, _laid_out(model, params, state) if few else state


def _laid_out(model: nn.Module, params: Any, state: State) -> State:
    """The same state, whose steps read large matrices as a few rows like them."""
    ids = jnp.zeros_like(state.last.position)
    _, laid, _ = _step(model, params, state, ids, LAID)
    layers = {path: without(made, at(laid, path)) for path, made in state.layers.items()}
    return dataclasses.replace(state, layers=layers, laid=laid)


def advance(model: nn.Module, params: Any, state: State, ids: Int[Array, "B n"]) -> tuple[Float[Array, "B n V"], State]:
    """Logits of what follows each of `ids`, which continue the rows, and the state after them."""
    logits, fresh, live = _step(model, params, state, ids, FRESH)
    cache = _folded(written(_unfolded(state.cache), fresh, state.cursor))
    last = state.last.replace(position=live.position[:, -1:], block=live.block[:, -1:])
    cursor = state.cursor + ids.shape[1]
    return logits, dataclasses.replace(state, cache=cache, slots=live.slots, last=last, cursor=cursor)


def _step(model: nn.Module, params: Any, state: State, ids: Array, writes: str) -> tuple[Array, Any, Live]:
    """Logits of what follows `ids`, the collection that the model `writes` meanwhile, and where the ids stand."""
    live = _live(state, ids)
    for path, layers in state.layers.items():
        params = placed(params, path, layers)
    variables = {"params": params, CACHE: _unfolded(state.cache), MEMORY: state.kept, LAID: state.laid}
    logits, made = model.apply(variables, ids, live, state.memory, method="step", mutable=[writes])
    return logits, made.get(writes, {}), live


def _live(state: State, ids: Int[Array, "B n"]) -> Live:
    """Places of `ids`, which continue the rows, and of all slots."""
    ahead = 1 + jnp.arange(ids.shape[1], dtype=jnp.int32)
    broad = jax.tree.map(lambda x: jnp.broadcast_to(x, ids.shape), state.last)
    now = broad.replace(position=broad.position + ahead, block=broad.block + ahead)
    put = lambda old, new: jax.lax.dynamic_update_slice_in_dim(old, new, state.cursor, 1)  # noqa: E731
    slots = jax.tree.map(put, state.slots, now)
    return Live(now.valid, now.block, now.segment, now.position, now.modality, slots, state.cursor)


def _folded(cache: Any) -> Any:
    """[1 G S K] -> [G S K], where layers lie apart: of a row alone, XLA:CPU would write the cache twice at every token,
    once for attention and once for the next token."""
    return jax.tree.map(lambda x: x[0] if x.ndim == 4 and x.shape[0] == 1 else x, cache)


def _unfolded(cache: Any) -> Any:
    return jax.tree.map(lambda x: x[None] if x.ndim == 3 else x, cache)


def asked(model: nn.Module, batch: Batch, steps: int) -> Batch:
    """The batch as decoding takes it: rows that end together in the last place, as long as a bucket (a power of two),
    so that few shapes are ever compiled; without labels. Raises UserError for batches without text, packed rows, less
    than one step, and more than the model has positions for (`model.longest`, where there is such a thing)."""
    text, longest = batch.text, getattr(model, "longest", None)
    if text is None:
        raise UserError("decoding continues a row of text; the batch has none (one start token per row is enough)")
    if steps < 1:
        raise UserError(f"decoding takes at least one step; got {steps}")
    segment = np.asarray(text.segment)
    if segment.max(initial=0) > 1:
        raise UserError(f"decoding takes one sample per row; a row here has {segment.max()}: lay them out unpacked")
    ends = np.where(segment > 0, np.arange(1, segment.shape[1] + 1), 0).max(axis=1, initial=0)
    prompt = int(ends.max(initial=1))
    if longest is not None and prompt + steps > longest:
        raise UserError(
            f"the model has {longest} positions; the longest prompt takes {prompt} of them, which leaves room for "
            f"{max(longest - prompt, 0)} steps, not {steps}"
        )
    bucket = min(max(SMALLEST, 1 << (prompt - 1).bit_length()), longest or sys.maxsize)
    place = np.arange(bucket) - (bucket - ends[:, None])

    def aligned(x: Array, padding: int = 0) -> np.ndarray:
        return np.where(place >= 0, np.take_along_axis(np.asarray(x), np.maximum(place, 0), axis=1), padding)

    vectors = (text.ids, text.slot, text.segment, text.block, text.position, text.loss)
    row = [aligned(x, -1 if x is text.slot else 0) for x in vectors]
    return batch.replace(text=type(text)(*row, per_item=text.per_item), labels={}, id=None, fault=None)
