"""What a user writes who wants answers about pictures: a source of questions, and an experiment with a decoder.

mmjax train colour_chat.py --run runs/colour_chat
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from data_pipelines.chat import ChatFeature
from data_pipelines.features import ImageFeature
from data_pipelines.pipeline import Pipeline
from data_pipelines.templates import prefix_answer
from data_pipelines.tokenizers import Bytes
from mmjax.encoders.image import PatchStem, ViT
from mmjax.evals.answering import Answering
from mmjax.evals.answers import ExactMatch
from mmjax.evals.generation import Field
from mmjax.evals.writing import Writer
from mmjax.fusion.connectors import Project
from mmjax.fusion.early import Interleave
from mmjax.heads.language import Language
from mmjax.models.decoder import Decoder, Sense
from mmjax.nn.embeddings import TokenEmbedding
from mmjax.nn.norms import Identity
from mmjax.nn.stack import Stack
from mmjax.objectives.language import Language as PredictNext
from mmjax.training.checkpoints import Checkpoints
from mmjax.training.experiment import Experiment, every, weighted
from mmjax.training.optim import adamw

SHADES = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255, 255, 255)}


@dataclasses.dataclass(frozen=True)
class Shades:
    """Plain squares, each twice, and what colour they are."""

    def __len__(self) -> int:
        return 2 * len(SHADES)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        name, shade = list(SHADES.items())[index % len(SHADES)]
        return {"image": np.full((4, 4, 3), shade, np.uint8), "question": "colour?", "answer": name}

    def fingerprint(self) -> Mapping[str, str]:
        return {"shades": ", ".join(SHADES)}

    def names(self) -> Mapping[str, tuple[str, ...]]:
        return {}


def experiment(width: int = 32, steps: int = 60) -> Experiment:
    """Small enough for a test, and really learning."""
    words = Bytes()
    read = ChatFeature(words, prefix_answer(), 24, {"image": 1}, media=(ImageFeature("image", 4, 4),))
    judged = Pipeline(Shades(), (read,), 8, epochs=1)
    model = Decoder.of(
        "mu",
        words.size,
        embedding=TokenEmbedding(words.size, width),
        media={"image": Sense(ViT(PatchStem(4, width), Stack(Identity(), 0)), Project(width))},
        fusion=Interleave(),
        head=Language(words.size),
    )
    return Experiment(
        model=model,
        data=Pipeline(Shades(), (read,), 8, shuffle=0),
        objectives={"language": weighted(1.0, PredictNext())},
        optimizer=adamw(1e-2),
        steps=steps,
        evals={
            "answers": every(0, Answering(judged, Writer(read, steps=8), Field("answer"), (ExactMatch(),))),
        },
        checkpoints=Checkpoints(every=100),
        log_every=20,
    )
