"""Flamingo 3B (arXiv 2204.14198) on your own image-text pairs.

    mmjax describe experiments/flamingo_3b.py data=PAIRS         parameters, FLOPs, memory; touches no device
    mmjax train experiments/flamingo_3b.py data=PAIRS

A Perceiver resampler makes 64 latents of each picture, and gated cross-attention before every block of a frozen 1.4B
decoder looks at those of the last picture before the word. The row keeps one place per picture, where a learned marker
stands. Only resampler, gated blocks and marker train.

Two things are others than the paper's: the encoder is a ViT So400m/14 at 322 pixels, 412 million parameters, for
NFNet-F6 at 320 with 435; and the decoder's positions are rotary where Chinchilla's are relative with maps of their
own. Pairs alone are learnt from; for pages of interleaved pictures and text, `data_pipelines.templates.document` is the
template.

PAIRS: whatever `mmjax data check PAIRS` accepts. Words are learnt from it, weights start at random: no released ones
are read.

Published: 3.2 billion parameters (the paper's table of sizes: 1.4 decoder, 1.2 gated blocks, 0.19 resampler, 0.44
encoder); here 3.0. Not run at full size: that takes a TPU v5p-64 or the like. Checked here: shapes, shardings and one
step at toy size.
"""

from __future__ import annotations

from experiments.recipes.writing import HALF, Material, captioner, described
from mmjax.core.errors import UserError
from mmjax.encoders.image import ViT
from mmjax.fusion.cross import CrossFusion, GatedCross, LastItem, Scoped
from mmjax.fusion.early import StandIn
from mmjax.fusion.resampler import PerceiverBlock, Resampler
from mmjax.models.decoder import Decoder, Sense
from mmjax.nn.activations import relu_squared
from mmjax.nn.attention import Attention
from mmjax.nn.block import Chain
from mmjax.nn.decoder_sizes import DecoderSize, decoder_size
from mmjax.nn.feedforward import FeedForward
from mmjax.nn.stack import Stack
from mmjax.training.experiment import Experiment
from mmjax.training.optim import adamw, frozen
from mmjax.training.schedules import Constant


def experiment(
    data: str = "my_pictures",
    schema: str | None = None,
    size: str = "chinchilla-1.4b",
    image: str = "So400m/14",
    resolution: int = 322,
    width: int = 1_536,
    latents: int = 64,
    every: int = 1,
    length: int = 64,
    vocabulary: int = 32_000,
    batch: int = 2_048,
    steps: int = 500_000,
    held: float = 0.01,
) -> Experiment:
    """size, image: of the decoder and of the encoder. width: of the resampler. every: blocks of the decoder between two
    looks. held: share kept back."""
    material = Material.of(data, schema, held, vocabulary)
    read = material.chat(described(), length, 1, resolution)
    model = Decoder.of(
        size,
        vocabulary,
        media={"image": Sense(ViT.of(image, resolution, dtypes=HALF), resampler(latents, width))},
        fusion=CrossFusion(StandIn()),
        stack=gated(decoder_size(size), every),
        head=material.head(),
        dtypes=HALF,
    )
    still = frozen(r"(embedding|norm|media_image/encoder|stack/block/blocks_(?!0/)\d+)/.*")
    optimizer = adamw(Constant(1e-4, warmup=min(5_000, max(1, steps // 10))), decay=0.1, groups=(still,))
    return captioner(material, model, read, batch, steps=steps, optimizer=optimizer)


def _attention(heads: int = 16) -> Attention:
    return Attention(heads, head_dim=128, bias=False)


def _feedforward(mlp: int) -> FeedForward:
    return FeedForward(mlp, relu_squared, bias=False)


def resampler(latents: int, width: int) -> Resampler:
    """Six layers of 16 heads."""
    return Resampler(latents, Stack(PerceiverBlock(_attention(), _feedforward(4 * width)), 6), width)


def gated(shape: DecoderSize, every: int) -> Stack:
    """The decoder's blocks with a look at the last picture before every `every`-th. Raises UserError when these do not
    come out even."""
    if every < 1 or shape.depth % every:
        raise UserError(f"flamingo: every={every} does not divide the {shape.depth} blocks of the decoder")
    look = GatedCross(Scoped(_attention(shape.heads), LastItem()), _feedforward(shape.mlp))
    return Stack(Chain((look, *(shape.block() for _ in range(every)))), shape.depth // every)
