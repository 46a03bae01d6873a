"""UNITER base (arXiv 1909.11740) on your own image-text pairs.

    mmjax describe experiments/uniter.py data=PAIRS              parameters, FLOPs, memory; touches no device
    mmjax train experiments/uniter.py data=PAIRS

Features of regions and words in one transformer: it tells hidden words, hidden features, and whether picture and text
belong together. A region is one of 12 x 12 cells of a frozen ResNet-101 (as in arXiv 2001.03615) with a learned vector
for its place, where the paper has boxes of a detector; blocks have their norms before the branches; the classes of
regions and the transport between words and regions are left out.

PAIRS: whatever `mmjax data check PAIRS` accepts. Words are learnt from it, weights start at random, the frozen ones,
too: give the ResNet trained weights before you expect anything of it.

Published: 86 million parameters, which are those of the transformer without words and detector; here 86.7. Not run at
full size: that takes 16 V100 or the like. Checked here: shapes, shardings and one step at toy size.
"""

from __future__ import annotations

import dataclasses

from experiments.recipes.writing import HALF, Material
from experiments.vilt import MARKS, one_stream
from mmjax.encoders.cnn import ResNet
from mmjax.fusion.connectors import InTurn, Placed, Project
from mmjax.models.decoder import Sense
from mmjax.models.single_stream import HiddenRegions
from mmjax.nn.embeddings import LearnedPositions
from mmjax.nn.norms import LayerNorm
from mmjax.nn.sizes import size_of
from mmjax.objectives.masked import MaskedImage
from mmjax.training.experiment import Experiment
from mmjax.training.optim import frozen


def experiment(
    data: str = "my_pictures",
    schema: str | None = None,
    size: str = "B",
    image: str = "101",
    resolution: int = 384,
    length: int = 60,
    vocabulary: int = 28_996,
    batch: int = 4_096,
    steps: int = 200_000,
    hidden: float = 0.15,
) -> Experiment:
    """size, image: of the transformer and of the ResNet. hidden: share of a picture's regions that is told."""
    shape, cells = size_of(size), (resolution // 32) ** 2
    connector = InTurn((Project(shape.width, LayerNorm()), Placed(LearnedPositions(cells))))
    regions = Sense(ResNet.of(image, dtypes=HALF), connector)
    material = Material.of(data, schema, 0, vocabulary - len(MARKS))
    further = {"regions": (HiddenRegions(hidden), MaskedImage())}
    run = one_stream(material, regions, shape, resolution, length, batch, steps, further)
    return run.replace(optimizer=dataclasses.replace(run.optimizer, groups=(frozen("image/encoder/.*"),)))
