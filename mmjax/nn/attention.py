"""Multi-head attention as a layer.  B batch   T, S tokens   D width   H heads   G key-value heads   K head width"""

from __future__ import annotations

import flax.linen as nn
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from mmjax.core.errors import UserError
from mmjax.core.parameters import slot
from mmjax.core.tokens import Live, Pattern, Places
from mmjax.nn.cache import recall, remember, remembered
from mmjax.nn.linear import Linear
from mmjax.nn.norms import Identity
from mmjax.ops.attention import Auto, Kernel, attend
from mmjax.ops.rotary import GridRotary, MultimodalRotary, Rotary


def head_shape(width: int, heads: int, kv_heads: int | None, head_dim: int | None) -> tuple[int, int]:
    """G and K. Raises UserError where heads share the width or the key-value heads unevenly."""
    groups = kv_heads or heads
    if heads % groups or (head_dim is None and width % heads):
        raise UserError(
            f"attention: {heads} heads must divide the width {width} and be a multiple of {groups} key-value heads"
        )
    return groups, head_dim or width // heads


class Attention(nn.Module):
    """Self-attention, or cross-attention when `memory` is given.

    kv_heads below heads is grouped-query attention (arXiv 2305.13245). qk_norm is a norm over K on queries and keys
    (arXiv 2302.05442, section 2). rotary turns queries and keys by their positions and needs places. softcap bounds
    the logits (Gemma 2, arXiv 2408.00118, section 2). gain is that of the output map: with 0 a residual branch starts
    as nothing. out_bias is its bias; None is as the others'. scale of the logits is 1/sqrt(K) when None.

    While decoding, keys and values of the tokens before come from the cache (`nn.cache`).
    """

    heads: int
    kv_heads: int | None = None
    head_dim: int | None = None
    bias: bool = True
    gain: float = 1.0
    qk_norm: nn.Module = slot(Identity)
    rotary: Rotary | GridRotary | MultimodalRotary | None = None
    pattern: Pattern = Pattern()
    kernel: Kernel = Auto()
    softcap: float | None = None
    scale: float | None = None
    out_bias: bool | None = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        places: Places | None = None,
        memory: Float[Array, "B S D2"] | None = None,
        memory_places: Places | None = None,
    ) -> Float[Array, "B T D"]:
        width = x.shape[-1]
        groups, size = head_shape(width, self.heads, self.kv_heads, self.head_dim)
        q = Linear("btd,dhk->bhtk", (self.heads, size), self.bias, name="query")(x)
        q = self._turned(self.qk_norm.clone(parent=self, name="query_norm")(q), places)
        if memory is None:
            fresh = self._keys(x, places, groups, size)
            k, v, key_places = recall(self, *fresh, places, self.heads, self.pattern.window)
        else:
            k, v, key_places = *self._memory_keys(memory, memory_places, groups, size), memory_places
        q, k, v = (checkpoint_name(part, "qkv") for part in (q, k, v))
        asks = places.bare() if isinstance(places, Live) else places
        if self.scale is not None:
            q = q * (self.scale * size**0.5)
        given = {"pattern": self.pattern, "softcap": self.softcap, "kernel": self.kernel}
        mixed = checkpoint_name(attend(q, k, v, asks, key_places, **given), "context")
        out_bias = self.bias if self.out_bias is None else self.out_bias
        return Linear("bhtk,hkd->btd", (width,), out_bias, self.gain, name="out")(mixed)

    def _memory_keys(self, memory: Array, places: Places | None, groups: int, size: int) -> tuple[Array, Array]:
        kept = remembered(self)
        if kept is not None:
            return kept.pair()
        key, value = self._keys(memory, places, groups, size)
        remember(self, key, value, self.heads)
        return key, value

    def _keys(self, x: Array, places: Places | None, groups: int, size: int) -> tuple[Array, Array]:
        """Keys, normed and turned, and values: [B G T K] each."""
        k = Linear("btd,dgk->bgtk", (groups, size), self.bias, name="key")(x)
        v = Linear("btd,dgk->bgtk", (groups, size), self.bias, name="value")(x)
        return self._turned(self.qk_norm.clone(parent=self, name="key_norm")(k), places), v

    def _turned(self, x: Array, places: Places | None) -> Array:
        return x if self.rotary is None else self.rotary(x, places)
