"""The transformer block: residual branches with slots for what they hold.  B batch   T tokens   D width"""

from __future__ import annotations

import flax.linen as nn
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from mmjax.core.layout import constrain
from mmjax.core.parameters import slot
from mmjax.core.tokens import Places, Tokens
from mmjax.nn.feedforward import FeedForward
from mmjax.nn.norms import Identity, LayerNorm


class Residual(nn.Module):
    """x + layer(norm(x)): one branch of a block by itself."""

    layer: nn.Module
    norm: nn.Module = slot(LayerNorm)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        return x + self.layer(self.norm(x))


class Block(nn.Module):
    """Pre-norm attention and feed-forward (arXiv 2002.04745). Architectures differ by what stands in the slots:
    ViT and CLIP are the defaults, Llama is RMSNorm, rotary grouped attention and a gated feed-forward.

    cross: between the two, attends to the memory, where there is one (Vaswani et al. 2017, section 3.1): called as
    `cross(x, places, memory.x, memory.places)`. post_norm: of each branch before it is added (Gemma 2).
    """

    attention: nn.Module
    feedforward: nn.Module = slot(FeedForward)
    norm: nn.Module = slot(LayerNorm)
    dropout: float = 0.0
    cross: nn.Module | None = None
    post_norm: nn.Module = slot(Identity)

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        places: Places | None = None,
        memory: Tokens | None = None,
        *,
        train: bool = False,
    ) -> Float[Array, "B T D"]:
        def norm(branch: str, x: Array) -> Array:
            return self.norm.clone(parent=self, name=f"{branch}_norm")(x)

        def added(branch: str, y: Array) -> Array:
            y = self.post_norm.clone(parent=self, name=f"{branch}_post_norm")(y)
            y = x + nn.Dropout(self.dropout, deterministic=not train)(y)
            self.sow("intermediates", f"after_{branch}", y)
            return y

        x = constrain(x, "batch", "tokens", None)
        x = added("attention", checkpoint_name(self.attention(norm("attention", x), places), "out"))
        if self.cross is not None and memory is not None:
            seen = self.cross(norm("cross", x), places, memory.x, memory.places)
            x = added("cross", checkpoint_name(seen, "out"))
        return added("feedforward", self.feedforward(norm("feedforward", x), train=train))


class Chain(nn.Module):
    """Different blocks in turn as one block, so that a stack can repeat them: sliding and global attention (Gemma 2,
    arXiv 2408.00118), or a look at the memory before every n-th block (Flamingo, arXiv 2204.14198)."""

    blocks: tuple[nn.Module, ...]

    def __call__(
        self,
        x: Float[Array, "B T D"],
        places: Places | None = None,
        memory: Tokens | None = None,
        *,
        train: bool = False,
    ) -> Float[Array, "B T D"]:
        for block in self.blocks:
            x = block(x, places, memory, train=train)
        return x
