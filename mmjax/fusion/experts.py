"""Experts by modality: weights that only some kinds of tokens meet.

B rows   T tokens of a row   D width   H heads   K head width

`ModalityBlock` is a block for `Stack` and `Chain` whose parts are told the places of the row:

    mixture of transformers   ModalityBlock(ModalityAttention(8), ByModality(), NormByModality())
    VLMo's experts            ModalityBlock(Attention(8), ByModality())
    mixture of experts        ModalityBlock(Attention(8), Routed(experts=8, chosen=2))      (see fusion.routed)
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from mmjax.core.layout import constrain
from mmjax.core.parameters import slot
from mmjax.core.tokens import Live, Pattern, Places, Tokens
from mmjax.fusion.grouped import TEXT_AND_MEDIA, GroupedFeedForward, GroupedLinear, Groups, group_of
from mmjax.nn.attention import head_shape
from mmjax.nn.cache import recall
from mmjax.nn.norms import Identity, LayerNorm, RMSNorm
from mmjax.ops.attention import Auto, Kernel, attend
from mmjax.ops.rotary import GridRotary, MultimodalRotary, Rotary
from mmjax.ops.routing import Dispatch, Everywhere


class Shared(nn.Module):
    """A norm that is the same for all modalities."""

    norm: nn.Module = slot(LayerNorm)

    def __call__(self, x: Array, places: Places) -> Array:
        return self.norm(x)


class NormByModality(nn.Module):
    """A norm for each group of modalities. [B T ... D], at the places of its tokens."""

    norm: nn.Module = slot(RMSNorm)
    groups: Groups = TEXT_AND_MEDIA

    @nn.compact
    def __call__(self, x: Float[Array, "B T *n D"], places: Places) -> Float[Array, "B T *n D"]:
        group = group_of(places, self.groups).reshape(*x.shape[:2], *[1] * (x.ndim - 2))
        of_each = [self.norm.copy(name="_".join(names))(x) for names in self.groups]
        return jax.lax.select_n(jnp.broadcast_to(group, x.shape), *of_each)


class ModalityBlock(nn.Module):
    """Pre-norm attention and feed-forward whose parts know the modality of each token: `norm(x, places)`,
    `attention(x, places)`, `feedforward(x, places, train=...)`. It leaves a memory to its neighbours in a `Chain`."""

    attention: nn.Module
    feedforward: nn.Module
    norm: nn.Module = slot(Shared)
    dropout: float = 0.0

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], places: Places, memory: Tokens | None = None, *, train: bool = False
    ) -> Float[Array, "B T D"]:
        def drop(branch: Array) -> Array:
            return nn.Dropout(self.dropout, deterministic=not train)(branch)

        x = constrain(x, "batch", "tokens", None)
        mixed = self.attention(self.norm.copy(name="attention_norm")(x, places), places)
        x = x + drop(checkpoint_name(mixed, "out"))
        return x + drop(self.feedforward(self.norm.copy(name="feedforward_norm")(x, places), places, train=train))


class ByModality(nn.Module):
    """A feed-forward for each group of modalities (mixture of transformers, arXiv 2411.04996; the modality experts of
    VLMo, arXiv 2111.02358)."""

    feedforward: nn.Module = slot(GroupedFeedForward)
    groups: Groups = TEXT_AND_MEDIA

    def __call__(self, x: Float[Array, "B T D"], places: Places, *, train: bool = False) -> Float[Array, "B T D"]:
        group = group_of(places, self.groups).reshape(-1)
        return self.feedforward(x.reshape(-1, x.shape[-1]), group, len(self.groups)).reshape(x.shape)


class ModalityAttention(nn.Module):
    """Attention over the whole row whose maps and norms of queries, keys, values and output belong to the modality of
    each token (mixture of transformers, arXiv 2411.04996). Fields as in `nn.attention.Attention`."""

    heads: int
    kv_heads: int | None = None
    head_dim: int | None = None
    bias: bool = False
    gain: float = 1.0
    qk_norm: nn.Module = slot(Identity)
    rotary: Rotary | GridRotary | MultimodalRotary | None = None
    pattern: Pattern = Pattern()
    kernel: Kernel = Auto()
    groups: Groups = TEXT_AND_MEDIA
    dispatch: Dispatch = Everywhere()

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], places: Places) -> Float[Array, "B T D"]:
        width, group = x.shape[-1], group_of(places, self.groups).reshape(-1)
        kv_heads, size = head_shape(width, self.heads, self.kv_heads, self.head_dim)

        def mapped(name: str, equation: str, out: tuple[int, ...], x: Array, gain: float = 1.0) -> Array:
            sizes = {"experts": len(self.groups), "bias": self.bias, "dispatch": self.dispatch}
            return GroupedLinear(equation, out, **sizes, gain=gain, name=name)(x, group)

        def heads(name: str, equation: str, count: int) -> Array:
            y = mapped(name, equation, (count, size), x.reshape(-1, width))
            return jnp.swapaxes(y.reshape(*x.shape[:2], count, size), 1, 2)

        def turned(name: str, x: Array) -> Array:
            by_token = NormByModality(self.qk_norm, self.groups, name=name)(jnp.swapaxes(x, 1, 2), places)
            y = jnp.swapaxes(by_token, 1, 2)
            return y if self.rotary is None else self.rotary(y, places)

        q = turned("query_norm", heads("query", "d->hk", self.heads))
        k = turned("key_norm", heads("key", "d->gk", kv_heads))
        v = heads("value", "d->gk", kv_heads)
        k, v, key_places = recall(self, k, v, places, self.heads, self.pattern.window)
        q, k, v = (checkpoint_name(part, "qkv") for part in (q, k, v))
        asks = places.bare() if isinstance(places, Live) else places
        mixed = checkpoint_name(attend(q, k, v, asks, key_places, pattern=self.pattern, kernel=self.kernel), "context")
        mixed = jnp.swapaxes(mixed, 1, 2).reshape(-1, self.heads, size)
        return mapped("out", "hk->d", (width,), mixed, self.gain).reshape(x.shape)
