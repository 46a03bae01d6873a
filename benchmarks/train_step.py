"""The whole training step against the same architecture in PyTorch.                    python -m benchmarks.train_step

Forward, InfoNCE, backward, clipping and AdamW, float32, on one fixed random batch: the towers of the demo, and ViT-B/16
with a text transformer of size B. Both sides start from the same weights; the losses of the first three steps must
agree before time counts. The peer is eager and compiled PyTorch as one would write it for speed (train_step_torch.py).
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.measure import Target, Timing, conclude, hand_over, interleave, peak_mib, table, time_calls
from experiments import emoji_towers
from mmjax.core.allocator import keep_pages
from mmjax.core.batch import Batch, Images, Text
from mmjax.core.config import leaves, override
from mmjax.core.parameters import unbox
from mmjax.core.pytrees import flatten_names
from mmjax.encoders.image import ConvStem, ViT
from mmjax.encoders.text import TextEncoder
from mmjax.heads.contrastive import Contrastive
from mmjax.models.towers import Tower, Towers
from mmjax.nn.norms import PictureNorm
from mmjax.objectives.contrastive import InfoNCE
from mmjax.training.compilation import executable
from mmjax.training.experiment import Experiment, weighted
from mmjax.training.guard import NoGuard
from mmjax.training.optim import adamw
from mmjax.training.state import TrainState, build_update
from mmjax.training.step import make_step

FASTER, RATE, DECAY = 1.3, 1e-4, 0.05
OURS, PEER = "benchmarks/train_step.py", "benchmarks/train_step_torch.py"


@dataclasses.dataclass(frozen=True)
class Fixed:
    """Data that are one batch's shapes, for an experiment that is only stepped."""

    shapes: Any

    def spec(self) -> Batch:
        """The batch as ShapeDtypeStructs."""
        return self.shapes

    def fingerprint(self) -> Mapping[str, str]:
        """Nothing to tell apart."""
        return {}

    def batches(self, position: int = 0, process: int = 0, processes: int = 1) -> Iterator[Batch]:
        """Not used here."""
        return iter(())

    def names(self) -> Mapping[str, tuple[str, ...]]:
        """No labels with names."""
        return {}

    def example(self, index: int) -> Mapping[str, Any]:
        """Nothing to look at."""
        return {}


def plain(model: Towers, objective: InfoNCE, shapes: Batch) -> Experiment:
    """An experiment of nothing but model, loss and AdamW."""
    optimizer = adamw(RATE, decay=DECAY, clip=1.0)
    return Experiment(model, Fixed(shapes), {"infonce": weighted(1.0, objective)}, optimizer, 1_000, guard=NoGuard())


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


MODELS = {"demo": demo, "vit_b16": vit}


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


def weights_of(experiment: Experiment, batch: Batch) -> Any:
    """The parameters of step 0, all of them moved a little: no zero may hide what the two sides do differently."""
    params = unbox(jax.jit(experiment.model.init)({"params": jax.random.key(0)}, batch)["params"])
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: x + 0.02 * rng.normal(size=x.shape).astype(np.float32), params)


def write_for_peer(name: str, folder: Path) -> None:
    """Weights and batch as the peer reads them."""
    experiment = MODELS[name]()
    batch = random_batch(experiment)
    weights = {path: np.asarray(x) for path, x in flatten_names(weights_of(experiment, batch)).items()}
    np.savez(folder / "weights.npz", **weights)
    encoder = experiment.model.image.encoder
    stem = encoder.stem
    strides = [stride for _, _, stride in stem.stages] if isinstance(stem, ConvStem) else []
    np.savez(
        folder / "batch.npz",
        pixels=batch.image.pixels[:, 0],
        ids=batch.text.ids,
        real=batch.text.valid,
        picture=batch.labels.get("picture", 0),
        caption=batch.labels.get("caption_id", 0),
        texts=batch.fault.shape[1],
        mean=encoder.mean[0],
        std=encoder.std[0],
        cell=stem.patch,
        whole=isinstance(stem, ConvStem) and isinstance(stem.norm, PictureNorm),
        strides=np.array(strides, int),
        rate=RATE,
        decay=DECAY,
    )


def ours(name: str, calls: int) -> None:
    """Our side, in a process of its own: the step as the loop runs it, state donated."""
    keep_pages()  # as the command line does
    experiment = MODELS[name]()
    batch = jax.device_put(random_batch(experiment))
    update = build_update(experiment)
    params = weights_of(experiment, batch)
    average, guard = experiment.average.init(params), experiment.guard.init()
    state = TrainState(jax.numpy.zeros((), "int32"), params, update.init(params), average, guard)
    lowered = jax.jit(make_step(experiment, update), donate_argnums=0).lower(state, batch)
    step = executable(lowered, jax.default_backend())

    def call() -> float:
        nonlocal state
        state, metrics = step(state, batch)
        return float(jax.block_until_ready((state, metrics))[1]["loss"])

    losses = [call() for _ in range(3)]
    hand_over({"losses": losses, "peak_mib": peak_mib()} | time_calls(call, calls, warmup=1))


def agree(one: Timing, other: Timing) -> None:
    """Raises when the first loss differs by more than 1e-4, or those after one and two updates by more than 1e-3."""
    mine, theirs = np.array(one.facts["losses"]), np.array(other.facts["losses"])
    np.testing.assert_allclose(mine[0], theirs[0], rtol=1e-4, err_msg="loss before the first update")
    np.testing.assert_allclose(mine, theirs, rtol=1e-3, err_msg="losses of three steps")


def compare(name: str, chosen: argparse.Namespace, threads: int) -> dict[str, Timing]:
    """All sides of one model in turns."""
    with tempfile.TemporaryDirectory() as folder:
        write_for_peer(name, Path(folder))
        mine = [sys.executable, OURS, "--ours", name, "--calls", str(chosen.calls)]
        peers = {form: [chosen.python, PEER, folder, form, str(chosen.calls)] for form in chosen.forms}
        timed = interleave({"ours": mine} | peers, chosen.rounds, threads)
    for form in chosen.forms:
        agree(timed["ours"], timed[form])
    return timed


def main(arguments: list[str]) -> int:
    """The door."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", default=sys.executable, help="an interpreter that has PyTorch (mmjax[peers])")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--forms", nargs="+", choices=("eager", "compile"), default=["eager", "compile"])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--calls", type=int, default=5, help="timed steps in each round")
    parser.add_argument("--ours", choices=MODELS, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.ours:
        ours(chosen.ours, chosen.calls)
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
