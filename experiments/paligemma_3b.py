"""PaliGemma 3B (arXiv 2407.07726) on your own image-text pairs.

    mmjax describe experiments/paligemma_3b.py data=PAIRS        parameters, FLOPs, memory; touches no device
    mmjax train experiments/paligemma_3b.py data=PAIRS

SigLIP So400m/14 at 224 pixels, its 256 tokens through a linear map before the text of a Gemma 2B. Prefix-LM: picture
and prompt see each other, the caption is causal and alone is learnt. Everything trains.

PAIRS: whatever `mmjax data check PAIRS` accepts. Words are learnt from it, weights start at random: no released ones
are read. For questions with answers see the template of experiments/emoji_chat.py.

Released: 2,923,466,480 parameters (google/paligemma-3b-pt-224); here as many. Not run at full size: the paper trained
on 256 TPU v5e. Checked here: shapes, shardings and one step at toy size.
"""

from __future__ import annotations

from data_pipelines.features import Bidirectional
from experiments.recipes.writing import HALF, Material, captioner, described
from mmjax.encoders.image import ViT
from mmjax.fusion.connectors import Project
from mmjax.fusion.early import Interleave
from mmjax.models.decoder import Decoder, Sense
from mmjax.nn.decoder_sizes import decoder_size
from mmjax.nn.sizes import with_patch
from mmjax.training.experiment import Experiment
from mmjax.training.optim import adamw
from mmjax.training.schedules import Cosine


def experiment(
    data: str = "my_pictures",
    schema: str | None = None,
    size: str = "gemma-2b",
    image: str = "So400m/14",
    resolution: int = 224,
    length: int = 384,
    vocabulary: int = 257_216,
    batch: int = 2_048,
    steps: int = 50_000,
    held: float = 0.01,
    prompt: str = "caption en\n",
) -> Experiment:
    """size, image: of the decoder and of the encoder. held: share kept back. prompt: what is asked of every picture."""
    material = Material.of(data, schema, held, vocabulary)
    cells = (resolution // with_patch(image)[1]) ** 2
    model = Decoder.of(
        size,
        vocabulary,
        media={"image": Sense(ViT.of(image, resolution, dtypes=HALF), Project(decoder_size(size).width))},
        fusion=Interleave(),
        head=material.head(),
        dtypes=HALF,
    )
    read = material.chat(described(prompt, Bidirectional()), length, cells, resolution)
    optimizer = adamw(Cosine(1e-5, warmup=max(1, steps // 20)), b2=0.95, decay=1e-6)
    return captioner(material, model, read, batch, steps=steps, optimizer=optimizer)
