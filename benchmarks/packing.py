"""How full packed rows are, and how fast they are packed.                                  python -m benchmarks.packing

The mix is that of visual-instruction data: 94 % of samples with a picture of 576 tokens, texts of log-normal length, at
most 2048 places each, about 808 on average. Ours: `Packed`, windows of 4096 samples in rows of 8192; the share of slots
in use is that of all rows, and that of the first batches is counted again in the batches themselves. The peer: a
collator that pads each batch to its longest sample, simulated on the same samples in the same order, with as many in a
batch as fit one row of ours (kindest to it), or all 8; lengths are rounded up to 128 to have fewer shapes to compile
for, or are as they are.

Timings are of this process alone: measuring all samples (tokenising, once; then cached), and packing them.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.measure import Target, conclude, table, time_calls
from data_pipelines.chat import ChatFeature
from data_pipelines.features import ImageFeature
from data_pipelines.packed import Packed, measured
from data_pipelines.packing import BestFit, FirstFit, Packer
from data_pipelines.pipeline import Pipeline
from data_pipelines.templates import prefix_answer
from data_pipelines.tokenizers import Bytes

FULL, FULLER, CHEAP = 0.98, 1.3, 0.2  # share, times, share
LENGTH, SAMPLES, IMAGES, WINDOW, ROWS = 8_192, 64, 14, 4_096, 8
PICTURE, LONGEST, SHOWN, MEDIAN, SPREAD = 576, 2_048, 0.94, 164, 1.0
STEP = 128
MARKS = 2  # ids that the template puts around


@dataclasses.dataclass(frozen=True)
class Mix:
    """Records of the mix; a picture is one pixel, a text has a letter for each token."""

    size: int

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        rng = np.random.default_rng(index)
        shown = rng.random() < SHOWN
        length = min(int(MEDIAN * np.exp(SPREAD * rng.normal())) + 2, LONGEST - PICTURE * shown - MARKS)
        asked = length // 4
        image = np.zeros((1, 1, 3), np.uint8) if shown else None
        return {"image": image, "question": "?" * asked, "answer": "!" * (length - asked)}

    def fingerprint(self) -> Mapping[str, str]:
        """Its size."""
        return {"mix": str(self.size)}

    def names(self) -> Mapping[str, tuple[str, ...]]:
        """No labels."""
        return {}


def mixed(size: int) -> Packed:
    """The mix, packed."""
    chat = ChatFeature(Bytes(), prefix_answer(), LONGEST, {"image": PICTURE}, (ImageFeature(height=1, width=1),))
    data = Pipeline(Mix(size), (chat,), 1, shuffle=0, epochs=1)
    return Packed(data, ROWS, LENGTH, SAMPLES, {"image": IMAGES}, WINDOW)


def padded(places: np.ndarray, batch: int, step: int) -> tuple[float, int]:
    """(share of slots in use, number of shapes) of batches padded to their longest sample, rounded up to `step`."""
    whole = places[: len(places) // batch * batch].reshape(-1, batch)
    longest = -(-whole.max(axis=1) // step) * step
    return float(whole.sum() / (longest.sum() * batch)), len(np.unique(longest))


def packing_s(packer: Packer, needs: np.ndarray, calls: int) -> list[float]:
    """Seconds to pack all windows, of each call."""
    room = np.array([LENGTH, SAMPLES, IMAGES])
    windows = [needs[first : first + WINDOW] for first in range(0, len(needs), WINDOW)]
    return time_calls(lambda: [packer.bins(window, room) for window in windows], calls, warmup=1)["wall_s"]


def main(arguments: list[str]) -> int:
    """The door."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=10 * WINDOW)
    parser.add_argument("--calls", type=int, default=5)
    parser.add_argument("--batches", type=int, default=20, help="built and looked at")
    chosen = parser.parse_args(arguments)

    data = mixed(chosen.samples)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MMJAX_CACHE"] = folder
        start = time.perf_counter()
        sizes = measured(data.data)
        measuring_s = time.perf_counter() - start
        useful, rows = data.useful(sys.maxsize), data.total
        start, stream = time.perf_counter(), data.batches()
        batches = [next(stream).text for _ in range(chosen.batches)]
        stream.close()
        built_s = time.perf_counter() - start
        counted = float(np.mean([(text.segment > 0).mean() for text in batches]))
        assert abs(counted - data.useful(ROWS * chosen.batches)) < 1e-6, "the rows are not as full as is said"
        ordered = sizes[data.data.indices(np.arange(len(sizes)))]
    places = ordered[:, 0]
    needs = np.stack([places, np.ones_like(places), ordered[:, 1]], axis=1)
    packed = f"packed, rows of {LENGTH}"
    sides = {packed: (useful, len({text.ids.shape for text in batches}))}
    for rows_worth, step in ((1, STEP), (1, 1), (ROWS, STEP), (ROWS, 1)):
        count = round(rows_worth * LENGTH / places.mean())
        sides[f"padded to the longest of {count}, in steps of {step}"] = padded(places, count, step)
    print(f"{len(places)} samples of {places.mean():.0f} places on average, {places.max()} at most, in {rows} rows")
    print(table(["side", "slots in use", "shapes"], [[side, *found] for side, found in sides.items()]))
    packers = {"best": BestFit(), "first": FirstFit()}
    timed = {name: packing_s(packer, needs, chosen.calls) for name, packer in packers.items()}
    speed = {name: len(places) / min(walls) for name, walls in timed.items()}
    print(table(["fit", "samples / s"], [[name, each] for name, each in speed.items()]))
    tokens_per_s = ROWS * chosen.batches * LENGTH / built_s
    print(f"building rows: {tokens_per_s:.4g} slots / s, starting included")
    print(f"measuring: {len(places) / measuring_s:.4g} samples / s; once, then kept in the cache")
    kindest = max(share for side, (share, _) in sides.items() if side != packed)
    targets = [
        Target.at_least("share of slots in use", useful, FULL),
        Target.at_least("slots in use, packed / padded", useful / kindest, FULLER),
        Target.at_most("shapes to compile for", sides[packed][1], 1),
        Target.at_most("packing time / measuring time", min(timed["best"]) / measuring_s, CHEAP),
    ]
    figures = {"sides": sides, "samples_per_s": speed, "measuring_s": measuring_s, "slots_per_s": tokens_per_s}
    return conclude("packing", figures | {"mean": float(places.mean())}, targets)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
