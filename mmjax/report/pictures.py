"""Examples of a data set as they stand on the page: a small picture inside the page, a caption, the labels' names."""

from __future__ import annotations

import base64
import dataclasses
import io
from collections.abc import Mapping
from typing import Any

from PIL import Image

from mmjax.core.errors import DataError
from mmjax.core.protocols import Data
from mmjax.evals.search import caption_of, picture_of

SIDE = 96  # pixels; shown at half of that, sharp on dense screens


@dataclasses.dataclass(frozen=True)
class Shown:
    """One example for human eyes; `uri` is "" where there is no picture."""

    uri: str
    caption: str
    labels: Mapping[str, str]

    @property
    def language(self) -> str:
        """For the `lang` attribute: scripts shared by languages (Han) are drawn as the language draws them."""
        return self.labels.get("language", "")


class Album:
    """Reads examples of one data set, each once. Raises DataError when the data is not what `fingerprint` says: other
    pictures would stand beside the numbers."""

    def __init__(self, data: Data | None, fingerprint: Mapping[str, str]):
        self.data = data
        self.known: dict[int, Shown] = {}
        now = fingerprint if data is None else data.fingerprint()
        changed = [name for name in {**fingerprint, **now} if fingerprint.get(name) != now.get(name)]
        if changed:
            raise DataError(f"it has changed since the numbers were taken ({', '.join(changed)})")

    def __call__(self, index: int) -> Shown:
        """Example `index`; a bare number where the data cannot be read."""
        if index not in self.known:
            self.known[index] = self._read(index)
        return self.known[index]

    def _read(self, index: int) -> Shown:
        if self.data is None:
            return Shown("", f"example {index}", {})
        example = self.data.example(index)
        caption = caption_of(example)
        labels = {name: value for name, value in example.items() if isinstance(value, str) and value != caption}
        picture = picture_of(example)
        return Shown("" if picture is None else data_uri(picture), caption, labels)


def data_uri(picture: Image.Image) -> str:
    """The picture itself as an address: WebP, at most `SIDE` pixels."""
    picture = picture.convert("RGB")
    if max(picture.size) > SIDE:
        picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    elif max(picture.size) < SIDE:
        scale = SIDE / max(picture.size)
        picture = picture.resize([round(side * scale) for side in picture.size], Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    picture.save(buffer, format="WEBP", quality=82, method=6)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def data_of(experiment: Any, name: str) -> Data | None:
    """The data whose examples the results of evaluator `name` speak of."""
    scheduled = getattr(experiment, "evals", {}).get(name)
    evaluator = getattr(scheduled, "evaluator", scheduled)
    return getattr(evaluator, "data", getattr(evaluator, "test", None))
