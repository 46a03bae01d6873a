"""SigLIP B/16 (arXiv 2303.15343) on your own image-text pairs.

    mmjax describe experiments/siglip_b16.py data=PAIRS          parameters, FLOPs, memory; touches no device
    mmjax train experiments/siglip_b16.py data=PAIRS layout.fsdp=8

PAIRS: whatever `mmjax data check PAIRS` accepts. Hardware: TPU v5e-64 or larger for the batch of 16,384; not measured
by us in hours or score. The paper reports 72.1 % zero-shot ImageNet for B/16 after 9 billion pairs of WebLI (table 1).
Checked here: shapes, shardings, FLOPs and one step at toy size.
"""

from __future__ import annotations

from data_pipelines.features import ImageFeature, TextFeature
from data_pipelines.pipeline import Pipeline
from data_pipelines.sameness import SameFeature
from data_pipelines.schema import Schema
from data_pipelines.sources import Part, open_source
from data_pipelines.tokenizers import SentencePiece
from mmjax.core.dtypes import Dtypes
from mmjax.core.layout import Layout
from mmjax.encoders.image import ViT
from mmjax.encoders.text import TextEncoder
from mmjax.evals.retrieval import Retrieval
from mmjax.heads.contrastive import Contrastive
from mmjax.models.towers import Tower, Towers
from mmjax.nn.pooling import AttentionPool, Last
from mmjax.nn.sizes import with_patch
from mmjax.objectives.contrastive import Sigmoid
from mmjax.training.checkpoints import Checkpoints
from mmjax.training.experiment import Experiment, every, weighted
from mmjax.training.optim import adamw
from mmjax.training.schedules import Cosine


def experiment(
    data: str = "my_pictures",
    schema: str | None = None,
    size: str = "B/16",
    resolution: int = 224,
    length: int = 64,
    vocabulary: int = 32_000,
    batch: int = 16_384,
    steps: int = 100_000,
    held: float = 0.01,
) -> Experiment:
    """size: of the image tower; the text tower has the same width and depth. held: share kept back for evaluation."""
    source = open_source(data, Schema.parse(schema) if schema else None)
    known, unseen = Part(source, held, 1), Part(source, 0, held)
    words = SentencePiece(known, vocabulary=vocabulary)
    text = TextFeature(words, length=length, end=(words.end,))
    features = (ImageFeature(height=resolution, width=resolution), text, SameFeature("image", "picture"))
    shape, half = with_patch(size)[0], Dtypes(compute="bfloat16")
    return Experiment(
        model=Towers(
            image=Tower(ViT.of(size, resolution, dtypes=half), AttentionPool(shape.heads, shape.mlp)),
            text=Tower(TextEncoder.of(size.split("/")[0], words.size, length, dtypes=half), Last()),
            head=Contrastive(shape.width, scale=10.0, bias=-10.0),
        ),
        data=Pipeline(known, features, batch, shuffle=0),
        objectives={"siglip": weighted(1.0, Sigmoid(alike=("picture",)))},
        optimizer=adamw(Cosine(1e-3, warmup=min(2_000, steps // 10)), b2=0.95, decay=1e-4),
        layout=Layout(data=-1),
        steps=steps,
        evals={
            "unseen": every(5_000, Retrieval(Pipeline(unseen, features, min(batch, 1_024), epochs=1), same="picture"))
        },
        checkpoints=Checkpoints(every=1_000, keep=3),
    )
