"""Answers questions about pictures in 14 languages, and names them: an image encoder whose tokens stand in a decoder's
row.

    mmjax train experiments/emoji_chat.py            train and evaluate

Learns from OpenMoji and Noto pictures, and is judged on compositions of role, gender and skin tone that it has never
seen, beside the same model without the picture. Too short a training to trust: after 400 steps (about 6 minutes on 2
cores) it answered .32 of the questions for tone and gender, .26 without the picture; longer ones were not measured.
"""

from __future__ import annotations

from typing import Any

from data_pipelines.chat import ChatFeature
from data_pipelines.emoji.questions import EmojiQuestions
from data_pipelines.features import ImageFeature, labels
from data_pipelines.mixture import Mixture
from data_pipelines.pipeline import Pipeline
from data_pipelines.templates import prefix_answer
from data_pipelines.tokenizers import SentencePiece
from experiments.emoji_towers import image_encoder
from mmjax.evals.answering import Answering
from mmjax.evals.answers import ExactMatch
from mmjax.evals.captioning import Captioning
from mmjax.evals.generation import Field
from mmjax.evals.judging import Grouping
from mmjax.evals.writing import Writer
from mmjax.fusion.connectors import Project
from mmjax.fusion.early import Interleave
from mmjax.heads.language import Language
from mmjax.models.decoder import Decoder, Sense
from mmjax.nn.attention import Attention
from mmjax.nn.block import Block
from mmjax.nn.embeddings import TokenEmbedding
from mmjax.nn.feedforward import GatedFeedForward
from mmjax.nn.norms import RMSNorm
from mmjax.nn.stack import KeepAll, Stack
from mmjax.objectives.language import Language as PredictNext
from mmjax.ops.augment import Jitter
from mmjax.ops.rotary import Rotary
from mmjax.training.average import Ema
from mmjax.training.checkpoints import Checkpoints
from mmjax.training.experiment import Experiment, every, weighted
from mmjax.training.optim import Group, muon
from mmjax.training.rules import Adam
from mmjax.training.schedules import Cosine

ASKED = {"name": 0.35, "tone": 0.25, "gender": 0.15, "group": 0.1, "is": 0.15}
"""Kinds of questions and their shares of a batch."""
JUDGED = ("en", "es", "zh", "ar")
"""Languages of the evaluations: four scripts and reading directions are enough to see."""


def experiment(width: int = 192, depth: int = 3, resolution: int = 48, batch: int = 96, steps: int = 600) -> Experiment:
    """width, depth: of the decoder; resolution: pixels; batch: questions per step."""
    train = EmojiQuestions("train", resolution)
    words = SentencePiece(train, field="question", vocabulary=4_000)
    picture = ImageFeature("image", resolution, resolution)
    read = ChatFeature(words, prefix_answer(), length=56, per_item={"image": 16}, media=(picture,))
    known = labels("kind", "language", "picture", "style", "tone", "gender", "concept")

    def asked(split: str, rows: int = batch, **choice: Any) -> Pipeline:
        order = {"shuffle": 0} if split == "train" else {"epochs": 1}
        return Pipeline(EmojiQuestions(split, resolution, **choice), (read, *known), rows, **order)

    def held(*kinds: str) -> Pipeline:
        return asked("unseen_compositions", 256, kinds=kinds, languages=JUDGED)

    writer = Writer(read, steps=20)
    grouping = Grouping(cluster="concept", macro="language", slices=("kind", "language", "style", "tone", "gender"))
    truth = Field("answer")
    return Experiment(
        model=Decoder(
            embedding=TokenEmbedding(words.size, width),
            media={"image": Sense(image_encoder(resolution), Project(width))},
            fusion=Interleave(),
            stack=Stack(_block(width), depth, KeepAll()),
            head=Language(words.size),
        ),
        data=Mixture(tuple(asked("train", kinds=(kind,)) for kind in ASKED), tuple(ASKED.values())),
        objectives={"language": weighted(1.0, PredictNext())},
        optimizer=muon(Cosine(4e-3, warmup=40), decay=0.05, groups=(Group("embedding/.*", rule=Adam(b2=0.98)),)),
        augment=Jitter(shift=0.08, zoom=(0.85, 1.1), stretch=0.08, brightness=0.02, contrast=0.04),
        average=Ema(0.99),
        steps=steps,
        evals={
            "attributes": every(0, Answering(held("tone", "gender"), writer, truth, (ExactMatch(),), grouping)),
            "names": every(0, Captioning(held("name"), writer, truth, grouping=grouping)),
        },
        checkpoints=Checkpoints(every=500, keep=2),
    )


def _block(width: int) -> Block:
    attention = Attention(width // 48, bias=False, gain=0.0, rotary=Rotary())
    return Block(attention, GatedFeedForward(8 * width // 3, gain=0.0), RMSNorm())
