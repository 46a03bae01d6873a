"""CoCa (arXiv 2205.01917) on your own image-text pairs.

    mmjax describe experiments/coca.py data=PAIRS                parameters, FLOPs, memory; touches no device
    mmjax train experiments/coca.py data=PAIRS
    mmjax train experiments/coca.py data=PAIRS size=base         389 million parameters

A picture encoder, and a decoder whose first half reads the text alone and whose second half looks at 256 vectors of the
picture: one pass for a contrastive and a captioning loss, in the paper's proportion of 1 to 2.

PAIRS: whatever `mmjax data check PAIRS` accepts. Words are learnt from it.

Published: 2.1 billion parameters (table 1); here 2.26 (the paper does not say enough to find the rest). Not run at full
size: the paper took 5 days on 2,048 TPU v4 chips. Checked here: shapes, shardings and one step at toy size.
"""

from __future__ import annotations

from data_pipelines.features import Causal, ImageFeature, TextFeature
from data_pipelines.sameness import SameFeature
from experiments.recipes.writing import SHARDED, Material
from mmjax.evals.retrieval import Retrieval
from mmjax.models.coca import CoCa
from mmjax.objectives.contrastive import InfoNCE
from mmjax.objectives.language import Language
from mmjax.training.checkpoints import Checkpoints
from mmjax.training.experiment import Experiment, every, weighted
from mmjax.training.optim import adamw
from mmjax.training.schedules import Linear


def experiment(
    data: str = "my_pictures",
    schema: str | None = None,
    size: str = "2b",
    resolution: int = 288,
    patch: int = 18,
    length: int = 64,
    vocabulary: int = 64_000,
    batch: int = 65_536,
    steps: int = 500_000,
    held: float = 0.01,
) -> Experiment:
    """size: of `mmjax.models.coca.COCAS`. held: share kept back for evaluation."""
    material = Material.of(data, schema, held, vocabulary)
    words = material.words
    text = TextFeature(words, length=length, reading=Causal(), begin=(words.begin,), end=(words.end,))
    features = (ImageFeature(height=resolution, width=resolution), text, SameFeature("image", "picture"))
    return Experiment(
        model=CoCa.of(size, vocabulary, length, resolution, patch),
        data=material.learning(features, batch),
        objectives={
            "contrastive": weighted(1.0, InfoNCE(alike=("picture",))),
            "captions": weighted(2.0, Language()),
        },
        optimizer=adamw(Linear(8e-4, warmup=max(1, steps // 50)), decay=0.01),
        layout=SHARDED,
        steps=steps,
        evals={"unseen": every(5_000, Retrieval(material.judging(features, batch), same="picture"))},
        checkpoints=Checkpoints(every=1_000, keep=3),
    )
