"""What both sides are given: shapes, pictures and rows, all of them small."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from mmjax.core.batch import Batch, Images
from mmjax.encoders.image import ViT
from mmjax.nn.decoder_sizes import DECODER_SIZES, DecoderSize
from mmjax.nn.sizes import Size
from tests.rows import rows_of

VOCAB, SIDE, PATCH = 61, 32, 8
LAST = VOCAB - 1  # an id that random rows do not have
SIZE = Size(48, 2, 80, 4)
SHAPE = {
    "hidden_size": SIZE.width,
    "intermediate_size": SIZE.mlp,
    "num_hidden_layers": SIZE.depth,
    "num_attention_heads": SIZE.heads,
    "attn_implementation": "eager",
}
EYES = SHAPE | {"image_size": SIDE, "patch_size": PATCH}


def shrunk(row: str, **changes: Any) -> DecoderSize:
    """A row of the table of decoders made as small as `SIZE`, its key-value heads in proportion."""
    shape = DECODER_SIZES[row]
    groups, size = shape.kv_heads and max(1, shape.kv_heads * SIZE.heads // shape.heads), shape.head_dim and 16
    return dataclasses.replace(shape, **dataclasses.asdict(SIZE), kv_heads=groups, head_dim=size, **changes)


def heads_of(shape: DecoderSize) -> dict[str, int]:
    """Number of key-value heads, and width of a head, as the peers want to be told."""
    return {
        "num_key_value_heads": shape.kv_heads or shape.heads,
        "head_dim": shape.head_dim or shape.width // shape.heads,
    }


def rows(lengths: Sequence[int], *, prefix: int = 1, end: Sequence[int] = ()) -> Batch:
    """Rows of random ids, padded on the right, that end with `end`; see `rows_of` for the prefix (1: causal)."""
    rng = np.random.default_rng(0)
    return rows_of([[*rng.integers(1, LAST, length - len(end)), *end] for length in lengths], prefix)


def told(batch: Batch) -> dict[str, torch.Tensor]:
    """The row as the peers take it: where a token of a picture lands stands `LAST`."""
    ids = np.where(batch.text.slot >= 0, LAST, batch.text.ids)
    return {"input_ids": torch.from_numpy(ids).long(), "attention_mask": torch.from_numpy(batch.text.valid).long()}


def pictures(count: int) -> Images:
    """Random ones, one for each row."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, 1, SIDE, SIDE, 3)).astype(np.uint8)
    return Images(pixels, np.ones((count, 1), bool), np.ones((count, 1), np.int32))


def seen(images: Images, encoder: ViT) -> torch.Tensor:
    """As the peer takes them: [N 3 H W], normalised as `encoder` does it."""
    x = (images.pixels[:, 0] / np.float32(255) - np.float32(encoder.mean)) / np.float32(encoder.std)
    return torch.from_numpy(x.transpose(0, 3, 1, 2).copy())
