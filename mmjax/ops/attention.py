"""Scaled dot-product attention behind one entry point.

B batch   H heads   G key-value heads (H is a multiple of G)   Q query places   S key places   K head width

A kernel is a frozen value that is called with arrays and places; `Auto` picks one by length. Platform kernels are added
as further values of this kind. No kernel but `Reference` holds a [Q S] array for all queries at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from jaxtyping import Array, Float

from mmjax.core.tokens import Pattern, Places
from mmjax.ops.attention_dense import in_chunks, seeing, under
from mmjax.ops.attention_flash import Flash
from mmjax.ops.target import target

Kernel = Callable[..., Array]


@dataclasses.dataclass(frozen=True)
class Reference:
    """Everything at once: O(Q S) memory. The truth that other kernels are tested against."""

    def __call__(
        self, q, k, v, query: Places | None, key: Places | None, pattern: Pattern, scale: float, softcap: float | None
    ):
        return seeing(under(pattern), key, k, v, scale, softcap)(q, query)


@dataclasses.dataclass(frozen=True)
class Chunked:
    """`queries` queries at a time, recomputed in the backward pass: O(queries S) memory, equal to `Reference`
    (Rabe and Staats 2021, arXiv 2112.05682, with whole rows so that no running maximum is needed)."""

    queries: int = 256

    def __call__(
        self, q, k, v, query: Places | None, key: Places | None, pattern: Pattern, scale: float, softcap: float | None
    ):
        return in_chunks(seeing(under(pattern), key, k, v, scale, softcap), q, query, self.queries)


@dataclasses.dataclass(frozen=True)
class Auto:
    """`Reference` up to `dense` queries; beyond, what suits the platform that is traced for: `Splash` on a TPU,
    `Flash` on CPUs, else `chunked`."""

    dense: int = 1024
    chunked: Chunked = Chunked()

    def __call__(
        self, q, k, v, query: Places | None, key: Places | None, pattern: Pattern, scale: float, softcap: float | None
    ):
        kernel = Reference() if q.shape[2] <= self.dense else self._long(query is key, pattern)
        return kernel(q, k, v, query, key, pattern, scale, softcap)

    def _long(self, alike: bool, pattern: Pattern) -> Kernel:
        """The kernel for many queries; `alike`: they stand at the keys' places."""
        if target() == "tpu" and alike and not pattern.hidden:
            from mmjax.ops.attention_tpu import Splash  # Pallas takes 0.3 s to import, which others need not wait for

            return Splash()
        return Flash() if target() == "cpu" else self.chunked


def attend(
    q: Float[Array, "B H Q K"],
    k: Float[Array, "B G S K"],
    v: Float[Array, "B G S K"],
    query: Places | None = None,
    key: Places | None = None,
    *,
    pattern: Pattern = Pattern(),
    softcap: float | None = None,
    kernel: Kernel = Auto(),
) -> Float[Array, "B H Q K"]:
    """Attention from query places to key places (Vaswani et al. 2017, equation 1).

    Without places everything is visible. `key` defaults to `query` (self-attention). Logits are q k / sqrt(K).
    `softcap` c bends each logit to c tanh(logit / c) (Gemma 2, arXiv 2408.00118, section 2).
    A query that may see no key returns zeros. G < H is grouped-query attention (arXiv 2305.13245)."""
    return kernel(q, k, v, query, query if key is None else key, pattern, q.shape[-1] ** -0.5, softcap)
