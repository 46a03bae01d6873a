"""Pictures for both sides."""

from __future__ import annotations

import numpy as np
import torch

from mmjax.core.batch import Images
from mmjax.encoders.image import ViT


def pictures(rows: int, side: int) -> Images:
    """Random ones, one for each row."""
    pixels = np.random.default_rng(0).integers(0, 256, (rows, 1, side, side, 3)).astype(np.uint8)
    return Images(pixels, np.ones((rows, 1), bool), np.ones((rows, 1), np.int32))


def seen(images: Images, encoder: ViT) -> torch.Tensor:
    """As the peer takes them: [N 3 H W], normalised as `encoder` does it."""
    x = (images.pixels[:, 0] / np.float32(255) - np.float32(encoder.mean)) / np.float32(encoder.std)
    return torch.from_numpy(x.transpose(0, 3, 1, 2).copy())
