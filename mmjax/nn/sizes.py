"""Published transformer shapes as one table.

mu .. 10B are those of ViT (arXiv 2010.11929), scaling ViT (arXiv 2106.04560), SigLIP's shape-optimised So400m (arXiv
2305.13035) and ViT-22B's smaller sisters; `clip-*` are the text towers of CLIP (arXiv 2103.00020, table 20).
"""

from __future__ import annotations

import dataclasses

from mmjax.core.errors import UserError, look_up


@dataclasses.dataclass(frozen=True)
class Size:
    """Shape of a stack of blocks."""

    width: int
    depth: int
    mlp: int
    heads: int


SIZES = {
    "mu": Size(32, 1, 128, 2),
    "Ti": Size(192, 12, 768, 3),
    "S": Size(384, 12, 1536, 6),
    "M": Size(512, 12, 2048, 8),
    "B": Size(768, 12, 3072, 12),
    "L": Size(1024, 24, 4096, 16),
    "So400m": Size(1152, 27, 4304, 16),
    "H": Size(1280, 32, 5120, 16),
    "g": Size(1408, 40, 6144, 16),
    "G": Size(1664, 48, 8192, 16),
    "clip-B": Size(512, 12, 2048, 8),
    "clip-L": Size(768, 12, 3072, 12),
    "clip-H": Size(1024, 24, 4096, 16),
}


def size_of(name: str) -> Size:
    """The shape called `name`. Raises UserError with the nearest names."""
    return look_up("size", name, SIZES)


def with_patch(name: str) -> tuple[Size, int]:
    """`"B/16"` -> (shape B, patches of 16 pixels)."""
    size, slash, patch = name.partition("/")
    if not slash or not patch.isdigit():
        raise UserError(f"an image encoder size is SIZE/PATCH, such as B/16; got {name!r}")
    return size_of(size), int(patch)
