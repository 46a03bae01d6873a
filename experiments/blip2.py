"""BLIP-2 (arXiv 2301.12597), its second stage with OPT 2.7B, on your own image-text pairs.

    mmjax describe experiments/blip2.py data=PAIRS               parameters, FLOPs, memory; touches no device
    mmjax train experiments/blip2.py data=PAIRS

32 queries of a Q-Former read a frozen ViT-g/14, and a linear map hands them to a frozen OPT 2.7B as the beginning of
its row. Only Q-Former and map train.

The stage before, in which the Q-Former learns with a text encoder inside of it, is no part of this experiment. Blocks
have their norms before the branches where the paper's Q-Former, a BERT, has them behind; and the encoder's tokens are
mapped to the Q-Former's width once, not in each of its layers.

PAIRS: whatever `mmjax data check PAIRS` accepts. Words are learnt from it, weights start at random: no released ones
are read.

Published: 3.8 billion parameters, 107 million of which train (the paper's table of zero-shot results), 3,744,679,936
released (Salesforce/blip2-opt-2.7b); here 3.74 billion and 102 million. Not run at full size: the paper used 16 A100 of
40 GB. Checked here: shapes, shardings and one step at toy size.
"""

from __future__ import annotations

import dataclasses

from experiments.recipes.writing import HALF, Material, captioner, described
from mmjax.encoders.image import ClassToken, ViT
from mmjax.fusion.connectors import InTurn, Project
from mmjax.fusion.early import Interleave
from mmjax.fusion.resampler import Resampler
from mmjax.models.decoder import Decoder, Sense
from mmjax.nn.attention import Attention
from mmjax.nn.block import Block
from mmjax.nn.decoder_sizes import decoder_size
from mmjax.nn.feedforward import FeedForward
from mmjax.nn.sizes import Size, size_of, with_patch
from mmjax.nn.stack import Stack
from mmjax.training.experiment import Experiment
from mmjax.training.optim import adamw, frozen
from mmjax.training.schedules import Cosine


def experiment(
    data: str = "my_pictures",
    schema: str | None = None,
    size: str = "opt-2.7b",
    image: str = "g/14",
    qformer: str = "B",
    resolution: int = 224,
    queries: int = 32,
    length: int = 96,
    vocabulary: int = 50_272,
    batch: int = 1_920,
    steps: int = 80_000,
    held: float = 0.01,
    prompt: str = "a photo of",
) -> Experiment:
    """size, image, qformer: of the decoder, the encoder, the Q-Former. held: share kept back. prompt: how every caption
    begins."""
    material, shape = Material.of(data, schema, held, vocabulary), size_of(qformer)
    reader = Resampler.qformer(queries, shape.depth, shape.heads, every=min(2, shape.depth), width=shape.width)
    model = Decoder.of(
        size,
        vocabulary,
        media={"image": Sense(encoder(image, resolution), InTurn((reader, Project(decoder_size(size).width))))},
        fusion=Interleave(),
        head=material.head(),
        dtypes=HALF,
    )
    read = material.chat(described(prompt), length, queries, resolution)
    still = frozen("(embedding|positions|stack|norm|media_image/encoder)/.*")
    schedule = Cosine(1e-4, warmup=min(2_000, max(1, steps // 10)), end=5e-5)
    optimizer = adamw(schedule, b2=0.98, decay=0.05, groups=(still,))
    return captioner(material, model, read, batch, steps=steps, optimizer=optimizer)


def encoder(size: str, resolution: int) -> ViT:
    """A ViT with a class token, without its last block, which BLIP-2 does not use."""
    shape = with_patch(size)[0]
    stack = _stack(dataclasses.replace(shape, depth=shape.depth - 1))
    return ViT.of(size, resolution, class_token=ClassToken(), stack=stack, dtypes=HALF)


def _stack(shape: Size) -> Stack:
    return Stack(Block(Attention(shape.heads), FeedForward(shape.mlp)), shape.depth)
