"""Rows of text, and what a decoder says of them."""

import numpy as np

from mmjax.core.batch import Batch, Text


def rows_of(prompts, prefix=2, length=None):
    """Prompts (ids each) as a batch of right-padded rows: the first `prefix` places see each other, then causal."""
    length = length or max(map(len, prompts))
    ids, segment, block, position = (np.zeros((len(prompts), length), np.int32) for _ in range(4))
    for row, prompt in enumerate(prompts):
        size = len(prompt)
        ids[row, :size], segment[row, :size], position[row, :size] = prompt, 1, np.arange(size)
        block[row, :size] = np.maximum(np.arange(size) - prefix + 1, 0)
    loss = (position >= prefix).astype(np.float32)
    text = Text(ids, np.full_like(ids, -1), segment, block, position, loss)
    number = np.arange(len(prompts))[:, None]
    return Batch(text=text, id=number, fault=(segment.max(1, keepdims=True) == 0).astype(np.uint8))


def scores_of(model, params, batch):
    """[B T V] what a decoder, or a model that has one, says after each place: in one pass, without any cache."""
    scope = model.bind({"params": params})
    decoder, fused = getattr(scope, "decoder", scope), scope.fuse(batch)
    return decoder.logits(decoder.through(fused.row, fused.memory))
