"""What attention costs in time and memory, beside jax.nn and PyTorch.                 python -m benchmarks.attention

Time: causal self-attention of one sample, 8 heads of width 64, float32, on this machine's CPU: forward, and forward
with all gradients, by `attend` as it stands (`Auto`), by the reference, by `jax.nn.dot_product_attention` and, where
`--python` names an interpreter that has it, by PyTorch. All sides must agree (to 1e-3) before time counts.

`--tpu v5e:2x2` compiles for one chip of that TPU instead, when libtpu is installed (`mmjax[tpu]`): a packed row of
16,384 places, 16 heads of width 128, bfloat16, forward and backward; temporary memory is the compiler's figure.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies

from benchmarks.measure import ROOT, Target, Timing, conclude, hand_over, interleave, table, time_calls, timing_options
from mmjax.core.layout import Layout
from mmjax.core.tokens import Pattern, Places
from mmjax.ops.attention import Auto, Chunked, Kernel, Reference, attend

LENGTHS, HEADS, WIDTH = (256, 2048), 8, 64
FASTER, MOST_MIB = 4.0, 512
LONG, LONG_HEADS, LONG_WIDTH, WINDOW = 16_384, 16, 128, 1024


def ours(kernel: Kernel, length: int) -> Callable[..., jax.Array]:
    """Attention of one sample in causal order."""
    places = Places.all_of("text", 1, length).causal()
    return lambda q, k, v: attend(q, k, v, places, kernel=kernel)


def theirs(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """The same by jax.nn, from [B H T K]."""
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
    return jnp.swapaxes(jax.nn.dot_product_attention(q, k, v, is_causal=True), 1, 2)


def one_side(side: str, length: int, calls: int) -> None:
    """One side, in a process of its own."""
    inputs = np.random.default_rng(0).normal(size=(3, 1, HEADS, length, WIDTH)).astype(np.float32)
    inputs = [jnp.asarray(x) for x in inputs]
    mix = theirs if side == "jax.nn" else ours({"mmjax": Auto(), "reference": Reference()}[side], length)
    loss = jax.jit(jax.value_and_grad(lambda *x: jnp.sum(jnp.square(mix(*x))), (0, 1, 2)))
    forward = jax.jit(mix)
    value, slopes = loss(*inputs)
    same = {"loss": float(value), "norms": [float(jnp.linalg.norm(x)) for x in slopes]}
    there = time_calls(lambda: jax.block_until_ready(forward(*inputs)), calls)
    both = time_calls(lambda: jax.block_until_ready(loss(*inputs)), calls)
    hand_over(same | there | {"train_s": min(both["wall_s"]), "jax": jax.__version__})


def times(rounds: int, calls: int, threads: int, python: str | None) -> tuple[dict[str, Timing], list[Target]]:
    """Each side in turns at each length."""
    found, targets, rows = {}, [], []
    for length in LENGTHS:
        tail = [str(length), str(calls)]
        own = [sys.executable, str(ROOT / "benchmarks" / "attention.py"), "--side"]
        sides = {side: [*own, side, *tail] for side in ("mmjax", "reference", "jax.nn")}
        if python:
            sides["torch"] = [python, str(ROOT / "benchmarks" / "attention_torch.py"), str(HEADS), str(WIDTH), *tail]
        timed = interleave(sides, rounds, threads)
        for side, timing in timed.items():
            for key in ("loss", "norms"):
                np.testing.assert_allclose(timing.facts[key], timed["jax.nn"].facts[key], rtol=1e-3, err_msg=side)
            rows.append([length, side, *(1000 * x for x in (timing.wall_s, timing.median_s, timing.facts["train_s"]))])
        found |= {f"{side}, {length}": timing for side, timing in timed.items()}
        mine = timed["mmjax"].wall_s
        if length <= 256:
            targets.append(Target.at_most(f"T={length}: mmjax / reference", mine / timed["reference"].wall_s, 1.1))
        else:
            targets.append(Target.at_least(f"T={length}: jax.nn / mmjax", timed["jax.nn"].wall_s / mine, FASTER))
    print(table(["T", "side", "least ms", "median ms", "with gradients ms"], rows))
    return found, targets


def packed(length: int) -> Places:
    """A row of samples of growing length, each a bidirectional prefix of 256 places and then causal."""
    sizes, rest = [], length
    while rest:
        sizes.append(min(rest, 512 * (len(sizes) + 1)))
        rest -= sizes[-1]
    segment = np.repeat(np.arange(1, len(sizes) + 1), sizes)[None]
    position = np.concatenate([np.arange(size) for size in sizes])[None]
    parts = (segment > 0, np.maximum(position - 255, 0), segment, position, 0 * segment)
    return Places(*(np.asarray(x, bool if x.dtype == bool else np.int32) for x in parts))


def on_tpu(topology: str) -> int:
    """Temporary memory of forward and backward, compiled for a TPU that need not be here."""
    device = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices[0]
    layout = Layout()
    mesh = layout.mesh([device])
    whole = jax.NamedSharding(mesh, jax.P())
    leaf = jax.ShapeDtypeStruct((1, LONG_HEADS, LONG, LONG_WIDTH), jnp.bfloat16, sharding=whole)
    places = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), packed(LONG))
    window = Pattern(window=WINDOW)
    sides = {
        "Auto": (Auto(), Pattern()),
        "Auto, window": (Auto(), window),
        "Chunked": (Chunked(), Pattern()),
    }
    rows, found = [], {}
    for side, (kernel, pattern) in sides.items():

        def loss(q, k, v, places, kernel=kernel, pattern=pattern):
            mixed = attend(q, k, v, places, kernel=kernel, pattern=pattern)
            return jnp.sum(jnp.square(mixed.astype(jnp.float32)))

        with layout.use(mesh):
            program = jax.jit(jax.grad(loss, (0, 1, 2))).lower(leaf, leaf, leaf, places).compile()
        memory = program.memory_analysis().temp_size_in_bytes / 2**20
        found[side] = {"temp_mib": memory, "kernels": program.as_text().count("tpu_custom_call")}
        rows.append([side, *found[side].values()])
        print(rows[-1], file=sys.stderr)
    print(table(["kernel", "temporary MiB", "Pallas calls"], rows))
    targets = [Target.at_most("Auto: temporary MiB", found["Auto"]["temp_mib"], MOST_MIB)]
    targets.append(Target.at_least("Auto: Pallas calls", found["Auto"]["kernels"], 3))
    return conclude("attention_tpu", {"topology": topology, "places": LONG} | found, targets)


def main(arguments: list[str]) -> int:
    """The door."""
    jax.config.update("jax_platforms", "cpu")
    parser = timing_options(__doc__, calls=10, threads=1)
    parser.add_argument("--tpu", metavar="TOPOLOGY", help="compile for this TPU, such as v5e:2x2")
    parser.add_argument("--python", help="an interpreter that has PyTorch (mmjax[peers])")
    parser.add_argument("--side", nargs=3, metavar=("NAME", "LENGTH", "CALLS"), help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.side:
        one_side(chosen.side[0], int(chosen.side[1]), int(chosen.side[2]))
        return 0
    if chosen.tpu:
        return on_tpu(chosen.tpu)
    timed, targets = times(chosen.rounds, chosen.calls, chosen.threads, chosen.python)
    return conclude("attention", {name: vars(timing) for name, timing in timed.items()}, targets, list(timed.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
