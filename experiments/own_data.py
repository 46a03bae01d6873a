"""Your own pictures and captions. Copy this page and change it.

    mmjax data check FOLDER                                    will it train? what is wrong with which record?
    mmjax data show experiments/own_data.py data=FOLDER        what the model will see
    mmjax train experiments/own_data.py data=FOLDER            train and evaluate; the same line again goes on
    mmjax search runs/own_data "a red fruit"                   find pictures by words

FOLDER: pictures with `captions.csv` (columns file_name, text), with a `.txt` beside each, or in one sub-folder per
class; or a .jsonl, .parquet, .tar or .array_record file. Columns that have other names are told with
schema="image:image=PICTURE,caption:text=TITLE".

CPU only: 697 pictures, 60 steps of 128 pairs took 115 s of processor time (start, compilation and evaluation included)
on a busy 2-core machine; 1,000 steps were not timed, and by that figure cost about half an hour of processor time. What
score to expect depends on the data: the evaluation gives the chance level beside each number.
"""

from __future__ import annotations

from data_pipelines.features import ImageFeature, TextFeature
from data_pipelines.pipeline import Pipeline
from data_pipelines.sameness import SameFeature
from data_pipelines.schema import Schema
from data_pipelines.sources import Captioned, Part, open_source
from data_pipelines.tokenizers import SentencePiece
from mmjax.encoders.image import ConvStem, ViT
from mmjax.encoders.text import TextEncoder
from mmjax.evals.retrieval import Retrieval
from mmjax.heads.contrastive import Contrastive
from mmjax.models.towers import Tower, Towers
from mmjax.nn.attention import Attention
from mmjax.nn.block import Block
from mmjax.nn.embeddings import LearnedPositions, TokenEmbedding
from mmjax.nn.feedforward import FeedForward
from mmjax.nn.stack import Stack
from mmjax.objectives.contrastive import InfoNCE
from mmjax.ops.augment import Jitter
from mmjax.training.experiment import Experiment, every, weighted
from mmjax.training.optim import adamw
from mmjax.training.schedules import Cosine

LENGTH = 32
"""Tokens of a caption; what is longer is cut."""

COPIES = ("picture", "caption")
"""Labels by which copies are known; a copy is not a negative of its twin."""


def experiment(
    data: str = "my_pictures",
    schema: str | None = None,
    held: float = 0.1,
    pixels: int = 64,
    width: int = 192,
    batch: int = 128,
    steps: int = 1_000,
) -> Experiment:
    """held: share of the pictures that is kept back to evaluate on. pixels: side that pictures are brought to."""
    source = open_source(data, Schema.parse(schema) if schema else None)
    if "caption" not in {field.name for field in source.declared.fields}:
        source = Captioned(source, template="{}")  # classes: their names are the captions
    known, unseen = Part(source, held, 1), Part(source, 0, held)
    words = SentencePiece(known, vocabulary=8_000)

    features = (
        ImageFeature("image", pixels, pixels),
        TextFeature(words, "caption", length=LENGTH),
        SameFeature("image", "picture"),
        SameFeature("caption", "caption"),
    )
    stem = ConvStem(((width // 4, 3, 2), (width // 2, 3, 2), (width, 3, 2)), patch=2)  # cells of 16 pixels
    image = ViT(stem=stem, stack=_stack(width, depth=2))
    text = TextEncoder(TokenEmbedding(words.size, width), _stack(width, depth=1), LearnedPositions(LENGTH))

    return Experiment(
        model=Towers(image=Tower(image), text=Tower(text), head=Contrastive(dim=width)),
        data=Pipeline(known, features, batch, shuffle=0),
        objectives={"clip": weighted(1.0, InfoNCE(alike=COPIES))},
        optimizer=adamw(Cosine(peak=1e-3, warmup=steps // 20), decay=0.05),
        augment=Jitter(),
        steps=steps,
        evals={
            "unseen": every(0, Retrieval(Pipeline(unseen, features, batch, epochs=1), same="picture", alike="caption"))
        },
    )


def _stack(width: int, depth: int) -> Stack:
    return Stack(Block(Attention(heads=width // 48), FeedForward(4 * width)), depth)
