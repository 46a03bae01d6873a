"""Boxes that a model writes as text, and how well they fit.

Q examples; a box is (left, top, right, bottom) as fractions of the picture
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from mmjax.core.errors import DataError
from mmjax.evals.tallies import Tally, check_pairs, mean_of

Array = np.ndarray
Box = tuple[float, float, float, float]
_NUMBER = re.compile(r"\d+(?:\.\d+)?|\.\d+")
_LOCATION = re.compile(r"<loc(\d+)>")


@dataclasses.dataclass(frozen=True)
class Numbers:
    """`[0.12, 0.3, 0.5, 0.71]`: the first four numbers, left top right bottom, each divided by `scale` (1000 for models
    that write thousandths)."""

    scale: float = 1.0

    def __call__(self, text: str) -> Box | None:
        found = [float(x) / self.scale for x in _NUMBER.findall(text)[:4]]
        return tuple(found) if len(found) == 4 else None


@dataclasses.dataclass(frozen=True)
class Locations:
    """`<loc0123><loc0045>...`: tokens for top left bottom right in `bins` steps (PaliGemma, arXiv 2407.07726)."""

    bins: int = 1024

    def __call__(self, text: str) -> Box | None:
        found = [int(x) / self.bins for x in _LOCATION.findall(text)[:4]]
        return (found[1], found[0], found[3], found[2]) if len(found) == 4 else None


@dataclasses.dataclass(frozen=True)
class BoxFit:
    """Mean intersection over union, and how often it is at least each of `at` (0.5 for RefCOCO). A text without a box
    counts as no overlap; `readable` says how many had one."""

    read: Callable[[str], Box | None] = Numbers()
    at: tuple[float, ...] = (0.5,)

    def __call__(self, said: Sequence[str], truths: Sequence[Sequence[Sequence[float]]]) -> dict[str, Tally]:
        """`accuracy_{at}`, `iou`, `readable`; of several true boxes the best counts."""
        check_pairs(said, truths)
        found = [self.read(text) for text in said]
        pairs = zip(found, truths, strict=True)
        fit = np.array([0.0 if box is None else iou(np.array([box]), _true(given)).max() for box, given in pairs])
        scores = {f"accuracy_{at:g}": mean_of(fit >= at) for at in self.at}
        return scores | {"iou": mean_of(fit), "readable": mean_of(np.array([box is not None for box in found]))}


def iou(a: Float[Array, "N 4"], b: Float[Array, "N 4"]) -> Float[Array, " N"]:
    """Intersection over union of boxes, row by row; 0 for a box that is inside out."""
    corner, far = np.maximum(a[:, :2], b[:, :2]), np.minimum(a[:, 2:], b[:, 2:])
    shared = np.clip(far - corner, 0, None).prod(1)
    area = [np.clip(box[:, 2:] - box[:, :2], 0, None).prod(1) for box in (a, b)]
    union = area[0] + area[1] - shared
    return np.divide(shared, union, out=np.zeros(np.shape(shared)), where=union > 0)


def _true(boxes: Sequence[Sequence[float]]) -> Float[Array, "N 4"]:
    boxes = np.asarray(boxes, np.float64)
    if boxes.ndim != 2 or boxes.shape[1] != 4 or (boxes[:, 2:] < boxes[:, :2]).any():
        raise DataError(f"a true box is (left, top, right, bottom) with right >= left; the data says {boxes.tolist()}")
    return boxes
