"""Text to tokens.  B rows   T text slots   D width   V vocabulary"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.core.batch import MODALITIES, Text
from mmjax.core.dtypes import Dtypes
from mmjax.core.parameters import slot
from mmjax.core.tokens import Places, Tokens
from mmjax.nn.attention import Attention
from mmjax.nn.block import Block
from mmjax.nn.embeddings import LearnedPositions, TokenEmbedding
from mmjax.nn.feedforward import FeedForward
from mmjax.nn.norms import LayerNorm
from mmjax.nn.sizes import size_of
from mmjax.nn.stack import Stack
from mmjax.ops.masks import Order, bidirectional


class TextEncoder(nn.Module):
    """A transformer over the text of a row; places where media tokens land are not text and are invalid here.

    Slots: `embedding`, `positions`, `stack`, `norm`; `order` says who sees whom (`ops.masks`: bidirectional, causal, or
    as the collator laid it out). Packed samples do not see each other. In training each token is hidden with
    probability `hide` (Iyyer et al. 2015, section 4), but never the first of a sample.
    """

    embedding: nn.Module
    stack: nn.Module
    positions: nn.Module
    norm: nn.Module = slot(LayerNorm)
    order: Order = bidirectional
    hide: float = 0.0
    dtypes: Dtypes = Dtypes()

    @classmethod
    def of(cls, size: str, vocab: int, length: int = 64, **slots: object) -> TextEncoder:
        """A published shape, `"B"` (see `mmjax.nn.sizes`), for rows of up to `length` tokens; `slots` replace parts."""
        shape = size_of(size)
        parts = {
            "embedding": TokenEmbedding(vocab, shape.width),
            "stack": Stack(Block(Attention(shape.heads), FeedForward(shape.mlp)), shape.depth),
            "positions": LearnedPositions(length),
        }
        return cls(**(parts | slots))

    @nn.compact
    def __call__(self, text: Text, *, train: bool = False) -> Tokens:
        kind = jnp.full_like(text.ids, MODALITIES.index("text"))
        valid = (text.segment > 0) & (text.slot < 0)
        if train and self.hide:
            kept = jax.random.bernoulli(self.make_rng("dropout"), 1 - self.hide, valid.shape)
            valid &= kept | (text.position == 0)
        places = self.order(Places(valid, text.block, text.segment, text.position, kind))
        x = self.dtypes.enter(self.embedding(text.ids))
        x = self.norm(self.stack(self.positions(x, text.position), places, train=train))
        return Tokens(x, places)
