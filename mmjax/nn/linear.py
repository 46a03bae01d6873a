"""Linear maps as einsums whose letters name the dimensions."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array

from mmjax.core.errors import UserError
from mmjax.core.parameters import declare
from mmjax.nn.cache import laid, lay
from mmjax.ops.few import times_few

LETTERS = {
    "d": "width", "h": "heads", "g": "kv_heads", "k": "head_dim", "m": "mlp", "e": "embed", "v": "vocab", "p": "patch",
    "c": "channel", "s": "stack", "l": "latents", "x": "experts",
}  # fmt: skip
"""What each letter of a kernel means; a capital is a second dimension of the same kind (`dD` is width to width)."""


class Linear(nn.Module):
    """`Linear("btd,dhk->bhtk", (12, 64))` maps width to 12 heads of 64, laid out as the equation says.

    equation: input, kernel and output letters. out: sizes of the kernel letters that the input does not have, in order.
    gain: the kernel starts as a truncated normal of standard deviation gain / sqrt(fan-in); 0 starts at zero.
    The product runs in the format of the input; the parameters stay float32. Raises UserError when the input does not
    have the dimensions of the equation.
    """

    equation: str
    out: tuple[int, ...]
    bias: bool = True
    gain: float = 1.0

    @nn.compact
    def __call__(self, x: Array) -> Array:
        inputs, kernel, output = self._letters
        if x.ndim != len(inputs):
            raise UserError(f"{self.name}: {self.equation} takes an input of {len(inputs)} dimensions; got {x.shape}")
        size = dict(zip(inputs, x.shape, strict=True))
        size |= dict(zip([letter for letter in kernel if letter not in size], self.out, strict=True))
        summed = "".join(letter for letter in kernel if letter not in output)
        fan_in = math.prod(size[letter] for letter in summed)
        # First in the order of the product itself: asked for another one at once, einsum swaps the two, and XLA:CPU
        # copies what does not lie as it likes at every call.
        plain = "".join(dict.fromkeys(letter for letter in inputs + kernel if letter in output))
        turned = laid(self, "kernel")
        if turned is None:
            weight = declare(self, "kernel", Normal(self.gain * fan_in**-0.5), **self._dims(kernel, size))
            y = jnp.einsum(f"{inputs},{kernel}->{plain}", x, weight.astype(x.dtype))
            if kernel.startswith(summed) and not set(inputs) & set(kernel) & set(output):
                lay(self, "kernel", lambda: weight.reshape(fan_in, -1))
        else:
            rows = "".join(letter for letter in inputs if letter not in summed)
            flat = jnp.einsum(f"{inputs}->{rows}{summed}", x).reshape(-1, fan_in)
            y = times_few(flat, turned).astype(x.dtype).reshape([size[letter] for letter in plain])
        y = y.transpose([plain.index(letter) for letter in output])
        if not self.bias:
            return y
        kept = "".join(letter for letter in output if letter in kernel and letter not in inputs)
        bias = declare(self, "bias", nn.initializers.zeros, **self._dims(kept, size))
        return y + bias.astype(x.dtype).reshape([size[letter] if letter in kept else 1 for letter in output])

    @property
    def _letters(self) -> tuple[str, str, str]:
        """Those of input, kernel and output."""
        (inputs, kernel), output = self.equation.split("->")[0].split(","), self.equation.split("->")[1]
        return inputs, kernel, output

    def _dims(self, letters: str, size: dict[str, int]) -> dict[str, int]:
        return {LETTERS[letter.lower()] + "_" * letter.isupper(): size[letter] for letter in letters}


@dataclasses.dataclass(frozen=True)
class Normal:
    """Truncated normal initialiser with this standard deviation (the truncation at two sigma is corrected for)."""

    deviation: float

    def __call__(self, rng: jax.Array, shape: Sequence[int], dtype: Any) -> Array:
        return self.deviation / 0.87962566 * jax.random.truncated_normal(rng, -2.0, 2.0, shape, dtype)
