"""What the vocabulary loss costs in memory, arithmetic and time.                  python -m benchmarks.vocabulary_loss

Memory and arithmetic: loss and both gradients of 8192 places of width 2304 against 257,152 words (Gemma's), compiled,
not run. Temporary memory is the compiler's figure. Arithmetic is counted in the traced program, loops by their length,
relative to 6 N V D: scores and two gradients. The mode that computes gradients in the forward pass is counted there:
its backward pass multiplies what is saved, when the loss is the one foreseen.

Time: 1024 places of width 512 against 50,304 words on this machine's CPU, beside optax on all scores. All sides must
agree on loss and gradient before time counts.

`--tpu v5e:2x2` compiles for one chip of that TPU instead, in bfloat16, when libtpu is installed (`mmjax[tpu]`).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import topologies

from benchmarks.measure import (
    ROOT,
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
from mmjax.ops.crossentropy import Dense, GradientInForward, Recompute, cross_entropy
from mmjax.training.cost import flops

LARGE, SMALL = (8192, 2304, 257_152), (1024, 512, 50_304)  # places, width, words
EXECUTIONS = {"recompute": Recompute(), "gradient in forward": GradientInForward(), "dense": Dense()}
MIB, RECOMPUTED_MIB, RECOMPUTED_WORK = 2**20, 256, 1.34
AS_FAST = {"recompute": 0.70, "gradient in forward": 0.80}
"""optax's time over ours. Products alone are most of the time on a CPU, and recompute does 4/3 of them."""
LEANER = 0.25


def ours(execution: Any) -> Callable[..., jax.Array]:
    """(x, words, target, weight) -> weighted mean."""

    def loss(x, words, target, weight):
        nll = cross_entropy(x, words, target, weight=weight, execution=execution).nll
        return jnp.sum(nll * weight) / jnp.sum(weight)

    return loss


def theirs(x, words, target, weight) -> jax.Array:
    """The same by optax, on all scores."""
    scores = jnp.einsum("nd,vd->nv", x, words, preferred_element_type=jnp.float32)
    nll = optax.softmax_cross_entropy_with_integer_labels(scores, target)
    return jnp.sum(nll * weight) / jnp.sum(weight)


def abstract(shape: tuple[int, int, int], dtype: Any, device: Any) -> list[jax.ShapeDtypeStruct]:
    """The arguments of a loss on one device."""
    (places, width, words), here = shape, jax.sharding.SingleDeviceSharding(device)
    kinds = (((places, width), dtype), ((words, width), dtype), ((places,), jnp.int32), ((places,), jnp.float32))
    return [jax.ShapeDtypeStruct(size, kind, sharding=here) for size, kind in kinds]


def work(loss: Callable[..., jax.Array], arguments: list[Any], foreseen: bool) -> float:
    """Products of loss and gradients, relative to 6 N V D."""
    (places, width), words = arguments[0].shape, arguments[1].shape[0]

    def forward(x, table, *rest):
        return jax.vjp(lambda x, table: loss(x, table, *rest), x, table)[0]

    counted = flops(forward if foreseen else jax.grad(loss, (0, 1)), *arguments)
    return sum(counted.values()) / (6 * places * words * width)


def costs(device: Any, dtype: Any) -> tuple[dict[str, Any], list[Target]]:
    """Memory and arithmetic on one device, which need not be here."""
    arguments, rows, found = abstract(LARGE, dtype, device), [], {}
    sides = {side: ours(execution) for side, execution in EXECUTIONS.items()} | {"optax": theirs}
    for side, loss in sides.items():
        step = jax.jit(jax.value_and_grad(loss, (0, 1)))
        try:
            memory = step.lower(*arguments).compile().memory_analysis().temp_size_in_bytes / MIB
        except jax.errors.JaxRuntimeError as error:  # more than the chip has: itself a finding
            memory = float("inf")
            print(str(error).splitlines()[0][:200], file=sys.stderr)
        found[side] = {"temp_mib": memory, "work": work(loss, arguments, side == "gradient in forward")}
        rows.append([side, *found[side].values()])
        print(rows[-1], file=sys.stderr)
    print(table(["form", "temporary MiB", "work / ideal"], rows))
    ahead, dense = found["gradient in forward"], found["dense"]
    return found, [
        Target.at_most("recompute: temporary MiB", found["recompute"]["temp_mib"], RECOMPUTED_MIB),
        Target.at_most("recompute: work / ideal", found["recompute"]["work"], RECOMPUTED_WORK),
        Target.at_most("gradient in forward: work / ideal", ahead["work"], 1.0),
        Target.at_most("gradient in forward: temporary memory / dense", ahead["temp_mib"] / dense["temp_mib"], 0.5),
    ]


