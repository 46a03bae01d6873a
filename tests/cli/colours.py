"""What a user writes outside of this repository: a data set, encoders and an objective of their own, and an experiment.

mmjax train colours.py width=16 --run runs/colours
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from mmjax.core.batch import FAULTS, Batch, Images, Text
from mmjax.core.means import Mean
from mmjax.core.parameters import declare
from mmjax.core.tokens import Places, Tokens
from mmjax.evals.retrieval import Retrieval
from mmjax.heads.contrastive import Contrastive
from mmjax.models.towers import Tower, Towers
from mmjax.training.checkpoints import Checkpoints
from mmjax.training.experiment import Experiment, every, weighted
from mmjax.training.optim import adamw

WORDS = ("red", "green", "blue", "yellow", "pink", "cyan", "white", "black")
SHADES = np.array(
    [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [255, 0, 255], [0, 255, 255], [255] * 3, [0] * 3], np.uint8
)


@dataclasses.dataclass(frozen=True)
class Colours:
    """Plain squares and their names; example i is colour i % 8."""

    batch: int = 8
    endless: bool = True
    side: int = 4
    features: tuple = ()

    def spec(self) -> Batch:
        return Batch.spec(self.batch, text=2, image=(1, self.side, self.side), labels={"colour": ((), np.int32)})

    def fingerprint(self) -> Mapping[str, str]:
        return {"colours": f"{len(WORDS)} of side {self.side}"}

    def names(self) -> Mapping[str, tuple[str, ...]]:
        return {"colour": WORDS}

    def example(self, index: int) -> Mapping[str, Any]:
        return {"image": self._pixels(np.array([index % 8]))[0], "text": WORDS[index % 8]}

    def batches(self, position: int = 0, process: int = 0, processes: int = 1) -> Iterator[Batch]:
        share = self.batch // processes
        while self.endless or position < len(WORDS):
            index = position + process * share + np.arange(share)
            yield self._rows(index % len(WORDS), real=(index < len(WORDS)) | self.endless)
            position += self.batch

    def texts(self, texts: list[str]) -> Batch:
        """What a search needs: words that are no colour read as the last one."""
        index = [WORDS.index(word) if word in WORDS else len(WORDS) - 1 for word in texts]
        return self._rows(np.array(index), np.ones(len(texts), bool)).replace(image=None)

    def _pixels(self, colour: np.ndarray) -> np.ndarray:
        return np.broadcast_to(SHADES[colour][:, None, None, None], (len(colour), 1, self.side, self.side, 3))

    def _rows(self, colour: np.ndarray, real: np.ndarray) -> Batch:
        rows, ones = len(colour), real[:, None].astype(np.int32)
        ids = np.stack([colour + 1, np.zeros_like(colour)], 1).astype(np.int32)
        zeros, segment = np.zeros((rows, 2), np.int32), ones * np.array([[1, 0]], np.int32)
        return Batch(
            text=Text(ids, zeros - 1, segment, zeros, zeros, zeros.astype(np.float32)),
            image=Images(self._pixels(colour).copy(), real[:, None], ones),
            labels={"colour": colour[:, None].astype(np.int32)},
            id=np.where(real, colour, -1).astype(np.int32)[:, None],
            fault=np.where(real, 0, FAULTS.index("padding")).astype(np.uint8)[:, None],
        )


class Eye(nn.Module):
    """One token per picture: its mean colour, through a matrix."""

    width: int

    @nn.compact
    def __call__(self, images: Images, *, train: bool = False) -> Tokens:
        x = images.pixels.astype(jnp.float32).mean((2, 3)) / 255
        kernel = declare(self, "kernel", nn.initializers.lecun_normal(), channel=3, width=self.width)
        places = Places.all_of("image", *x.shape[:2])
        return Tokens(x @ kernel, dataclasses.replace(places, valid=images.valid, segment=images.segment))


class Words(nn.Module):
    """One token per word: its vector."""

    width: int

    @nn.compact
    def __call__(self, text: Text, *, train: bool = False) -> Tokens:
        table = declare(self, "table", nn.initializers.normal(1.0), vocab=len(WORDS) + 1, width=self.width)
        places = Places.all_of("text", *text.ids.shape)
        return Tokens(table[text.ids], dataclasses.replace(places, valid=text.valid, segment=text.segment))


@dataclasses.dataclass(frozen=True)
class Together:
    """Pulls the picture and the word of a sample together, and different samples apart."""

    margin: float = 0.5

    def __call__(self, outputs: Mapping[str, Any], batch: Batch) -> dict[str, Mean]:
        image, text = (outputs["embeddings"][name] for name in ("image", "text"))
        cosine, own = image @ text.T, jnp.eye(len(image), dtype=bool)
        wrong = jnp.where(own, 1 - cosine, jnp.maximum(0, cosine - self.margin))
        return {"loss": Mean.of(wrong), "cosine": Mean.of(cosine, own)}


def experiment(width: int = 8, steps: int = 6, batch: int = 8, margin: float = 0.5, style: Literal["plain"] = "plain"):
    """Small enough for a test, and really learning."""
    return Experiment(
        model=Towers(image=Tower(Eye(width)), text=Tower(Words(width)), head=Contrastive(dim=4)),
        data=Colours(batch),
        objectives={"together": weighted(1.0, Together(margin))},
        optimizer=adamw(3e-2),
        steps=steps,
        evals={"retrieval": every(0, Retrieval(Colours(8, endless=False), same="colour", slices=("colour",)))},
        checkpoints=Checkpoints(every=4),
        log_every=2,
    )
