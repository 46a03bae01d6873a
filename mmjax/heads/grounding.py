"""Where in the picture: boxes from vectors. (Boxes as tokens need no head: `ops.boxes.BoxTokens` and a language head.)

B rows   Q questions of a row   D width
"""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mmjax.nn.activations import relu
from mmjax.nn.linear import Linear
from mmjax.ops.boxes import from_centre


class Boxes(nn.Module):
    """A box per vector: `layers` maps, the last to centre and size through a sigmoid (DETR, arXiv 2005.12872, 3.2).
    Gives {"boxes": corners, float32 [B Q 4], in the picture's own units}."""

    layers: int = 3
    activation: Callable[[Array], Array] = relu

    @nn.compact
    def __call__(self, x: Float[Array, "B Q D"]) -> dict[str, Float[Array, "B Q 4"]]:
        for index in range(self.layers - 1):
            x = self.activation(Linear("bqd,dD->bqD", x.shape[-1:], name=f"map_{index}")(x))
        box = Linear("bqd,de->bqe", (4,), name="box")(x).astype(jnp.float32)
        return {"boxes": from_centre(jax.nn.sigmoid(box))}
