"""The whole training step against the same architecture in PyTorch.                    python -m benchmarks.train_step

Forward, loss, backward, clipping and AdamW, float32, on one fixed random batch: the towers of the demo, and ViT-B/16
with a text transformer of size B, both with InfoNCE; and a small model of pictures and text with a loss on its answers.
Both sides start from the same weights; gradients and the losses of the first three steps must agree before time counts.
The peers are eager and compiled PyTorch as one would write it for speed (train_step_torch.py, train_vlm_torch.py).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import train_vlm
from benchmarks.measure import Target, Timing, conclude, interleave, table, timing_options
from benchmarks.stepping import Case, agree, ours, plain
from experiments import emoji_towers
from mmjax.core.batch import Batch, Images, Text
from mmjax.core.config import leaves, override
from mmjax.encoders.image import ConvStem, ViT
from mmjax.encoders.text import TextEncoder
from mmjax.heads.contrastive import Contrastive
from mmjax.models.towers import Tower, Towers
from mmjax.nn.norms import PictureNorm
from mmjax.objectives.contrastive import InfoNCE
from mmjax.training.experiment import Experiment

FASTER = 1.3
OURS, PEER = "benchmarks/train_step.py", "benchmarks/train_step_torch.py"


def demo() -> Experiment:
    """The demo's towers and objective on its shapes, 256 pictures with four names each, without what is left to chance:
    the two sides must see the same numbers."""
    whole = emoji_towers.experiment()
    chances = [name for name, _ in leaves(whole.model) if name.rsplit(".", 1)[-1] in ("dropout", "hide")]
    model = override(whole.model, dict.fromkeys(chances, "0"))
    return plain(model, whole.objectives["infonce"].objective, whole.data.spec())


def vit() -> Experiment:
    """ViT-B/16 at 224 pixels, and 12 layers of width 768 over 64 tokens of a vocabulary of 32,000."""
    towers = Towers(image=Tower(ViT.of("B/16")), text=Tower(TextEncoder.of("B", 32_000)), head=Contrastive(768))
    return plain(towers, InfoNCE(), Batch.spec(8, text=64, image=(1, 224, 224)))


def random_batch(experiment: Experiment) -> Batch:
    """All pictures there, texts of random lengths, two rows of each picture where the labels know pictures."""
    spec, rng = experiment.data.spec(), np.random.default_rng(0)
    rows, texts = spec.fault.shape
    each = spec.text.ids.shape[1] // texts
    vocabulary = experiment.model.text.encoder.embedding.vocab
    place = np.broadcast_to(np.arange(each), (rows, texts, each))
    real = place < rng.integers(each // 4, each + 1, (rows, texts))[..., None]
    segment = real * np.arange(1, texts + 1)[:, None]
    shape = (rows, texts * each)
    ids = rng.integers(0, vocabulary, shape)
    flat = [np.asarray(x, np.int32).reshape(shape) for x in (ids, -1 + 0 * place, segment, 0 * place, place * real)]
    ones = np.ones((rows, 1), np.int32)
    pixels = rng.integers(0, 256, spec.image.pixels.shape).astype(np.uint8)
    codes = {name: rng.integers(0, 64 * rows, (rows, texts)).astype(np.int32) for name in spec.labels}
    codes |= {"picture": np.repeat(np.arange(rows)[:, None] // 2, texts, 1).astype(np.int32)} if spec.labels else {}
    lead = np.zeros((rows, texts))
    return Batch(
        text=Text(*flat, real.reshape(shape).astype(np.float32)),
        image=Images(pixels, ones > 0, ones),
        labels=codes,
        id=lead.astype(np.int32),
        fault=lead.astype(np.uint8),
    ).check()


def told(experiment: Experiment, batch: Batch) -> dict[str, Any]:
    """What the peer reads beside the weights."""
    encoder = experiment.model.image.encoder
    stem = encoder.stem
    strides = [stride for _, _, stride in stem.stages] if isinstance(stem, ConvStem) else []
    return {
        "pixels": batch.image.pixels[:, 0],
        "ids": batch.text.ids,
        "real": batch.text.valid,
        "picture": batch.labels.get("picture", 0),
        "caption": batch.labels.get("caption_id", 0),
        "texts": batch.fault.shape[1],
        "mean": encoder.mean[0],
        "std": encoder.std[0],
        "cell": stem.patch,
        "whole": isinstance(stem, ConvStem) and isinstance(stem.norm, PictureNorm),
        "strides": np.array(strides, int),
    }


MODELS = {
    "demo": Case(demo, random_batch, PEER, told),
    "vit_b16": Case(vit, random_batch, PEER, told),
    "vlm": train_vlm.CASE,
}


def compare(name: str, chosen: argparse.Namespace, threads: int) -> dict[str, Timing]:
    """All sides of one model in turns."""
    with tempfile.TemporaryDirectory() as folder:
        MODELS[name].write(Path(folder))
        mine = [sys.executable, OURS, "--ours", name, "--calls", str(chosen.calls)]
        peers = {form: [chosen.python, MODELS[name].peer, folder, form, str(chosen.calls)] for form in chosen.forms}
        timed = interleave({"ours": mine} | peers, chosen.rounds, threads)
    for form in chosen.forms:
        agree(timed["ours"], timed[form])
    return timed


def main(arguments: list[str]) -> int:
    """The door."""
    parser = timing_options(__doc__, calls=5, threads=[1, 2])
    parser.add_argument("--python", default=sys.executable, help="an interpreter that has PyTorch (mmjax[peers])")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--forms", nargs="+", choices=("eager", "compile"), default=["eager", "compile"])
    parser.add_argument("--ours", choices=MODELS, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.ours:
        ours(MODELS[chosen.ours], chosen.calls)
        return 0

    rows, found, targets, timings = [], {}, [], []
    for name in chosen.models:
        for threads in chosen.threads:
            timed = compare(name, chosen, threads)
            what = f"{name}, {threads} thread{'s' * (threads > 1)}"
            fastest = min(timed[form].wall_s for form in chosen.forms)
            targets.append(Target.at_least(f"{what}: fastest peer / ours", fastest / timed["ours"].wall_s, FASTER))
            for side, timing in timed.items():
                rows.append([what, side, timing.wall_s, timing.median_s, timing.cpu_s, timing.facts["peak_mib"]])
                found[f"{name}_{threads}_{side}"] = vars(timing)
                timings.append(timing)
    print(table(["model", "side", "least s", "median s", "CPU s", "peak MiB"], rows))
    return conclude("train_step", found, targets, timings)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
