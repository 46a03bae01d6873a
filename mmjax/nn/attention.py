"""Multi-head attention as a layer.  B batch   T, S tokens   D width   H heads   G key-value heads   K head width"""

from __future__ import annotations

import flax.linen as nn
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from mmjax.core.errors import UserError
from mmjax.core.parameters import slot
from mmjax.core.tokens import Pattern, Places
from mmjax.nn.linear import Linear
from mmjax.nn.norms import Identity
from mmjax.ops.attention import Auto, Kernel, attend
from mmjax.ops.rotary import GridRotary, Rotary


class Attention(nn.Module):
    """Self-attention, or cross-attention when `memory` is given.

    kv_heads below heads is grouped-query attention (arXiv 2305.13245). qk_norm is a norm over K on queries and keys
    (arXiv 2302.05442, section 2). rotary turns queries and keys by their positions and needs places. gain is
    that of the output map: with 0 a residual branch starts as nothing.
    """

    heads: int
    kv_heads: int | None = None
    head_dim: int | None = None
    bias: bool = True
    gain: float = 1.0
    qk_norm: nn.Module = slot(Identity)
    rotary: Rotary | GridRotary | None = None
    pattern: Pattern = Pattern()
    kernel: Kernel = Auto()

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        places: Places | None = None,
        memory: Float[Array, "B S D2"] | None = None,
        memory_places: Places | None = None,
    ) -> Float[Array, "B T D"]:
        width, groups = x.shape[-1], self.kv_heads or self.heads
        if self.heads % groups or (self.head_dim is None and width % self.heads):
            raise UserError(
                f"attention: {self.heads} heads must divide the width {width} and be a multiple of {groups} key-value "
                "heads"
            )
        size = self.head_dim or width // self.heads
        source = x if memory is None else memory
        q = Linear("btd,dhk->bhtk", (self.heads, size), self.bias, name="query")(x)
        k = Linear("btd,dgk->bgtk", (groups, size), self.bias, name="key")(source)
        v = Linear("btd,dgk->bgtk", (groups, size), self.bias, name="value")(source)
        q = self.qk_norm.clone(parent=self, name="query_norm")(q)
        k = self.qk_norm.clone(parent=self, name="key_norm")(k)
        key_places = places if memory is None else memory_places
        if self.rotary is not None:
            q, k = self.rotary(q, places), self.rotary(k, key_places)
        q, k, v = (checkpoint_name(part, "qkv") for part in (q, k, v))
        mixed = attend(q, k, v, places, key_places, pattern=self.pattern, kernel=self.kernel)
        mixed = checkpoint_name(mixed, "context")
        return Linear("bhtk,hkd->btd", (width,), self.bias, self.gain, name="out")(mixed)
