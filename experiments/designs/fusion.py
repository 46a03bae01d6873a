"""The ways to fuse picture and question that `experiments/fusion_study.py` compares, all as large as each other.

D width   M hidden width of feed-forwards

A design is a function of M alone; which M gives it the size of the others is computed from shapes. Blocks of rows and
streams start as nothing (gain 0), resamplers and gated cross-attention as their papers have them.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax

from mmjax.core.batch import Batch
from mmjax.core.parameters import unbox
from mmjax.core.pytrees import element_count
from mmjax.encoders.image import ConvStem, ViT
from mmjax.encoders.text import TextEncoder
from mmjax.fusion.connectors import MLP, GridPool, InTurn, PixelShuffle, Project
from mmjax.fusion.cross import CrossFusion, GatedCross
from mmjax.fusion.early import Concatenate, Interleave
from mmjax.fusion.experts import ByModality, ModalityAttention, ModalityBlock, NormByModality
from mmjax.fusion.gating import Gate, GatedTokens
from mmjax.fusion.grouped import GroupedFeedForward
from mmjax.fusion.late import Attended, GatedSum, Joined, LowRankBilinear, Sum
from mmjax.fusion.resampler import PerceiverBlock, Resampler
from mmjax.fusion.routed import Routed, WithLoad
from mmjax.fusion.streams import Apart, Bottleneck, BottleneckLayer, CoAttention, Guided, Streams
from mmjax.heads.classify import Classify
from mmjax.models.joint import Joint, RowReader, StreamReader
from mmjax.nn.attention import Attention
from mmjax.nn.block import Block, Chain
from mmjax.nn.embeddings import LearnedGrid, NoPositions, TokenEmbedding
from mmjax.nn.feedforward import FeedForward
from mmjax.nn.norms import Identity, PictureNorm
from mmjax.nn.pooling import WeightedMean
from mmjax.nn.stack import KeepAll, Stack
from mmjax.objectives.experts import EvenExperts
from mmjax.training.experiment import Weighted, weighted

WIDTH, HEADS, CELLS, QUERIES = 96, 4, 16, 8
"""D; heads of every attention; tokens of a picture; queries of resamplers."""

REFERENCE = ("single_stream", 448)
"""The design, and its M, whose number of parameters all others are given."""


def itself(model: nn.Module) -> nn.Module:
    """The model as it is."""
    return model


@dataclasses.dataclass(frozen=True)
class Design:
    """One way to fuse. paper: where it is from. reader: M -> the fused part (`mmjax.models.joint`). places: how many of
    the row a picture takes. whole, objectives: what a design asks for around the model and beside the common loss."""

    paper: str
    reader: Callable[[int], nn.Module]
    places: int = 0
    whole: Callable[[nn.Module], nn.Module] = itself
    objectives: Mapping[str, Weighted] = dataclasses.field(default_factory=dict)


# --------------------------------------------------------------------------------------------------------------- parts


def attention() -> Attention:
    """Of all blocks."""
    return Attention(HEADS, gain=0.0)


def block(mlp: int, cross: nn.Module | None = None) -> Block:
    """The block that designs share."""
    return Block(attention(), FeedForward(mlp, gain=0.0), cross=cross)


def stack(layer: nn.Module, depth: int = 2) -> Stack:
    """Layers in turn."""
    return Stack(layer, depth, KeepAll())


def row(fusion: nn.Module, layer: nn.Module, connector: nn.Module | None = None, **slots: nn.Module) -> RowReader:
    """Two layers over a row."""
    connectors = {} if connector is None else {"image": connector}
    return RowReader(fusion, stack(layer), connectors, pool=WeightedMean(HEADS), **slots)


def streams(fusion: nn.Module, join: nn.Module | None = None) -> StreamReader:
    """Two streams, added up in the end unless `join` says otherwise."""
    return StreamReader(join or Sum(WIDTH), fusion, WeightedMean(HEADS))


def late(join: nn.Module) -> Callable[[int], nn.Module]:
    """Two layers for each modality alone, then vectors are joined."""
    return lambda mlp: streams(Streams(stack(Apart(block(mlp)))), join)


def perceiver(mlp: int) -> RowReader:
    """One layer of a Perceiver between the picture and the row."""
    layer = PerceiverBlock(Attention(HEADS, bias=False), FeedForward(mlp, bias=False))
    return row(Interleave(), block(mlp), Resampler(QUERIES, stack(layer, 1)))


def qformer(mlp: int) -> RowReader:
    """One layer of a Q-Former between the picture and the row."""
    layer = Block(Attention(HEADS), FeedForward(mlp), cross=Attention(HEADS))
    return row(Interleave(), block(mlp), Resampler(QUERIES, stack(layer, 1)))


def flamingo(mlp: int) -> RowReader:
    """A gated look at the picture before each layer of the row."""
    gated = GatedCross(Attention(HEADS), FeedForward(mlp))
    return row(CrossFusion(), Chain((gated, block(mlp))))


def vilbert(mlp: int) -> StreamReader:
    """A co-attention layer, then each stream alone."""
    co = CoAttention(attention(), FeedForward(mlp, gain=0.0))
    return streams(Streams(stack(Chain((co, Apart(block(mlp)))), 1)))


def mcan(mlp: int) -> StreamReader:
    """The question is encoded, and the picture is read under its guidance."""
    return streams(Guided("text", stack(block(mlp), 1), stack(block(mlp, attention()), 1)))


def transformers(mlp: int) -> RowReader:
    """All weights of a layer twice: for words and for media."""
    parts = ModalityAttention(HEADS, gain=0.0), ByModality(GroupedFeedForward(mlp, gain=0.0)), NormByModality()
    return row(Concatenate(), ModalityBlock(*parts))


def routed(mlp: int) -> RowReader:
    """Four experts, of which each token meets two."""
    experts = Routed(4, 2, feedforward=GroupedFeedForward(mlp, gain=0.0))
    return row(Concatenate(), ModalityBlock(attention(), experts))


DESIGNS = {
    "linear": Design(
        "interleaved, linear map (LLaVA, arXiv 2304.08485)",
        lambda mlp: row(Interleave(), block(mlp), Project(WIDTH)), CELLS,
    ),
    "mlp": Design(
        "interleaved, two-layer map (LLaVA-1.5, arXiv 2310.03744)",
        lambda mlp: row(Interleave(), block(mlp), MLP(WIDTH)), CELLS,
    ),
    "pixel_shuffle": Design(
        "interleaved, four cells in one (InternVL 1.5, arXiv 2404.16821)",
        lambda mlp: row(Interleave(), block(mlp), InTurn((PixelShuffle(2), MLP(WIDTH)))), CELLS // 4,
    ),
    "pooling": Design(
        "interleaved, mean of four cells (Gemma 3, arXiv 2503.19786)",
        lambda mlp: row(Interleave(), block(mlp), InTurn((GridPool(2), Project(WIDTH)))), CELLS // 4,
    ),
    "perceiver": Design("Perceiver resampler (Flamingo, arXiv 2204.14198)", perceiver, QUERIES),
    "qformer": Design("Q-Former (BLIP-2, arXiv 2301.12597)", qformer, QUERIES),
    "single_stream": Design(
        "concatenated (ViLT, arXiv 2102.03334)", lambda mlp: row(Concatenate(), block(mlp))
    ),
    "gated_tokens": Design(
        "modalities weighed, then concatenated (arXiv 1701.03126)",
        lambda mlp: row(Concatenate(), block(mlp), streams=GatedTokens(Gate())),
    ),
    "transformers": Design("mixture of transformers (arXiv 2411.04996)", transformers),
    "routed": Design(
        "routed experts (LIMoE, arXiv 2206.02770)", routed,
        whole=WithLoad, objectives={"experts": weighted(1.0, EvenExperts())},
    ),
    "flamingo": Design("gated cross-attention (Flamingo, arXiv 2204.14198)", flamingo),
    "cross": Design(
        "cross-attention (Vaswani et al., arXiv 1706.03762)", lambda mlp: row(CrossFusion(), block(mlp, attention()))
    ),
    "co_attention": Design("two streams, co-attention (ViLBERT, arXiv 1908.02265)", vilbert),
    "guided": Design("two streams, guided attention (MCAN, arXiv 1906.10770)", mcan),
    "bottleneck": Design(
        "two streams, bottleneck tokens (MBT, arXiv 2107.00135)",
        lambda mlp: streams(Bottleneck(stack(BottleneckLayer(block(mlp))), latents=4)),
    ),
    "late_concat": Design("late, side by side", late(Joined(WIDTH))),
    "late_sum": Design("late, added up", late(Sum(WIDTH))),
    "late_gated": Design("late, gated sum (GMU, arXiv 1702.01992)", late(GatedSum(WIDTH))),
    "late_bilinear": Design("late, low-rank bilinear (MLB, arXiv 1610.04325)", late(LowRankBilinear(WIDTH, 128))),
    "late_attended": Design("late, attention over modalities (arXiv 1701.03126)", late(Attended(WIDTH, Gate()))),
}  # fmt: skip
"""Every design by its name, early ones first."""


# -------------------------------------------------------------------------------------------------------------- models


def image_encoder(resolution: int) -> ViT:
    """Convolutions alone, sixteen by sixteen cells to four by four: what mixes places is the fused part."""
    return ViT(
        ConvStem(((32, 3, 1), (64, 3, 2), (WIDTH, 3, 2)), patch=resolution // 16, norm=PictureNorm()),
        Stack(Identity(), 0),
        LearnedGrid((4, 4)),
        mean=(1.0, 1.0, 1.0),
        std=(0.3, 0.3, 0.3),
    )


def model(design: str, mlp: int, resolution: int, vocabulary: int, answers: int) -> nn.Module:
    """Encoders and head are those of all designs; words stand in no order, which the questions do not need."""
    words = TextEncoder(TokenEmbedding(vocabulary, WIDTH), Stack(Identity(), 0), NoPositions())
    encoders = {"text": words, "image": image_encoder(resolution)}
    return DESIGNS[design].whole(Joint(encoders, DESIGNS[design].reader(mlp), Classify(answers)))


@functools.cache
def fused_parameters(design: str, mlp: int) -> int:
    """Parameters of a design's fused part, from shapes."""
    places = DESIGNS[design].places
    batch = Batch.spec(1, text=(places + 2, {"image": places} if places else {}), image=(1, 16, 16))
    shapes = jax.eval_shape(model(design, mlp, 16, 4, 2).init, jax.random.key(0), batch)["params"]
    return element_count(fused_part(unbox(shapes)))


def fused_part(params: Mapping[str, Any]) -> Any:
    """The parameters of a study's model that are its design's own."""
    return params.get("model", params)["reader"]


def hidden(design: str) -> int:
    """The M that makes a design's fused part as large as that of the reference: parameters are affine in M."""
    few, more = fused_parameters(design, 16), fused_parameters(design, 32)
    return 16 + round(16 * (fused_parameters(*REFERENCE) - few) / (more - few))
