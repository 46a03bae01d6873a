"""CLIP L/14 (arXiv 2103.00020) on your own image-text pairs.

    mmjax describe experiments/clip_l14.py data=PAIRS            parameters, FLOPs, memory; touches no device
    mmjax train experiments/clip_l14.py data=PAIRS layout.fsdp=16

PAIRS: whatever `mmjax data check PAIRS` accepts. Hardware: TPU v5p-128 or 256 GPUs for the batch of 32,768; not
measured by us in hours or score. The paper reports 75.3 % zero-shot ImageNet for L/14 after 32 epochs of 400 million
pairs (table 11). Checked here: shapes, shardings, FLOPs and one step at toy size.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from data_pipelines.features import Causal, ImageFeature, TextFeature
from data_pipelines.pipeline import Pipeline
from data_pipelines.sameness import SameFeature
from data_pipelines.schema import Schema
from data_pipelines.sources import Part, open_source
from data_pipelines.tokenizers import SentencePiece
from mmjax.core.dtypes import Dtypes
from mmjax.core.layout import Layout
from mmjax.encoders.image import ClassToken, PatchStem, ViT
from mmjax.encoders.text import TextEncoder
from mmjax.evals.retrieval import Retrieval
from mmjax.heads.contrastive import Contrastive
from mmjax.models.towers import Tower, Towers
from mmjax.nn.activations import gelu_quick
from mmjax.nn.attention import Attention
from mmjax.nn.block import Block
from mmjax.nn.feedforward import FeedForward
from mmjax.nn.norms import LayerNorm
from mmjax.nn.pooling import First, Last
from mmjax.nn.sizes import Size, size_of, with_patch
from mmjax.nn.stack import Stack
from mmjax.objectives.contrastive import InfoNCE
from mmjax.ops.masks import causal
from mmjax.training.checkpoints import Checkpoints
from mmjax.training.experiment import Experiment, every, weighted
from mmjax.training.optim import adamw
from mmjax.training.schedules import Cosine


def experiment(
    data: str = "my_pictures",
    schema: str | None = None,
    size: str = "L/14",
    text_size: str = "clip-L",
    resolution: int = 224,
    vocabulary: int = 49_408,
    batch: int = 32_768,
    steps: int = 390_000,
    held: float = 0.01,
) -> Experiment:
    """size, text_size: of the towers (`mmjax.nn.sizes`). held: share kept back for evaluation."""
    source, length = open_source(data, Schema.parse(schema) if schema else None), 77
    known, unseen = Part(source, held, 1), Part(source, 0, held)
    words = SentencePiece(known, vocabulary=vocabulary)
    text = TextFeature(words, length=length, reading=Causal(), begin=(words.begin,), end=(words.end,))
    features = (ImageFeature(height=resolution, width=resolution), text, SameFeature("image", "picture"))
    half = Dtypes(compute="bfloat16")
    image = picture_encoder(size, resolution, dtypes=half)
    language = TextEncoder.of(
        text_size, words.size, length, stack=blocks(size_of(text_size)), order=causal, dtypes=half
    )
    return Experiment(
        model=Towers(
            image=Tower(image, First()), text=Tower(language, Last()), head=Contrastive(size_of(text_size).width)
        ),
        data=Pipeline(known, features, batch, shuffle=0),
        objectives={"clip": weighted(1.0, InfoNCE(alike=("picture",)))},
        optimizer=adamw(Cosine(4e-4, warmup=min(2_000, steps // 10)), b2=0.98, eps=1e-6, decay=0.2),
        layout=Layout(data=-1),
        steps=steps,
        evals={
            "unseen": every(5_000, Retrieval(Pipeline(unseen, features, min(batch, 1_024), epochs=1), same="picture"))
        },
        checkpoints=Checkpoints(every=1_000, keep=3),
    )


def picture_encoder(size: str, resolution: int, left_out: int = 0, **slots: Any) -> ViT:
    """CLIP's tower for pictures without its last `left_out` blocks; `slots` replace parts."""
    shape, patch = with_patch(size)
    parts = {
        "stem": PatchStem(patch, shape.width, bias=False),
        "class_token": ClassToken(),
        "before": LayerNorm(1e-5),
        "stack": blocks(dataclasses.replace(shape, depth=shape.depth - left_out)),
    }
    return ViT.of(size, resolution, **(parts | slots))


def blocks(shape: Size) -> Stack:
    """Blocks with the activation and the epsilon of the released weights."""
    return Stack(Block(Attention(shape.heads), FeedForward(shape.mlp, gelu_quick), LayerNorm(1e-5)), shape.depth)
