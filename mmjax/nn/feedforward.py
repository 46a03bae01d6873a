"""Feed-forward layers: the same map at every place.  B batch   T tokens   D width   M hidden width"""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from mmjax.nn.activations import gelu, silu
from mmjax.nn.linear import Linear


class FeedForward(nn.Module):
    """Two linear maps with a nonlinearity between (Vaswani et al. 2017, equation 2). `mlp` is M; None means 4 D. `gain`
    is that of the last map: with 0 a residual branch starts as nothing (arXiv 2003.04887)."""

    mlp: int | None = None
    activation: Callable[[Array], Array] = gelu
    bias: bool = True
    dropout: float = 0.0
    gain: float = 1.0

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], *, train: bool = False) -> Float[Array, "B T D"]:
        width = x.shape[-1]
        hidden = Linear("btd,dm->btm", (self.mlp or 4 * width,), self.bias, name="up")(x)
        hidden = self.activation(checkpoint_name(hidden, "mlp"))
        hidden = nn.Dropout(self.dropout, deterministic=not train)(hidden)
        return Linear("btm,md->btd", (width,), self.bias, self.gain, name="down")(hidden)


class GatedFeedForward(nn.Module):
    """A hidden layer multiplied by an activated gate (GLU variants, arXiv 2002.05202, equation 6). None means 8/3 D,
    rounded up to a multiple of 64; `gain` as in FeedForward."""

    mlp: int | None = None
    activation: Callable[[Array], Array] = silu
    bias: bool = False
    dropout: float = 0.0
    gain: float = 1.0

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], *, train: bool = False) -> Float[Array, "B T D"]:
        width = x.shape[-1]
        mlp = self.mlp or -(-8 * width // (3 * 64)) * 64
        gate = checkpoint_name(Linear("btd,dm->btm", (mlp,), self.bias, name="gate")(x), "mlp")
        value = checkpoint_name(Linear("btd,dm->btm", (mlp,), self.bias, name="up")(x), "mlp")
        hidden = nn.Dropout(self.dropout, deterministic=not train)(self.activation(gate) * value)
        return Linear("btm,md->btd", (width,), self.bias, self.gain, name="down")(hidden)