def arrays(shape: tuple[int, int, int]) -> list[jax.Array]:
    """The same numbers for every side."""
    rng, (places, width, words) = np.random.default_rng(0), shape
    x, vectors = rng.normal(size=(places, width)), rng.normal(size=(words, width)) / np.sqrt(width)
    weight = rng.random(places) < 0.9
    made = (x, "float32"), (vectors, "float32"), (rng.integers(0, words, places), "int32"), (weight, "float32")
    return [jnp.asarray(value, kind) for value, kind in made]


def one_side(side: str, calls: int) -> None:
    """One side, in a process of its own."""
    loss, inputs = theirs if side == "optax" else ours(EXECUTIONS[side]), arrays(SMALL)
    step = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*inputs).compile()
    resting = peak_mib()
    value, slopes = jax.block_until_ready(step(*inputs))
    same = {"loss": float(value), "norms": [float(jnp.linalg.norm(x)) for x in slopes]}
    timed = time_calls(lambda: jax.block_until_ready(step(*inputs)), calls, warmup=1)
    hand_over(same | timed | {"grown_mib": peak_mib() - resting, "jax": jax.__version__})


def times(rounds: int, calls: int, threads: int) -> tuple[dict[str, Timing], list[Target]]:
    """Each form beside optax on this machine."""
    sides = ("recompute", "gradient in forward", "optax")
    command = [sys.executable, str(ROOT / "benchmarks" / "vocabulary_loss.py"), "--calls", str(calls), "--side"]
    timed = interleave({side: [*command, side] for side in sides}, rounds, threads)
    for side in sides[:-1]:
        for key in ("loss", "norms"):
            np.testing.assert_allclose(timed[side].facts[key], timed["optax"].facts[key], rtol=1e-4, err_msg=side)
    rows = [[side, t.wall_s, t.median_s, t.cpu_s, t.facts["grown_mib"]] for side, t in timed.items()]
    print(table(["form", "least s", "median s", "CPU s", "added MiB"], rows))
    faster = [
        Target.at_least(f"optax / {side}, time", timed["optax"].wall_s / timed[side].wall_s, bound)
        for side, bound in AS_FAST.items()
    ]
    leaner = timed["recompute"].facts["grown_mib"] / timed["optax"].facts["grown_mib"]
    return timed, [*faster, Target.at_most("recompute / optax, added memory", leaner, LEANER)]


def main(arguments: list[str]) -> int:
    """The door."""
    jax.config.update("jax_platforms", "cpu")
    parser = timing_options(__doc__, calls=3, threads=2)
    parser.add_argument("--tpu", metavar="TOPOLOGY", help="compile for this TPU, such as v5e:2x2")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.side:
        one_side(chosen.side, chosen.calls)
        return 0
    shape = dict(zip(("places", "width", "words"), LARGE, strict=True))
    if chosen.tpu:
        device = topologies.get_topology_desc(platform="tpu", topology_name=chosen.tpu).devices[0]
        found, targets = costs(device, jnp.bfloat16)
        return conclude("vocabulary_loss_tpu", {"topology": chosen.tpu} | shape | found, targets)
    timed, faster = times(chosen.rounds, chosen.calls, chosen.threads)  # first: JAX's threads and a fork do not mix
    found, targets = costs(jax.devices()[0], jnp.float32)
    figures = shape | found | {f"time, {side}": vars(timing) for side, timing in timed.items()}
    return conclude("vocabulary_loss", figures, targets + faster, list(timed.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
