"""Pictures and their names in 14 languages in one space: the demo.

    make demo          (or: mmjax train experiments/emoji_towers.py)

Trains on OpenMoji and Noto pictures and judges three kinds of things it has never seen: concepts, compositions of role,
gender and skin tone whose parts it knows, and the style of a third artist (Twemoji).
"""

from __future__ import annotations

from collections.abc import Sequence

from data_pipelines.emoji import EmojiPairs
from data_pipelines.features import ImageFeature, TextFeature, labels
from data_pipelines.pipeline import Pipeline
from data_pipelines.tokenizers import SentencePiece
from mmjax.encoders.image import ConvStem, ViT
from mmjax.encoders.text import TextEncoder
from mmjax.evals.retrieval import Retrieval
from mmjax.heads.contrastive import Contrastive
from mmjax.models.towers import Tower, Towers
from mmjax.nn.attention import Attention
from mmjax.nn.block import Block
from mmjax.nn.embeddings import LearnedGrid, NoPositions, TokenEmbedding
from mmjax.nn.feedforward import FeedForward
from mmjax.nn.pooling import WeightedMean
from mmjax.nn.stack import KeepAll, Stack
from mmjax.objectives.contrastive import InfoNCE
from mmjax.ops.augment import Jitter
from mmjax.training.average import Ema
from mmjax.training.checkpoints import Checkpoints
from mmjax.training.experiment import Experiment, every, weighted
from mmjax.training.optim import muon
from mmjax.training.schedules import Cosine

OF_PICTURE = ("picture", "style", "tone", "gender", "group", "subgroup", "concept")
OF_CAPTION = ("caption_id", "language")


def experiment(
    width: int = 256, resolution: int = 40, batch: int = 256, captions: int = 4, steps: int = 1_000
) -> Experiment:
    """width: of the shared space; resolution: pixels; batch: pictures per step, each with `captions` names."""
    train = EmojiPairs("train", resolution=resolution, captions=captions)
    words = SentencePiece(train, vocabulary=6_000)

    def data(source: EmojiPairs, rows: int, captions: int = 1, **order) -> Pipeline:
        text = TextFeature(words, length=16, samples=captions)
        image = ImageFeature(height=resolution, width=resolution)
        known = (*labels(*OF_PICTURE), *labels(*OF_CAPTION, samples=captions))
        return Pipeline(source, (image, text, *known), rows, **order)

    def retrieval(split: str, forms: str = "all") -> Retrieval:
        pairs = EmojiPairs(split, resolution=resolution, forms=forms)
        return Retrieval(
            data(pairs, 256, epochs=1), same="picture", alike="caption_id", within="style", macro="language",
            slices=("language", "style", "tone", "gender", "group"),
        )  # fmt: skip

    image = ViT(
        stem=ConvStem(((64, 4, 2), (64, 3, 1), (160, 3, 2)), patch=2),
        positions=LearnedGrid((resolution // 8, resolution // 8)),
        stack=Stack(Block(Attention(4), FeedForward(320)), depth=1, keep=KeepAll()),
    )
    text = TextEncoder(TokenEmbedding(words.size, width, 0.05), Stack(Block(Attention(4)), depth=0), NoPositions())
    return Experiment(
        model=Towers(
            image=Tower(image, WeightedMean(8)), text=Tower(text, WeightedMean()), head=Contrastive(width, scale=14.0)
        ),
        data=data(train, batch, captions, shuffle=0),
        objectives={"infonce": weighted(1.0, InfoNCE(same="picture", alike=("caption_id",)))},
        optimizer=muon(Cosine(4e-3, warmup=60), decay=0.05),
        augment=Jitter(shift=0.1, zoom=(0.8, 1.1), stretch=0.08, brightness=0.03, contrast=0.06),
        average=Ema(0.995),
        steps=steps,
        evals={
            "unseen_compositions": every(0, retrieval("unseen_compositions")),
            "unseen_concepts": every(0, retrieval("unseen_concepts", forms="base")),
            "unseen_style": every(0, retrieval("unseen_style", forms="base")),
        },
        checkpoints=Checkpoints(every=500, keep=2),
    )
