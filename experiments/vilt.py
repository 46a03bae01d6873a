"""ViLT-B/32 (arXiv 2102.03334) on your own image-text pairs.

    mmjax describe experiments/vilt.py data=PAIRS                parameters, FLOPs, memory; touches no device
    mmjax train experiments/vilt.py data=PAIRS

Patches of 32 pixels, mapped linearly, and words in one transformer: it tells hidden words, and whether picture and
text belong together. Pictures are squares of 384 pixels, where the paper keeps their proportions; sub-words are hidden
one by one, where the paper hides whole words; its alignment of words with patches is left out.

PAIRS: whatever `mmjax data check PAIRS` accepts. Words are learnt from it, weights start at random (the paper starts
from ViT-B/32).

Published: 87.4 million parameters, without those of the words' embedding; here 87.4. Not run at full size: the paper
used 64 V100. Checked here: shapes, shardings and one step at toy size.
"""

from __future__ import annotations

from collections.abc import Mapping

import flax.linen as nn

from data_pipelines.features import ImageFeature, TextFeature
from data_pipelines.sameness import SameFeature
from data_pipelines.tokenizers import Marked
from experiments.recipes.writing import HALF, Material
from mmjax.core.layout import Layout
from mmjax.core.protocols import Objective
from mmjax.encoders.image import ClassToken, PatchStem, ViT
from mmjax.fusion.connectors import AsIs
from mmjax.heads.masked import MaskedLanguage, Masking, MaskText
from mmjax.models.decoder import Sense
from mmjax.models.single_stream import Belonging, HiddenWords, SingleStream
from mmjax.nn.attention import Attention
from mmjax.nn.block import Block
from mmjax.nn.embeddings import LearnedGrid, LearnedPositions, TokenEmbedding
from mmjax.nn.feedforward import FeedForward
from mmjax.nn.norms import Identity
from mmjax.nn.sizes import Size, with_patch
from mmjax.nn.stack import Stack
from mmjax.objectives.masked import MaskedLanguage as TellWords
from mmjax.objectives.matching import Matching
from mmjax.training.checkpoints import Checkpoints
from mmjax.training.experiment import Experiment, weighted
from mmjax.training.optim import adamw
from mmjax.training.schedules import Linear


def experiment(
    data: str = "my_pictures",
    schema: str | None = None,
    size: str = "B/32",
    resolution: int = 384,
    length: int = 40,
    vocabulary: int = 30_522,
    batch: int = 4_096,
    steps: int = 200_000,
) -> Experiment:
    """size: of the transformer and of its patches."""
    shape, patch = with_patch(size)
    patches = ViT(
        PatchStem(patch, shape.width),
        Stack(Identity(), 0),
        LearnedGrid((resolution // patch,) * 2),
        class_token=ClassToken(),
        norm=Identity(),
        dtypes=HALF,
    )
    material = Material.of(data, schema, 0, vocabulary - len(MARKS))
    return one_stream(material, Sense(patches, AsIs()), shape, resolution, length, batch, steps)


MARKS = ("<mask>",)
"""What the words need beside those of the texts."""


def one_stream(
    material: Material,
    image: Sense,
    shape: Size,
    resolution: int,
    length: int,
    batch: int,
    steps: int,
    further: Mapping[str, tuple[nn.Module, Objective]] = {},
) -> Experiment:
    """Words and `image` in one stack of `shape`, on the two tasks above and those of `further`: (task, objective)."""
    words = Marked(material.words, MARKS)
    ends = {"begin": (words.begin,), "end": (words.end,)}
    masking = Masking(words.mark("<mask>"), material.words.size, special=ends["begin"] + ends["end"])
    rows = material.rows + len(MARKS)
    tasks = {
        "words": (HiddenWords(MaskText(masking), MaskedLanguage(words.size, masking.most(length))), TellWords()),
        "belonging": (Belonging(alike=("picture",)), Matching()),
        **further,
    }
    text = TextFeature(words, length=length, **ends)
    features = (ImageFeature(height=resolution, width=resolution), text, SameFeature("image", "picture"))
    return Experiment(
        model=SingleStream(
            embedding=TokenEmbedding(rows, shape.width),
            image=image,
            stack=Stack(Block(Attention(shape.heads), FeedForward(shape.mlp)), shape.depth),
            tasks=tuple(task for task, _ in tasks.values()),
            positions=LearnedPositions(length),
            dtypes=HALF,
        ),
        data=material.learning(features, batch),
        objectives={name: weighted(1.0, objective) for name, (_, objective) in tasks.items()},
        optimizer=adamw(Linear(1e-4, warmup=max(1, steps // 10)), b2=0.98, decay=0.01),
        layout=Layout(data=-1),
        steps=steps,
        checkpoints=Checkpoints(every=1_000, keep=3),
    )
