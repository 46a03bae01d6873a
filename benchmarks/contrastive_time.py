"""Wall time and memory of the contrastive losses on one device.               python -m benchmarks.contrastive_time

Loss and gradients of B x B pairs, float32: ours (chunked, gradients beside the loss) against open_clip's dense formula
in PyTorch, eager and compiled. Both sides get the same embeddings and must agree on loss and gradients before time
counts. Memory is what the calls added to the resident memory that the process had before the first one.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import numpy as np

from benchmarks.measure import (
    Target,
    Timing,
    conclude,
    hand_over,
    interleave,
    peak_mib,
    table,
    time_calls,
    timing_options,
)

LOSSES, FASTER, SMALLER = ("sigmoid", "softmax"), 1.5, 0.1
OURS = "benchmarks/contrastive_time.py"
PEER = "benchmarks/contrastive_torch.py"


def embeddings(rows: int, width: int) -> np.ndarray:
    """[2 B D], unit length."""
    sides = np.random.default_rng(0).normal(size=(2, rows, width)).astype(np.float32)
    return sides / np.linalg.norm(sides, axis=-1, keepdims=True)


def ours(name: str, rows: int, width: int, calls: int) -> None:
    """Our side, in a process of its own."""
    import jax

    from mmjax.ops.pairwise import Automatic, Relation, Sigmoid, Softmax, pairwise

    loss, here = {"softmax": Softmax(), "sigmoid": Sigmoid()}[name], np.ones(rows, bool)
    inputs = [jax.numpy.asarray(x) for x in (*embeddings(rows, width), np.float32(10.0), np.float32(-10.0))]

    def value(*inputs: Any) -> jax.Array:
        return pairwise(loss, *inputs, Relation.of(here, here), Automatic()).loss.value

    step = jax.jit(jax.value_and_grad(value, argnums=(0, 1, 2, 3))).lower(*inputs).compile()
    resting = peak_mib()
    found, slopes = jax.block_until_ready(step(*inputs))
    slope = np.asarray(slopes[0])
    same = {"loss": float(found), "norm": float(np.linalg.norm(slope)), "corner": slope[:2, :4].tolist()}
    timed = time_calls(lambda: jax.block_until_ready(step(*inputs)), calls, warmup=1)
    hand_over(same | timed | {"grown_mib": peak_mib() - resting, "peak_mib": peak_mib(), "jax": jax.__version__})


def agree(one: Timing, other: Timing) -> None:
    """Raises when the two did not compute the same thing."""
    for key in ("loss", "norm", "corner"):
        np.testing.assert_allclose(one.facts[key], other.facts[key], rtol=1e-4, atol=1e-7, err_msg=key)


def main(arguments: list[str]) -> int:
    """The door."""
    parser = timing_options(__doc__, calls=3, threads=[1, 2])
    parser.add_argument("--python", default=sys.executable, help="an interpreter that has PyTorch (mmjax[peers])")
    parser.add_argument("--rows", type=int, default=8192)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--ours", help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    shape = [str(chosen.rows), str(chosen.width), str(chosen.calls)]
    if chosen.ours:
        ours(chosen.ours, chosen.rows, chosen.width, chosen.calls)
        return 0

    rows, found, targets, timings = [], {}, [], []
    for threads in chosen.threads:
        for name in LOSSES:
            mine = [sys.executable, OURS, "--ours", name, "--rows", shape[0], "--width", shape[1], "--calls", shape[2]]
            peers = {form: [chosen.python, PEER, name, form, *shape] for form in ("eager", "compile")}
            timed = interleave({"ours": mine} | peers, chosen.rounds, threads)
            for form in peers:
                agree(timed["ours"], timed[form])
            fastest = min((timed[form] for form in peers), key=lambda timing: timing.wall_s)
            leanest = min(timed[form].facts["grown_mib"] for form in peers)
            memory = timed["ours"].facts["grown_mib"] / leanest
            what = f"{name}, {threads} thread{'s' * (threads > 1)}"
            targets.append(
                Target.at_least(f"{what}: fastest peer / ours", fastest.wall_s / timed["ours"].wall_s, FASTER)
            )
            targets.append(Target.at_most(f"{what}: our memory / leanest peer's", memory, SMALLER))
            for side, timing in timed.items():
                rows.append([what, side, timing.wall_s, timing.median_s, timing.cpu_s, timing.facts["grown_mib"]])
                found[f"{name}_{threads}_{side}"] = vars(timing)
                timings.append(timing)
    print(table(["loss", "side", "least s", "median s", "CPU s", "added MiB"], rows))
    return conclude("contrastive_time", {"rows": chosen.rows, "width": chosen.width} | found, targets, timings)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
