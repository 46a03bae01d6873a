"""The transformer block: two residual branches with slots for what they hold.  B batch   T tokens   D width"""

from __future__ import annotations

import flax.linen as nn
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from mmjax.core.layout import constrain
from mmjax.core.parameters import slot
from mmjax.core.tokens import Places
from mmjax.nn.feedforward import FeedForward
from mmjax.nn.norms import LayerNorm


class Residual(nn.Module):
    """x + layer(norm(x)): one branch of a block by itself."""

    layer: nn.Module
    norm: nn.Module = slot(LayerNorm)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        return x + self.layer(self.norm(x))


class Block(nn.Module):
    """Pre-norm attention and feed-forward (arXiv 2002.04745). Architectures differ by what stands in the slots:
    ViT and CLIP are the defaults, Llama is RMSNorm, rotary grouped attention and a gated feed-forward."""

    attention: nn.Module
    feedforward: nn.Module = slot(FeedForward)
    norm: nn.Module = slot(LayerNorm)
    dropout: float = 0.0

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], places: Places | None = None, *, train: bool = False
    ) -> Float[Array, "B T D"]:
        def drop(branch: Array) -> Array:
            return nn.Dropout(self.dropout, deterministic=not train)(branch)

        x = constrain(x, "batch", "tokens", None)
        mixed = self.attention(self.norm.clone(parent=self, name="attention_norm")(x), places)
        x = x + drop(checkpoint_name(mixed, "out"))
        self.sow("intermediates", "after_attention", x)
        fed = self.feedforward(self.norm.clone(parent=self, name="feedforward_norm")(x), train=train)
        x = x + drop(fed)
        self.sow("intermediates", "after_feedforward", x)
        return x
