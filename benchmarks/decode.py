"""Greedy decoding against the generate of transformers.                                   python -m benchmarks.decode

GPT-2 with 124 million parameters and SmolLM (the shape of Llama) with 135, float32, on this machine's CPU: one row, and
eight rows whose prompts have different lengths. Both sides start from the same random weights and must say the same ids
before time counts; time is that of the whole call, prompts included. The peer's cache grows, or is of a fixed size, or
that with a compiled model (decode_torch.py). A further call with shorter prompts must not compile again.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
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
from mmjax.core.allocator import keep_pages
from mmjax.core.batch import Batch, Text
from mmjax.core.parameters import unbox
from mmjax.core.pytrees import flatten_names
from mmjax.decoding import generate as decoding
from mmjax.models.decoder import Decoder

VOCAB = {"gpt2": 50_257, "smollm-135m": 49_152}
LONGEST = 64  # ids of the longest prompt
FASTER = {1: 2.0, 8: 2.5}
FORMS = ("dynamic", "static", "compiled")
OURS, PEER = "benchmarks/decode.py", "benchmarks/decode_torch.py"


def weights_of(model: Decoder, batch: Batch) -> Any:
    """Random parameters, norms and biases too, large enough that ids do not repeat."""
    params = unbox(jax.jit(model.init)({"params": jax.random.key(0)}, batch)["params"])
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: x + 0.02 * rng.normal(size=x.shape).astype(np.float32), params)


def prompts(size: str, rows: int, shorter: int = 0) -> Batch:
    """Rows of different lengths, the longest `LONGEST - shorter`."""
    rng, place = np.random.default_rng(0), np.tile(np.arange(LONGEST), (rows, 1))
    lengths = np.linspace(LONGEST, LONGEST // 3, rows).astype(int) - shorter
    real = place < lengths[:, None]
    ids, position = (np.where(real, x, 0).astype(np.int32) for x in (rng.integers(0, VOCAB[size], real.shape), place))
    text = Text(ids, np.full_like(ids, -1), real.astype(np.int32), position, position, real.astype(np.float32))
    return Batch(text=text, id=np.arange(rows)[:, None], fault=np.zeros((rows, 1), np.uint8))


def write_for_peer(size: str, rows: int, folder: Path) -> None:
    """Weights and prompts as the peer reads them."""
    batch = prompts(size, rows)
    weights = flatten_names(weights_of(Decoder.of(size, VOCAB[size]), batch))
    np.savez(folder / "weights.npz", **{path: np.asarray(x) for path, x in weights.items()})
    np.savez(folder / "prompts.npz", ids=batch.text.ids, real=batch.text.valid)


def ours(size: str, rows: int, steps: int, calls: int) -> None:
    """Our side, in a process of its own."""
    keep_pages()  # as the command line does
    model, batch = Decoder.of(size, VOCAB[size]), prompts(size, rows)
    params = weights_of(model, batch)

    def call(batch: Batch) -> list[list[int]]:
        return np.asarray(decoding.generate(model, params, batch, steps=steps).ids).tolist()

    ids = call(batch)
    call(prompts(size, rows, shorter=2))
    facts = {"ids": ids, "compiled": decoding._generate.compiled, "peak_mib": peak_mib(), "jax": jax.__version__}
    hand_over(facts | time_calls(lambda: call(batch), calls, warmup=0))


def compare(size: str, rows: int, chosen: argparse.Namespace, threads: int) -> dict[str, Timing]:
    """All sides in turns. Raises when the ids differ."""
    tail = [str(chosen.steps), str(chosen.calls)]
    with tempfile.TemporaryDirectory() as folder:
        write_for_peer(size, rows, Path(folder))
        mine = [sys.executable, OURS, "--ours", size, str(rows), *tail]
        peers = {form: [chosen.python, PEER, folder, size, form, *tail] for form in chosen.forms}
        timed = interleave({"ours": mine} | peers, chosen.rounds, threads)
    for form in chosen.forms:
        np.testing.assert_array_equal(timed[form].facts["ids"], timed["ours"].facts["ids"], err_msg=form)
    return timed


def main(arguments: list[str]) -> int:
    """The door."""
    parser = timing_options(__doc__, calls=3, threads=[1, 2])
    parser.add_argument("--python", default=sys.executable, help="an interpreter that has the peer (mmjax[peers])")
    parser.add_argument("--models", nargs="+", default=list(VOCAB), choices=VOCAB)
    parser.add_argument("--rows", type=int, nargs="+", default=list(FASTER), choices=FASTER)
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--steps", type=int, default=64, help="new ids of each row")
    parser.add_argument("--ours", nargs=4, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.ours:
        ours(chosen.ours[0], *map(int, chosen.ours[1:]))
        return 0

    lines, found, targets, timings = [], {}, [], []
    for size, rows, threads in itertools.product(chosen.models, chosen.rows, chosen.threads):
        timed = compare(size, rows, chosen, threads)
        what = f"{size}, {rows} row{'s' * (rows > 1)}, {threads} thread{'s' * (threads > 1)}"
        fastest = min(timed[form].wall_s for form in chosen.forms)
        targets.append(Target.at_least(f"{what}: fastest peer / ours", fastest / timed["ours"].wall_s, FASTER[rows]))
        targets.append(Target.at_most(f"{what}: compilations", timed["ours"].facts["compiled"], 1))
        for side, timing in timed.items():
            said = rows * chosen.steps
            speeds = said / timing.wall_s, said / timing.median_s
            lines.append([what, side, *speeds, timing.cpu_s, timing.facts["peak_mib"]])
            facts = {name: fact for name, fact in timing.facts.items() if name != "ids"}
            found[f"{size}_{rows}_{threads}_{side}"] = vars(timing) | {"facts": facts}
            timings.append(timing)
    print(table(["what", "side", "most ids/s", "median ids/s", "CPU s", "peak MiB"], lines))
    return conclude("decode", found, targets, timings)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
