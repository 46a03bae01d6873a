"""Talks about pictures of different lengths, for what lays several of them into rows and batches."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np

from data_pipelines.chat import ChatFeature
from data_pipelines.features import ImageFeature, LabelFeature
from data_pipelines.pipeline import Pipeline
from data_pipelines.several import Several
from data_pipelines.templates import prefix_answer
from data_pipelines.tokenizers import Bytes

LONGEST = 26


@dataclasses.dataclass(frozen=True)
class Talks:
    """Record i: i % 3 pictures of level i, a question and an answer whose lengths vary; `torn` pictures are damaged."""

    size: int = 40
    torn: tuple[int, ...] = ()
    grown: int = 0

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        held = b"torn" if index in self.torn else np.full((2, 2, 3), index % 256, np.uint8)
        question, answer = chr(97 + index % 26) * (index % 5 + 1), "x" * (index * 7 % 11 + self.grown)
        return {"image": (held,) * (index % 3), "question": question, "answer": answer, "number": index}

    def fingerprint(self):
        return {"talks": f"{self.size} {self.torn}"}

    def names(self):
        return {}

    def locate(self, index):
        return f"talk {index}"


def talks(source=None, **changes):
    chat = ChatFeature(Bytes(), prefix_answer(), LONGEST, {"image": 3}, (Several(ImageFeature(height=2, width=2), 2),))
    settings = {"shuffle": 3, "epochs": 1, "threads": 1} | changes
    return Pipeline(source or Talks(), (chat, LabelFeature("number")), 1, **settings)


def same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))
