"""Recurrent layers: what a place knows of the places before it is one carry of a fixed size.

B batch   T, M tokens   D width   C vectors of a carry   H width of each   S gates of a cell   K width of the scores

While decoding, the carry comes from the cache (`nn.cache`): it is kept like the keys of attention with a window of two
places, the one that is written and the one before it, so that going back and beams need nothing of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mmjax.core.errors import UserError
from mmjax.core.parameters import declare
from mmjax.core.tokens import Live, Places, Tokens, visible
from mmjax.nn.cache import CACHE, FRESH, Kept, remember, remembered
from mmjax.nn.linear import Linear, Normal


class LSTM(nn.Module):
    """Long short-term memory (Hochreiter and Schmidhuber 1997; with the forget gate of Gers et al. 2000). The carry is
    (output h, memory c); gates in the order input, forget, output, candidate:

        i, f, o = sigmoid(..)   g = tanh(..)   c = f c + i g   h = o tanh(c)

    forget: added to what enters the forget gate, so that it starts open (Jozefowicz et al. 2015)."""

    hidden: int
    forget: float = 1.0

    vectors = 2
    gates = 4

    @nn.compact
    def __call__(self, carry: Float[Array, "B 2 H"], entering: Float[Array, "B 4 H"]) -> Float[Array, "B 2 H"]:
        i, f, o, g = jnp.moveaxis(entering + recurrent(self, carry, entering.dtype), 1, 0).astype(jnp.float32)
        memory = jax.nn.sigmoid(f + self.forget) * carry[:, 1] + jax.nn.sigmoid(i) * jnp.tanh(g)
        return jnp.stack([jax.nn.sigmoid(o) * jnp.tanh(memory), memory], axis=1)


class GRU(nn.Module):
    """Gated recurrent unit (arXiv 1406.1078), with the reset gate behind the recurrent product (as cuDNN has it, and
    arXiv 1412.3555 allows). The carry is the output h; gates in the order reset, update, candidate:

        r, z = sigmoid(..)   n = tanh(x + r u)   h = (1 - z) n + z h"""

    hidden: int

    vectors = 1
    gates = 3

    @nn.compact
    def __call__(self, carry: Float[Array, "B 1 H"], entering: Float[Array, "B 3 H"]) -> Float[Array, "B 1 H"]:
        told = recurrent(self, carry, entering.dtype).astype(jnp.float32)
        bias = declare(self, "bias", nn.initializers.zeros, width=self.hidden)
        entering = entering.astype(jnp.float32)
        r, z = (jax.nn.sigmoid(entering[:, gate] + told[:, gate]) for gate in (0, 1))
        n = jnp.tanh(entering[:, 2] + r * (told[:, 2] + bias))
        return ((1 - z) * n + z * carry[:, 0])[:, None]


def recurrent(cell: LSTM | GRU, carry: Float[Array, "B C H"], dtype: Any) -> Float[Array, "B S H"]:
    """What the output of the place before adds to the gates."""
    size = cell.hidden
    kernel = declare(cell, "recurrent", Normal(size**-0.5), width=size, stack=cell.gates, width_=size)
    return jnp.einsum("bd,dsD->bsD", carry[:, 0].astype(dtype), kernel.astype(dtype))


class Recurrent(nn.Module):
    """A cell over the row, in place of attention: `Block(Recurrent(LSTM(512)))`. [B T D] -> [B T D].

    Places that are not real leave the carry as it is; each sample of a row begins anew. Where H is not D, a linear map
    makes it so."""

    cell: LSTM | GRU

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], places: Places | None = None) -> Float[Array, "B T D"]:
        cell, width = self.cell, x.shape[-1]
        places = Places.all_of("text", *x.shape[:2]) if places is None else places
        x = jnp.where(places.valid[..., None], x, 0)
        entering = Linear("btd,dsD->btsD", (cell.gates, cell.hidden), name="inputs")(x)

        nothing = jnp.zeros((x.shape[0], cell.vectors, cell.hidden))
        states, _ = over_time(self, cell, _read, entering, places, nothing)
        y = states[:, :, 0].astype(x.dtype)
        return y if cell.hidden == width else Linear("btd,dD->btD", (width,), name="out")(y)


def _read(cell: LSTM | GRU, carry: Array, entering: Array) -> tuple[Array, tuple[()]]:
    return cell(carry, entering), ()


class Backward(nn.Module):
    """A layer that reads the row from its end: `Chain((Block(Recurrent(..)), Block(Backward(Recurrent(..)))))` reads
    both ways. For encoders: raises UserError while decoding, where the end has not come yet."""

    layer: nn.Module

    def __call__(self, x: Float[Array, "B T D"], places: Places | None = None) -> Float[Array, "B T D"]:
        if isinstance(places, Live):
            raise UserError("a layer that reads the row backward cannot decode; use it in encoders")
        x, places = jax.tree.map(lambda part: part[:, ::-1], (x, places))
        return self.layer(x, places)[:, ::-1]


class Look(nn.Module):
    """One step of `AttendTell`: (carry, (what the word adds to the gates, which memory is seen), memory, its keys) ->
    (carry, (the context, how much each vector of the memory was looked at))."""

    cell: LSTM

    @nn.compact
    def __call__(
        self,
        carry: Float[Array, "B 2 H"],
        now: tuple[Float[Array, "B 4 H"], Bool[Array, "B M"]],
        memory: Float[Array, "B M D2"],
        keys: Float[Array, "B M K"],
    ) -> tuple[Float[Array, "B 2 H"], tuple[Float[Array, "B D2"], Float[Array, "B M"]]]:
        (entering, seen), cell = now, self.cell
        h = carry[:, 0].astype(memory.dtype)
        asks = Linear("bd,dD->bD", (keys.shape[-1],), name="ask")(h)
        score = Linear("bmd,de->bme", (1,), False, name="score")(jnp.tanh(keys + asks[:, None]))[..., 0]
        weight = jax.nn.softmax(jnp.where(seen, score.astype(jnp.float32), jnp.finfo(jnp.float32).min))
        weight = jnp.where(seen, weight, 0.0)
        gate = jax.nn.sigmoid(Linear("bd,de->be", (1,), name="gate")(h))
        context = gate * jnp.einsum("bm,bmd->bd", weight.astype(memory.dtype), memory)
        added = Linear("bd,dsD->bsD", (cell.gates, cell.hidden), False, name="context")(context)
        return cell(carry, entering + added), (context, weight)


class AttendTell(nn.Module):
    """The decoder of Show, Attend and Tell (arXiv 1502.03044), in place of a stack: at each place the LSTM looks at the
    memory before it reads the word (equations 1-6; soft attention, equation 13). [B T D] -> [B T D].

    The look weighs memory vectors by a softmax of w tanh(W a + U h), and is gated by sigmoid(V h) (section 4.2.1). The
    carry starts as two maps of the mean of the sample's memory (section 3.1.2). What leaves is word + L h + L' z
    (equation 7 without the map to the vocabulary). A sample without memory looks at zeros. scores: K, H when None.
    Raises UserError when no memory is handed over."""

    cell: LSTM
    scores: int | None = None
    dropout: float = 0.0

    def __call__(
        self, x: Float[Array, "B T D"], places: Places, memory: Tokens | None = None, *, train: bool = False
    ) -> Float[Array, "B T D"]:
        return self.tell(x, places, memory, train=train)[0]

    @nn.compact
    def tell(
        self, x: Float[Array, "B T D"], places: Places, memory: Tokens | None, *, train: bool = False
    ) -> tuple[Float[Array, "B T D"], Float[Array, "B T M"]]:
        """What `__call__` gives, and how much each place looked at each vector of the memory."""
        if memory is None:
            raise UserError(
                "Show, Attend and Tell looks at a memory, and this model hands none over: its fusion must be "
                "CrossFusion, and the batch must have slots for the media"
            )
        cell, told = self.cell, memory.clean().x
        x = jnp.where(places.valid[..., None], x, 0)
        entering = Linear("btd,dsD->btsD", (cell.gates, cell.hidden), name="inputs")(x)
        seen = visible(places, memory.places)
        share = seen / jnp.maximum(jnp.sum(seen, axis=-1, keepdims=True), 1)
        mean = jnp.einsum("btm,bmd->btd", share.astype(told.dtype), told)
        start = jnp.tanh(Linear("btd,dsD->btsD", (cell.vectors, cell.hidden), name="start")(mean))
        look = Look(cell.clone(parent=None, name=None), name="look")
        states, (context, looks) = over_time(
            self, look, Look.__call__, (entering, seen), places, start.astype(jnp.float32), told, self._keys(told)
        )
        h = nn.Dropout(self.dropout, deterministic=not train)(states[:, :, 0].astype(x.dtype))
        out = x + Linear("btd,dD->btD", (x.shape[-1],), name="tell_state")(h)
        return out + Linear("btd,dD->btD", (x.shape[-1],), False, name="tell_context")(context), looks

    def _keys(self, told: Float[Array, "B M D2"]) -> Float[Array, "B M K"]:
        """The memory as the scores see it, which decoding makes once."""
        if (kept := remembered(self)) is not None:
            return kept.key[:, 0]
        keys = Linear("bmd,dD->bmD", (self.scores or self.cell.hidden,), False, name="keys")(told)
        remember(self, keys[:, None], keys[:, None, :, :0])
        return keys


def over_time(
    layer: nn.Module,
    part: nn.Module,
    step: Callable[..., tuple[Array, Any]],
    inputs: Any,
    places: Places,
    start: Float[Array, "B *T C H"],
    *fixed: Array,
) -> tuple[Float[Array, "B T C H"], Any]:
    """`step(part, carry [B C H], inputs at t, *fixed) -> (carry, outputs at t)` along the row: (the carry after each
    place, outputs of each place). start: the carry where a sample begins, one for all or for each place. `layer` keeps
    the carries for decoding."""
    each = start if start.ndim == 4 else None

    def one(part: nn.Module, carry: Array, now: Any, *fixed: Array) -> tuple[Array, tuple[Array, Any]]:
        fresh, begin, real, inputs = now
        before = jnp.where(begin[:, None, None], start if fresh is None else fresh, carry)
        after, outputs = step(part, before, inputs, *fixed)
        after = jnp.where(real[:, None, None], after, carry)
        return after, (after, outputs)

    scan = nn.scan(
        one,
        variable_broadcast="params",
        split_rngs={"params": False},
        in_axes=(1, *[nn.broadcast] * len(fixed)),
        out_axes=1,
    )
    along = (each, _begins(places), places.valid, inputs)
    _, (states, outputs) = scan(part, _before(layer, places, start), along, *fixed)
    if layer.is_mutable_collection(FRESH) and not layer.is_initializing():
        kept = jnp.moveaxis(states, 2, 1)
        layer.put_variable(FRESH, "kept", Kept(kept, kept[..., :0], window=2))
    return states, outputs


def _begins(places: Places) -> Bool[Array, "B T"]:
    """Where a sample begins: real places whose last real place before is another sample's, or is not there."""
    number = jnp.where(places.valid, jnp.arange(places.valid.shape[1]), -1)
    last = jax.lax.cummax(number, axis=1)[:, :-1]
    last = jnp.pad(last, ((0, 0), (1, 0)), constant_values=-1)
    owner = jnp.take_along_axis(places.segment, jnp.maximum(last, 0), axis=1)
    return places.valid & jnp.where(last < 0, not isinstance(places, Live), owner != places.segment)


def _before(layer: nn.Module, places: Places, like: Float[Array, "B *T C H"]) -> Float[Array, "B C H"]:
    """The carry after the place before the row, which the cache holds."""
    if not layer.has_variable(CACHE, "kept"):
        return jnp.zeros((like.shape[0], *like.shape[-2:]), like.dtype)
    kept = layer.get_variable(CACHE, "kept")
    return jax.lax.dynamic_index_in_dim(kept.key, (places.cursor - 1) % kept.size, 2, keepdims=False)
