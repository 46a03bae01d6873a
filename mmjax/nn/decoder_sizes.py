"""Published decoders as one table: numbers, and the parts in which they differ.

GPT-2 (Radford et al. 2019), Llama 2 (arXiv 2307.09288), Llama 3 (arXiv 2407.21783), Gemma (arXiv 2403.08295), Gemma 2
(arXiv 2408.00118), Qwen2 (arXiv 2407.10671), Qwen2-VL (arXiv 2409.12191), Qwen3 (arXiv 2505.09388), OPT (arXiv
2205.01068), SmolLM (arXiv 2502.02737), Chinchilla's 1.4B as in Flamingo (arXiv 2204.14198; rotary for its relative
positions).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import flax.linen as nn

from mmjax.core.errors import look_up
from mmjax.core.tokens import Pattern
from mmjax.nn.activations import gelu, relu
from mmjax.nn.attention import Attention
from mmjax.nn.block import Block, Chain
from mmjax.nn.embeddings import LearnedPositions, NoPositions, ScaledEmbedding, TokenEmbedding
from mmjax.nn.feedforward import FeedForward, GatedFeedForward
from mmjax.nn.norms import CentredRMSNorm, Identity, LayerNorm, RMSNorm
from mmjax.nn.stack import Stack
from mmjax.ops.rotary import MultimodalRotary, Rotary

Part = Callable[..., nn.Module]
"""Makes a new part: a module in two places would be one set of weights."""


@dataclasses.dataclass(frozen=True)
class DecoderSize:
    """Shape and parts of a decoder. windows: of its layers in turn (None: sees all); `depth` is a multiple of their
    number. softcap and logit_softcap bound the logits of attention and of the vocabulary. tied: the table of the
    embedding judges, too."""

    width: int
    depth: int
    mlp: int
    heads: int
    kv_heads: int | None = None
    head_dim: int | None = None
    norm: Part = RMSNorm
    post_norm: Part = Identity
    qk_norm: Part = Identity
    feedforward: Part = GatedFeedForward
    embedding: Part = TokenEmbedding
    positions: Part = NoPositions
    rotary: Rotary | MultimodalRotary | None = Rotary()
    windows: tuple[int | None, ...] = (None,)
    bias: bool = False
    out_bias: bool = False
    softcap: float | None = None
    logit_softcap: float | None = None
    tied: bool = True

    def block(self, window: int | None = None) -> Block:
        """A block whose attention sees `window` tokens back."""
        attention = Attention(
            self.heads,
            self.kv_heads,
            self.head_dim,
            bias=self.bias,
            out_bias=self.out_bias,
            qk_norm=self.qk_norm(),
            rotary=self.rotary,
            pattern=Pattern(window),
            softcap=self.softcap,
        )
        return Block(attention, self.feedforward(self.mlp), self.norm(), post_norm=self.post_norm())

    def stack(self) -> Stack:
        """All layers: a stack of blocks, or of chains of blocks with different windows."""
        if len(self.windows) == 1:
            return Stack(self.block(*self.windows), self.depth)
        return Stack(Chain(tuple(map(self.block, self.windows))), self.depth // len(self.windows))


def _part(part: Part, *given: object, **named: object) -> Part:
    return functools.partial(part, *given, **named)


_gpt2 = functools.partial(
    DecoderSize,
    norm=_part(LayerNorm, 1e-5),
    feedforward=FeedForward,
    positions=_part(LearnedPositions, 1024),
    rotary=None,
    bias=True,
    out_bias=True,
)
_opt = functools.partial(
    _gpt2,
    feedforward=_part(FeedForward, activation=relu),
    positions=_part(LearnedPositions, 2050),  # the released table has two more than it uses
)
_llama = functools.partial(DecoderSize, norm=_part(RMSNorm, 1e-5), tied=False)
_gemma = functools.partial(
    DecoderSize,
    head_dim=256,
    norm=CentredRMSNorm,
    feedforward=_part(GatedFeedForward, activation=gelu),
    embedding=ScaledEmbedding,
)
_gemma2 = functools.partial(_gemma, post_norm=CentredRMSNorm, windows=(4096, None), softcap=50.0, logit_softcap=30.0)
_qwen2 = functools.partial(DecoderSize, rotary=Rotary(1e6), bias=True)
_qwen2_vl = functools.partial(_qwen2, rotary=MultimodalRotary((16, 24, 24), base=1e6))
_qwen3 = functools.partial(DecoderSize, head_dim=128, rotary=Rotary(1e6), qk_norm=RMSNorm)

DECODER_SIZES = {
    "mu": DecoderSize(32, 2, 64, 4, 2),
    "Ti": DecoderSize(192, 12, 512, 3),
    "S": DecoderSize(384, 12, 1024, 6),
    "gpt2": _gpt2(768, 12, 3072, 12),
    "gpt2-medium": _gpt2(1024, 24, 4096, 16),
    "gpt2-large": _gpt2(1280, 36, 5120, 20),
    "gpt2-xl": _gpt2(1600, 48, 6400, 25),
    "opt-125m": _opt(768, 12, 3072, 12),
    "opt-2.7b": _opt(2560, 32, 10240, 32),
    "opt-6.7b": _opt(4096, 32, 16384, 32),
    "chinchilla-1.4b": DecoderSize(2048, 24, 8192, 16, feedforward=_part(FeedForward, bias=False)),
    "llama2-7b": _llama(4096, 32, 11008, 32),
    "llama2-13b": _llama(5120, 40, 13824, 40),
    "llama3-8b": _llama(4096, 32, 14336, 32, 8, rotary=Rotary(5e5)),
    "smollm-135m": _llama(576, 30, 1536, 9, 3, tied=True),
    "gemma-2b": _gemma(2048, 18, 16384, 8, 1),
    "gemma-7b": _gemma(3072, 28, 24576, 16, 16),
    "gemma2-2b": _gemma2(2304, 26, 9216, 8, 4),
    "gemma2-9b": _gemma2(3584, 42, 14336, 16, 8),
    "qwen2-0.5b": _qwen2(896, 24, 4864, 14, 2),
    "qwen2-1.5b": _qwen2(1536, 28, 8960, 12, 2),
    "qwen2-7b": _qwen2(3584, 28, 18944, 28, 4, tied=False),
    "qwen2-vl-2b": _qwen2_vl(1536, 28, 8960, 12, 2),
    "qwen2-vl-7b": _qwen2_vl(3584, 28, 18944, 28, 4, tied=False),
    "qwen3-0.6b": _qwen3(1024, 28, 3072, 16, 8),
}


def decoder_size(name: str) -> DecoderSize:
    """The decoder called `name`. Raises UserError with the nearest names."""
    return look_up("decoder", name, DECODER_SIZES)
