"""One chat model in four stages, each a run that starts from parts of earlier ones.

    mmjax train experiments/emoji_stages.py stage=text     --run runs/stages/text        a decoder reads WordNet
    mmjax train experiments/emoji_stages.py stage=image    --run runs/stages/image       towers learn to see
    mmjax train experiments/emoji_stages.py stage=align    --run runs/stages/align       a projector joins the two
    mmjax train experiments/emoji_stages.py stage=instruct --run runs/stages/instruct    all of it answers questions

As in LLaVA (arXiv 2304.08485, section 4.2): align trains the projector alone, on names of pictures; instruct trains
everything. The first three were run for some dozens of steps, the last for seven: they fit together; what they are
worth is not known.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

from data_pipelines.chat import ChatFeature
from data_pipelines.corpus import Corpus
from data_pipelines.emoji.questions import EmojiQuestions
from data_pipelines.features import ImageFeature, labels
from data_pipelines.mixture import Mixture
from data_pipelines.packed import Packed
from data_pipelines.pipeline import Pipeline
from data_pipelines.sources.wordnet import Glosses
from data_pipelines.templates import document, prefix_answer
from data_pipelines.tokenizers import SentencePiece
from experiments import emoji_towers
from experiments.emoji_towers import image_encoder
from mmjax.core.errors import look_up
from mmjax.evals.answering import Answering
from mmjax.evals.answers import ExactMatch
from mmjax.evals.generation import Field
from mmjax.evals.judging import Grouping
from mmjax.evals.perplexity import Perplexity
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
from mmjax.training.experiment import Experiment, every, weighted
from mmjax.training.optim import Group, adamw, frozen, muon
from mmjax.training.rules import Adam
from mmjax.training.schedules import Cosine
from mmjax.training.stages import Averaged, From, FromRuns

ASKED = {"name": 0.35, "tone": 0.25, "gender": 0.15, "group": 0.1, "is": 0.15}
"""Kinds of questions of the last stage, and their shares of a batch."""
ENGLISH = ("en",)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What the stages share. width, depth: of the decoder; resolution: pixels; runs: where their folders lie."""

    width: int
    depth: int
    resolution: int
    batch: int
    runs: str

    @property
    def words(self) -> SentencePiece:
        """Sub-words of questions, names and glosses: one vocabulary for all stages."""
        texts = Corpus(((EmojiQuestions("train"), "question"), (Glosses(), "text")), each=20_000)
        return SentencePiece(texts, vocabulary=6_000)

    def decoder(self, **slots: Any) -> Decoder:
        """The decoder, without media unless `slots` bring them."""
        attention = Attention(self.width // 48, bias=False, gain=0.0, rotary=Rotary())
        block = Block(attention, GatedFeedForward(8 * self.width // 3, gain=0.0), RMSNorm())
        size = self.words.size
        embedding = TokenEmbedding(size, self.width)
        return Decoder(embedding, Stack(block, self.depth, KeepAll()), Language(size), **slots)

    def seeing(self) -> Decoder:
        """The decoder with the towers' image encoder and a projector."""
        return self.decoder(
            media={"image": Sense(image_encoder(self.resolution), Project(self.width))}, fusion=Interleave()
        )

    def folder(self, stage: str) -> str:
        """The run folder of a stage."""
        return f"{self.runs}/{stage}"

    @property
    def read(self) -> ChatFeature:
        """A picture, a question and its answer."""
        picture = ImageFeature("image", self.resolution, self.resolution)
        return ChatFeature(self.words, prefix_answer(), length=56, per_item={"image": 16}, media=(picture,))

    def questions(self, split: str, kinds: Sequence[str], **order: Any) -> Pipeline:
        """Questions in English about the pictures of a split."""
        known = labels("kind", "concept", "style", "tone", "gender")
        source = EmojiQuestions(split, self.resolution, tuple(kinds), ENGLISH)
        return Pipeline(source, (self.read, *known), self.batch, **order)


def experiment(
    stage: Literal["text", "image", "align", "instruct"] = "text",
    steps: int = 600,
    width: int = 192,
    depth: int = 3,
    resolution: int = 48,
    batch: int = 96,
    runs: str = "runs/stages",
) -> Experiment:
    """width, depth: of the decoder; resolution: pixels; batch: rows per step; runs: where the stages' folders lie."""
    made = look_up("stage", stage, {"text": text, "image": image, "align": align, "instruct": instruct})
    return made(Plan(width, depth, resolution, batch, runs), steps)


def text(plan: Plan, steps: int) -> Experiment:
    """The decoder learns English from WordNet's glosses, several in a row."""
    read = ChatFeature(plan.words, document("text"), length=128)
    glosses = Packed(Pipeline(Glosses(), (read,), plan.batch, shuffle=0), max(plan.batch // 4, 1), length=256)
    return Experiment(
        model=plan.decoder(),
        data=glosses,
        objectives={"language": weighted(1.0, PredictNext())},
        optimizer=muon(
            Cosine(4e-3, warmup=max(1, steps // 30)), decay=0.05, groups=(Group("embedding/.*", rule=Adam(b2=0.98)),)
        ),
        steps=steps,
        evals={"glosses": every(0, Perplexity(Pipeline(Glosses("held_out"), (read,), 128, epochs=1), absent=None))},
    )


def image(plan: Plan, steps: int) -> Experiment:
    """The image encoder learns which names belong to which pictures: the demo, shorter."""
    return emoji_towers.experiment(resolution=plan.resolution, batch=plan.batch, steps=steps).replace(evals={})


def align(plan: Plan, steps: int) -> Experiment:
    """The projector alone learns to say pictures in words that the decoder knows; decoder and encoder are frozen."""
    seen = FromRuns(
        (
            From(plan.folder("text"), {"(embedding|stack|norm)/(.*)": r"\1/\2"}),
            From(
                plan.folder("image"),
                {r"image/(?:encoder/)?((?:stem|positions|stack|norm)/.*)": r"media_image/encoder/\1"},
                weights=Averaged(),
            ),
        ),
        fresh=("media_image/connector/.*",),
    )
    names = plan.questions("unseen_compositions", ("name",), epochs=1)
    return Experiment(
        model=plan.seeing(),
        data=plan.questions("train", ("name",), shuffle=0),
        objectives={"language": weighted(1.0, PredictNext())},
        optimizer=adamw(
            Cosine(3e-3, warmup=max(1, steps // 60)), groups=(frozen("(embedding|stack|norm|media_image/encoder)/.*"),)
        ),
        init=seen,
        steps=steps,
        evals={"names": every(0, Perplexity(names, Grouping(cluster="concept")))},
    )


def instruct(plan: Plan, steps: int) -> Experiment:
    """Everything learns to answer questions; nothing starts fresh."""
    asked = tuple(plan.questions("train", (kind,), shuffle=0) for kind in ASKED)
    held = plan.questions("unseen_compositions", ("tone", "gender"), epochs=1)
    grouping = Grouping(cluster="concept", slices=("kind", "style", "tone", "gender"))
    return Experiment(
        model=plan.seeing(),
        data=Mixture(asked, tuple(ASKED.values())),
        objectives={"language": weighted(1.0, PredictNext())},
        optimizer=muon(
            Cosine(2e-3, warmup=max(1, steps // 30)), decay=0.05, groups=(Group("embedding/.*", rule=Adam(b2=0.98)),)
        ),
        augment=Jitter(shift=0.08, zoom=(0.85, 1.1), stretch=0.08, brightness=0.02, contrast=0.04),
        init=FromRuns((From(plan.folder("align"), {"(.*)": r"\1"}),), fresh=()),
        steps=steps,
        evals={
            "attributes": every(
                0, Answering(held, Writer(plan.read, steps=12), Field("answer"), (ExactMatch(),), grouping)
            )
        },
    )
