"""Pictures per second from JPEGs to batches.                                        python -m benchmarks.input_pipeline

Ours: simplejpeg decodes, the central square is resized bicubically, batches are uint8 (the device normalises); threads.
The peer: open_clip's transform in torch's DataLoader, a worker process per core; and the same with uint8 batches
(input_torch.py). JPEGs lie in memory, the streams are under way when timing starts, and the first batches of both must
agree: the same pictures, the same filter, the square cut out before resizing (ours) or after (theirs), which moves
pixels by up to a fifth of one.

Then the demo: how many batches its pipeline makes in the time of one of its steps, each alone on the machine.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.input_pictures import read, write
from benchmarks.measure import Target, conclude, hand_over, interleave, run_once, table, time_calls
from data_pipelines import native
from data_pipelines.features import ImageFeature
from data_pipelines.images import Crop
from data_pipelines.pipeline import Pipeline

FASTER, REFILLS, ALIKE = 2.2, 3.0, 3.0  # times, times, grey levels
PICTURES = 256
OURS, PEER = "benchmarks/input_pipeline.py", "benchmarks/input_torch.py"


class InMemory:
    """Files as records."""

    def __init__(self, files: Sequence[bytes]):
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return {"image": self.files[index]}

    def fingerprint(self) -> Mapping[str, str]:
        """Nothing to tell apart."""
        return {}

    def names(self) -> Mapping[str, tuple[str, ...]]:
        """No labels."""
        return {}


def ours(folder: Path, packages: str, batch: int, batches: int, calls: int) -> None:
    """Our side, in a process of its own."""
    if packages == "pillow":
        native.simplejpeg = native.cykooz_resizer = None
    stream = Pipeline(InMemory(read(folder)), (ImageFeature(fit=Crop()),), batch).batches()
    np.save(folder / "ours.npy", next(stream).image.pixels[:, 0])
    for _ in range(3):
        next(stream)
    timed = time_calls(lambda: [next(stream) for _ in range(batches)], calls, warmup=0)
    stream.close()
    hand_over(timed | {"packages": native.packages()})


def demo(calls: int) -> None:
    """The demo's batches and its steps, one after the other."""
    import jax

    from experiments.emoji_towers import experiment
    from mmjax.training.loop import compile_step
    from mmjax.training.state import abstract_state, build_update, new_state

    towers = experiment()
    stream = towers.data.batches()
    batch = next(stream)
    time.sleep(1)  # what is read ahead is read
    made = time_calls(lambda: [next(stream) for _ in range(20)], calls, warmup=1)
    stream.close()
    mesh, update = towers.layout.mesh(), build_update(towers)
    with towers.layout.use(mesh):
        abstract = abstract_state(towers, update, mesh)
        step, state = compile_step(towers, update, abstract, mesh), new_state(towers, update, abstract)

        def call() -> None:
            nonlocal state
            state, _ = jax.block_until_ready(step(state, batch))

        stepped = time_calls(call, calls, warmup=1)
    hand_over({"batch_s": min(made["wall_s"]) / 20, "step_s": min(stepped["wall_s"]), "rows": batch.id.shape[0]})


def unlike(one: np.ndarray, other: np.ndarray) -> float:
    """Grey levels of difference on average."""
    return float(np.abs(one.astype(np.float32) - other).mean())


def main(arguments: list[str]) -> int:
    """The door."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", default=sys.executable, help="an interpreter that has PyTorch and Pillow")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--batches", type=int, default=8, help="timed together")
    parser.add_argument("--calls", type=int, default=3, help="timings in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2, help="ours: threads; theirs: worker processes")
    parser.add_argument("--step-s", type=float, help="seconds per step of the demo, where known; else it is measured")
    parser.add_argument("--ours", nargs=2, metavar=("FOLDER", "PACKAGES"), help=argparse.SUPPRESS)
    parser.add_argument("--demo", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    amount = [chosen.batch, chosen.batches, chosen.calls]
    if chosen.ours:
        ours(Path(chosen.ours[0]), chosen.ours[1], *amount)
        return 0
    if chosen.demo:
        demo(chosen.calls)
        return 0

    words = [str(number) for number in amount]
    own = [sys.executable, OURS, "--batch", words[0], "--batches", words[1], "--calls", words[2]]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, PICTURES)
        sides = {f"ours, {packages}": [*own, "--ours", name, packages] for packages in ("fast", "pillow")}
        sides |= {f"torch, {form}": [chosen.python, PEER, name, form, *words] for form in ("open_clip", "uint8")}
        timed = interleave(sides, chosen.rounds, chosen.threads)
        first = {side: np.load(folder / f"{side}.npy") for side in ("ours", "open_clip", "uint8")}
    difference = max(unlike(first["ours"], first[form]) for form in ("open_clip", "uint8"))
    apart = unlike(first["open_clip"], np.roll(first["open_clip"], 1, axis=0))
    assert difference < ALIKE < apart, f"the pictures differ by {difference:.1f} grey levels (others by {apart:.1f})"

    count = chosen.batch * chosen.batches
    rows = [
        [side, count / each.wall_s, count / each.median_s, each.cpu_s / count * 1e3, each.spread]
        for side, each in timed.items()
    ]
    print(table(["side", "pictures / s", "median", "CPU ms / picture", "spread"], rows))
    mine, theirs = timed["ours, fast"], timed["torch, open_clip"]
    towers = run_once([sys.executable, OURS, "--demo"], chosen.threads)
    step_s = chosen.step_s or towers["step_s"]
    print(f"the demo: {towers['batch_s'] * 1e3:.3g} ms for a batch, {step_s * 1e3:.4g} ms for a step")
    targets = [
        Target.at_least("pictures per second, ours / open_clip's", theirs.wall_s / mine.wall_s, FASTER),
        Target.at_least("batches the demo's data make per step", step_s / towers["batch_s"], REFILLS),
        Target.at_most("grey levels between their pictures and ours", difference, ALIKE),
    ]
    figures = {side: vars(each) for side, each in timed.items()}
    ratio = {"cpu_ratio": theirs.cpu_s / mine.cpu_s, "difference": difference, "demo": towers}
    return conclude("input_pipeline", figures | ratio, targets, list(timed.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
