"""LLaVA-1.5-7B (arXiv 2310.03744) on your own conversations about pictures.

    mmjax describe experiments/llava_7b.py data=CHATS            parameters, FLOPs, memory; touches no device
    mmjax train experiments/llava_7b.py data=CHATS

CLIP L/14 at 336 pixels without its last block (the penultimate layer), its 576 cells through a two-layer MLP into the
row of a Llama 2 7B; conversations in Vicuna's words, of which the assistant's are learnt. As in the paper's second
stage, all but the encoder trains. The first one, the MLP alone, is

    ... lr=1e-3 still="(embedding|stack|norm|head|media_image/encoder)/.*"

CHATS: JSON lines, {"image": "dogs/1.jpg", "conversations": [{"from": "human", "value": "<image> what is it?"}, {"from":
"gpt", "value": "a dog"}]}; `mmjax data check CHATS` says whether it is read. Words are learnt from it, weights start at
random: no released ones are read.

Released: 7,063,427,072 parameters (llava-hf/llava-1.5-7b-hf), among them the encoder's last block and norm, which
answer nothing; here 7,050,827,776. Not run at full size: the paper used 8 A100 of 80 GB. Checked here: shapes,
shardings and one step at toy size.
"""

from __future__ import annotations

from data_pipelines.images import Pad
from data_pipelines.templates import vicuna
from experiments.clip_l14 import picture_encoder
from experiments.recipes.writing import HALF, Material, writer
from mmjax.evals.perplexity import Perplexity
from mmjax.fusion.connectors import MLP, InTurn, SkipFirst
from mmjax.fusion.early import Interleave
from mmjax.models.decoder import Decoder, Sense
from mmjax.nn.decoder_sizes import decoder_size
from mmjax.nn.norms import Identity
from mmjax.nn.sizes import with_patch
from mmjax.training.experiment import Experiment, every
from mmjax.training.optim import adamw, frozen
from mmjax.training.schedules import Cosine


def experiment(
    data: str = "my_chats.jsonl",
    schema: str | None = None,
    size: str = "llama2-7b",
    image: str = "L/14",
    resolution: int = 336,
    length: int = 2_048,
    vocabulary: int = 32_064,
    batch: int = 128,
    steps: int = 5_200,
    lr: float = 2e-5,
    held: float = 0.01,
    still: str = "media_image/encoder/.*",
) -> Experiment:
    """size, image: of the decoder and of the encoder. held: share kept back. still: parameters that do not train."""
    material = Material.of(data, schema, held, vocabulary, field="conversations")
    cells = (resolution // with_patch(image)[1]) ** 2
    read = material.chat(vicuna(), length, cells, resolution, Pad(124))  # grey as the mean of CLIP's pictures
    eyes = picture_encoder(image, resolution, left_out=1, norm=Identity(), dtypes=HALF)
    model = Decoder.of(
        size,
        vocabulary,
        media={"image": Sense(eyes, InTurn((SkipFirst(), MLP(decoder_size(size).width))))},
        fusion=Interleave(),
        head=material.head(),
        dtypes=HALF,
    )
    unseen = Perplexity(material.judging((read,), batch))
    optimizer = adamw(Cosine(lr, warmup=max(1, 3 * steps // 100)), groups=(frozen(still),))
    data = material.learning((read,), batch)
    return writer(model, data, {"unseen": every(1_000, unseen)}, steps=steps, optimizer=optimizer)
