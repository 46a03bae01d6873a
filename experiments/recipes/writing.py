"""What the full-size experiments share: a user's data in two parts with words learnt from it, and runs of decoders that
write about pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from data_pipelines.chat import ChatFeature
from data_pipelines.features import Causal, ImageFeature, Reading
from data_pipelines.images import Fit, Squash
from data_pipelines.pieces import Field, Mark, Rest, Words
from data_pipelines.pipeline import Pipeline
from data_pipelines.protocols import Feature, Source
from data_pipelines.schema import Schema
from data_pipelines.sources import Part, open_source
from data_pipelines.templates import Role, Template, Turn
from data_pipelines.tokenizers import SentencePiece
from mmjax.core.dtypes import Dtypes
from mmjax.core.layout import Layout
from mmjax.evals.captioning import Captioning
from mmjax.evals.writing import Writer
from mmjax.heads.language import Language
from mmjax.objectives.language import Language as PredictNext
from mmjax.training.checkpoints import Checkpoints
from mmjax.training.experiment import Every, Experiment, every, weighted
from mmjax.training.optim import Optimizer

HALF = Dtypes(compute="bfloat16")
SHARDED = Layout(data=1, fsdp=-1)
"""Parameters split over all devices: these models do not fit on one."""


@dataclasses.dataclass(frozen=True)
class Material:
    """Records of which a share is kept back, and sub-words from the texts of the others: at most `rows` of them, for
    which models have vectors (few texts give fewer words; the other vectors are padding)."""

    source: Source
    held: float
    words: SentencePiece
    rows: int

    @classmethod
    def of(cls, data: str, schema: str | None, held: float, rows: int, field: str = "caption") -> Material:
        """Of the records at `data`, a share `held` is kept back; `field` has the texts."""
        source = open_source(data, Schema.parse(schema) if schema else None)
        return cls(source, held, SentencePiece(Part(source, held, 1), field, rows), rows)

    def head(self) -> Language:
        """Scores of the words alone."""
        return Language(self.words.size, self.rows)

    def chat(self, template: Template, length: int, places: int, resolution: int, fit: Fit = Squash()) -> ChatFeature:
        """Rows of `length` in which a picture takes `places`."""
        picture = ImageFeature(height=resolution, width=resolution, fit=fit)
        return ChatFeature(self.words, template, length, {"image": places}, media=(picture,))

    def learning(self, features: tuple[Feature, ...], rows: int) -> Pipeline:
        """Endless batches to learn from."""
        return Pipeline(self.words.source, features, rows, shuffle=0)

    def judging(self, features: tuple[Feature, ...], rows: int) -> Pipeline:
        """One pass of what was kept back, in batches of 256 at most."""
        return Pipeline(Part(self.source, 0, self.held), features, min(rows, 256), epochs=1)


def described(prompt: str = "", reading: Reading = Causal()) -> Template:
    """All media, a begin mark and the prompt, which are given; the caption and its end are causal and learnt."""
    asked = (Words(prompt),) if prompt else ()
    learnt = Role(loss=1.0, closes=(Mark("end"),))
    return Template((Turn(Role(reading), (Rest("image"), Mark("begin"), *asked)), Turn(learnt, (Field("caption"),))))


def captioner(material: Material, model: nn.Module, read: ChatFeature, batch: int, **run: Any) -> Experiment:
    """A run of `model` that ends with its captions of what was kept back; `run` are fields of `Experiment`."""
    judged = Captioning(material.judging((read,), batch), Writer(read, steps=32))
    return writer(model, material.learning((read,), batch), {"unseen": every(5_000, judged)}, **run)


def writer(
    model: nn.Module, data: Pipeline, evals: Mapping[str, Every], *, steps: int, optimizer: Optimizer
) -> Experiment:
    """Predicts the ids that count, on as many devices as there are."""
    return Experiment(
        model=model,
        data=data,
        objectives={"language": weighted(1.0, PredictNext())},
        optimizer=optimizer,
        layout=SHARDED,
        steps=steps,
        evals=evals,
        checkpoints=Checkpoints(every=1_000, keep=3),
    )
