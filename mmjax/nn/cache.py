"""What decoding keeps: keys and values, and matrices in an order of their own.

L layers   B rows   T new tokens   S slots   G key-value heads   K head width

Four Linen collections, and no bookkeeping inside of layers:

    "fresh"    what attention layers write: keys and values of the tokens of this call, when the collection is mutable
    "cache"    what they read: those of the tokens before, slot by slot; the places of the slots come with the `Live`
               places of a call and are held once for all layers
    "memory"   keys and values of the memory that cross-attention looks at: written once, then only read
    "laid"     matrices as products with a few rows like them (`ops.few`): written once, then read instead

Prefill is a call with `mutable=["fresh", "memory"]`, from whose fresh keys `opened` makes the cache. Each step is a
call with the cache and `mutable=["fresh"]`, after which `written` puts the fresh keys into it. So the cache does not
pass through the scan over layers, which would copy it: T slots are written, in place where the step is in a loop. Where
it pays, a step with `mutable=["laid"]` comes first, of which only the matrices are wanted: those that steps read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mmjax.core.pytrees import record, static
from mmjax.core.tokens import Live, Places
from mmjax.ops.few import LARGE
from mmjax.ops.target import target

FRESH, CACHE, MEMORY, LAID = "fresh", "cache", "memory", "laid"


@record
class Kept:
    """Keys and values of one attention layer, or of all layers of a stack.

    window: of the layer's pattern; None sees everything. A layer with a window keeps a ring of as many slots as it can
    see: slot u of the row lies at u modulo the size of the ring. turned: keys are [*L B G K S]. Several queries meet
    them so as rows meet a matrix; XLA:CPU would turn them about at every token. A single query likes them better as
    they come."""

    key: Float[Array, "*L B G S K"]
    value: Float[Array, "*L B G S K"]
    window: int | None = static(None)
    turned: bool = static(False)

    @classmethod
    def of(cls, key: Array, value: Array, heads: int, window: int | None = None) -> Kept:
        """Keys and values [B G S K], as attention takes them, that `heads` heads ask."""
        turned = heads > key.shape[1] and target() == "cpu"
        return cls(jnp.swapaxes(key, -1, -2) if turned else key, value, window, turned)

    def pair(self) -> tuple[Float[Array, "*L B G S K"], Float[Array, "*L B G S K"]]:
        """The same again."""
        return jnp.swapaxes(self.key, -1, -2) if self.turned else self.key, self.value

    def map(self, function: Callable[..., Array], *others: Kept) -> Kept:
        """`function` of the keys and of the values; it is told along which axis, counted from behind, slots lie."""
        key = function(*(kept.key for kept in (self, *others)), axis=-1 if self.turned else -2)
        value = function(*(kept.value for kept in (self, *others)), axis=-2)
        return Kept(key, value, self.window, self.turned)

    @property
    def size(self) -> int:
        """S."""
        return self.value.shape[-2]


def recall(
    layer: nn.Module,
    key: Float[Array, "B G T K"],
    value: Float[Array, "B G T K"],
    places: Places,
    heads: int,
    window: int | None,
) -> tuple[Array, Array, Places]:
    """Keys, values and their places that self-attention looks at: those given, after those that `layer` keeps."""
    fresh = Kept.of(key, value, heads, window)
    if layer.is_mutable_collection(FRESH) and not layer.is_initializing():
        layer.put_variable(FRESH, "kept", fresh)
    if not layer.has_variable(CACHE, "kept"):
        return key, value, places
    kept = _put(layer.get_variable(CACHE, "kept"), fresh, places.cursor)
    return *kept.pair(), _ring_places(places, kept.size, key.shape[2])


def remember(layer: nn.Module, key: Float[Array, "B G S K"], value: Float[Array, "B G S K"], heads: int = 1) -> None:
    """Keeps keys and values of a memory for later calls, where "memory" is mutable."""
    if layer.is_mutable_collection(MEMORY) and not layer.is_initializing():
        layer.put_variable(MEMORY, "kept", Kept.of(key, value, heads))


def remembered(layer: nn.Module) -> Kept | None:
    """What `remember` kept in an earlier call, or None."""
    return layer.get_variable(MEMORY, "kept") if layer.has_variable(MEMORY, "kept") else None


def lay(layer: nn.Module, name: str, matrix: Callable[[], Float[Array, "K N"]]) -> None:
    """Keeps a large matrix of `layer` for products with a few rows, where "laid" is mutable; only there is it made."""
    if layer.is_mutable_collection(LAID) and not layer.is_initializing() and (made := matrix()).size >= LARGE:
        layer.put_variable(LAID, name, made.T)


def laid(layer: nn.Module, name: str) -> Float[Array, "N K"] | None:
    """What `lay` kept in an earlier call, or None."""
    return None if layer.is_mutable_collection(LAID) else layer.get_variable(LAID, name)


def opened(fresh: Any, slots: int, slack: int = 0) -> Any:
    """The cache with room for `slots` tokens that begins with a prefill's fresh keys (T tokens in slots 0..T-1).

    slack: how many tokens a later call may bring, less one: rings are that much larger than their windows."""
    fresh = {
        name: tree for name, tree in fresh.items() if jax.tree.leaves(tree)
    }  # a scope that a wrapper shares is empty

    def open_one(kept: Kept) -> Kept:
        size = slots if kept.window is None else min(slots, kept.window + slack)
        return kept.map(lambda x, axis: _with_room(x, size, axis))

    return _map(open_one, fresh)


def written(cache: Any, fresh: Any, cursor: Int[Array, ""]) -> Any:
    """The cache after a call whose tokens stand in the slots from `cursor` on."""
    return _map(lambda kept, new: _put(kept, new, cursor), cache, fresh)


def regrouped(cache: Any, rows: Int[Array, " R"]) -> Any:
    """The cache of other rows: row i becomes what `rows[i]` was (beams; several continuations of one prompt)."""
    return _map(lambda kept: kept.map(lambda x, axis: jnp.take(x, rows, axis=x.ndim - 4)), cache)


def _map(function: Any, *trees: Any) -> Any:
    return jax.tree.map(function, *trees, is_leaf=lambda x: isinstance(x, Kept))


def _with_room(x: Array, size: int, axis: int) -> Array:
    """Slots 0..T-1 laid into `size` slots, the last ones where the ring has them."""
    length = x.shape[axis]
    if length <= size:
        return jnp.pad(x, [(0, size - length if i == x.ndim + axis else 0) for i in range(x.ndim)])
    return jnp.roll(jax.lax.slice_in_dim(x, length - size, length, axis=axis), length % size, axis=axis)


def _put(kept: Kept, fresh: Kept, cursor: Int[Array, ""]) -> Kept:
    count = fresh.size

    def put(old: Array, new: Array, axis: int) -> Array:
        if count == 1:
            return jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), cursor % kept.size, axis)
        slots = (..., (cursor + jnp.arange(count)) % kept.size, *[slice(None)] * (-1 - axis))
        return old.at[slots].set(new.astype(old.dtype))

    return kept.map(put, fresh)


def _ring_places(live: Live, size: int, count: int) -> Places:
    """Places of the `size` slots of a ring that has taken `count` tokens at the cursor."""
    slots = live.slots
    if size == slots.valid.shape[1]:
        return slots
    last = live.cursor + count - 1
    held = last - (last - jnp.arange(size)) % size  # the latest slot of the row that lies at each place of the ring
    places = jax.tree.map(lambda x: jnp.take(x, held, axis=1, mode="clip"), slots)
    return places.replace(valid=places.valid & (held >= 0))
