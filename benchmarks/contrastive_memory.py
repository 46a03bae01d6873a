"""What the contrastive losses cost per device as batch and devices grow.     python -m benchmarks.contrastive_memory

Weak scaling: B = 1024 n rows of width 512 on n virtual CPU devices; loss and all gradients, compiled, not run. From the
compiled programs: temporary memory per device, arithmetic against the least there is (6 B^2 D / n: logits, and two
gradients), collectives. Then the ring is run on 8 devices and its gradients compared with the dense form.

`cost_analysis` counts a loop's body once. The ring's body runs n times (checked against the program's trip counts), so
n times the count is what the program does, or a little more: what stands outside of the loop is counted n times, too.
One program is compiled with its loops unrolled, and the two counts are compared.

`--tpu v5e:16x16` compiles for that TPU instead, up to B = 1,048,576, when libtpu is installed (`mmjax[tpu]`).
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import re
import sys
from typing import Any
from unittest import mock

ROWS, WIDTH, COUNTS = 1024, 512, (8, 64, 512)

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies

from benchmarks.measure import Target, conclude, table
from mmjax.core.layout import Layout
from mmjax.ops import pairwise_sweep
from mmjax.ops.pairwise import Execution, Full, Relation, Ring, Sigmoid, Softmax, pairwise

LOSSES = {"sigmoid": (Sigmoid(), 1.02), "softmax": (Softmax(), 1.36)}
MIB = 2**20


def value(loss: Any, execution: Execution, left, right, scale, bias, relation) -> jax.Array:
    """The mean loss over queries."""
    return pairwise(loss, left, right, scale, bias, relation, execution).loss.value


def slopes(loss: Any, execution: Execution):
    """(inputs, relation) -> loss and gradients in left, right, scale, bias."""
    return jax.value_and_grad(functools.partial(value, loss, execution), argnums=(0, 1, 2, 3))


def compile_for(devices: list[Any], rows: int, width: int, dtype: Any, loss: Any, execution: Execution) -> Any:
    """The compiled program for a batch of `rows` on `devices`."""
    layout = Layout()
    mesh = layout.mesh(devices)
    batch, whole = layout.batch_sharding(mesh), jax.NamedSharding(mesh, jax.P())
    leaf = jax.ShapeDtypeStruct
    side, scalar = leaf((rows, width), dtype, sharding=batch), leaf((), jnp.float32, sharding=whole)
    code, codes, here = (
        leaf(shape, kind, sharding=batch)
        for shape, kind in (((rows,), "int32"), ((rows, 0), "int32"), ((rows,), "bool"))
    )
    relation = Relation(code, codes, here, here)
    with layout.use(mesh):
        step = jax.jit(slopes(loss, execution), out_shardings=(whole, (batch, batch, whole, whole)))
        return step.lower(side, side, scalar, scalar, relation).compile()


def counted(program: Any) -> float:
    """Floating-point operations per device, each loop body once."""
    costs = program.cost_analysis()
    return (costs[0] if isinstance(costs, list) else costs)["flops"]


def figures(program: Any, devices: int, rows: int, width: int, loops: int) -> dict[str, Any]:
    """What a compiled program says of itself; `work` is relative to 6 B^2 D / n, loop bodies taken `loops` times."""
    text = program.as_text()
    return {
        "devices": devices,
        "rows": rows,
        "temp_mib": program.memory_analysis().temp_size_in_bytes / MIB,
        "work": counted(program) * loops / (6 * rows**2 * width / devices),
        "trips": sorted({int(n) for n in re.findall(r'known_trip_count":\{"n":"(\d+)"', text)}),
        "all_gathers": len(re.findall(r"(?:all-gather|all-to-all)(?:-start)?\(", text)),
        "permutes": len(re.findall(r"collective-permute(?:-start)?\(", text)),
    }


def unrolled_work(name: str, devices: int) -> float:
    """`work` of the program whose ring is written out, so that nothing has to be multiplied.

    Each sweep gets numbers of its own: otherwise XLA would see that both sweeps of the softmax compute the same logits
    and keep them all, which is the memory that the two sweeps are there to save."""
    loss, _ = LOSSES[name]
    scan, visit_once, sweeps = jax.lax.scan, pairwise_sweep.at_once, itertools.count(1)

    def apart(visit, left, right, rows, columns, scalars):
        left = dataclasses.replace(left, x=left.x + next(sweeps) * scalars.scale)
        return visit_once(visit, left, right, rows, columns, scalars)

    with (
        mock.patch.object(jax.lax, "scan", functools.partial(scan, unroll=True)),
        mock.patch.object(pairwise_sweep, "at_once", apart),
    ):
        program = compile_for(jax.devices()[:devices], ROWS * devices, WIDTH, jnp.float32, loss, Ring())
    assert "while(" not in program.as_text(), "a loop was left"
    return counted(program) / (6 * ROWS**2 * devices * WIDTH)


def gradient_error(name: str, devices: int = 8, rows: int = 2048) -> float:
    """Largest difference between the ring's and the dense form's gradients, relative to the largest dense entry."""
    loss, _ = LOSSES[name]
    rng = np.random.default_rng(0)
    left, right = rng.normal(size=(2, rows, WIDTH)).astype(np.float32)
    left, right = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (left, right))
    inputs = (left, right, np.float32(10.0), np.float32(-10.0))
    relation = Relation.of(rng.random(rows) < 0.9, rng.random(rows) < 0.9, alike=(rng.integers(0, rows // 4, rows),))
    _, dense = jax.jit(slopes(loss, Full()))(*inputs, relation)
    layout = Layout()
    with layout.use(layout.mesh(jax.devices()[:devices])):
        _, ring = jax.jit(slopes(loss, Ring()))(*inputs, relation)
    pairs = [(np.asarray(a), np.asarray(b)) for a, b in zip(ring, dense, strict=True)]
    return max(float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-6)) for a, b in pairs)


def on_cpu() -> int:
    """The weak-scaling curve."""
    jax.config.update("jax_num_cpu_devices", max(COUNTS))
    rows, found, targets = [], {}, []
    for name, (loss, bound) in LOSSES.items():
        for form, execution in (("ring", Ring()), ("dense", Full())):
            curve = []
            for n in COUNTS:
                program = compile_for(jax.devices()[:n], ROWS * n, WIDTH, jnp.float32, loss, execution)
                curve.append(figures(program, n, ROWS * n, WIDTH, loops=n if form == "ring" else 1))
                last = curve[-1]
                rows.append([f"{name}, {form}", n, ROWS * n, *(last[k] for k in ("temp_mib", "work", "all_gathers"))])
            found[f"{name}_{form}"] = curve
        curve, error, straight = found[f"{name}_ring"], gradient_error(name), unrolled_work(name, COUNTS[0])
        assert all(f["trips"] == [f["devices"]] for f in curve), "the ring's loop does not run once per device"
        memory = [f["temp_mib"] for f in curve]
        found[f"{name}_unrolled_work"], found[f"{name}_gradient_error"] = straight, error
        targets += [
            Target.at_most(
                f"{name}: growth of memory from n={COUNTS[0]} to {COUNTS[-1]}", max(memory) / min(memory), 1.02
            ),
            Target.at_most(f"{name}: work / ideal", max([straight, *(f["work"] for f in curve)]), bound),
            Target.at_most(f"{name}: n x loop body / unrolled, off by", abs(curve[0]["work"] / straight - 1), 0.01),
            Target.at_most(f"{name}: all-gathers in the ring", max(f["all_gathers"] for f in curve), 0),
            Target.at_most(f"{name}: gradients, ring against dense", error, 1e-5),
        ]
    print(table(["loss", "devices", "batch", "temporary MiB / device", "work / ideal", "all-gathers"], rows))
    return conclude("contrastive_memory", found, targets)


def on_tpu(topology: str) -> int:
    """The same from programs compiled for a TPU that need not be here. D = 768, bfloat16 embeddings.

    The arithmetic is that of a second program that takes each device's rows in one chunk, so that only the ring
    loops."""
    devices = list(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices)
    rows, found, targets = [], {}, []
    for name, (loss, bound) in LOSSES.items():
        for batch in (32_768, 131_072, 1_048_576):
            program = compile_for(devices, batch, 768, jnp.bfloat16, loss, Ring())
            plain = compile_for(devices, batch, 768, jnp.bfloat16, loss, Ring(pairs=(batch // len(devices)) ** 2))
            found[f"{name}_{batch}"] = last = figures(program, len(devices), batch, 768, loops=1)
            last["work"] = figures(plain, len(devices), batch, 768, loops=len(devices))["work"]
            rows.append([name, len(devices), batch, *(last[k] for k in ("temp_mib", "work", "all_gathers"))])
            print(rows[-1], file=sys.stderr)
            targets.append(Target.at_most(f"{name}, {batch} rows: all-gathers", last["all_gathers"], 0))
        targets.append(Target.at_most(f"{name}, {batch} rows: temporary MiB per device", last["temp_mib"], 16))
        targets.append(Target.at_most(f"{name}, {batch} rows: work / ideal", last["work"], bound))
    print(table(["loss", "devices", "batch", "temporary MiB / device", "work / ideal", "all-gathers"], rows))
    return conclude("contrastive_memory_tpu", {"topology": topology} | found, targets)


def main(arguments: list[str]) -> int:
    """The door."""
    jax.config.update("jax_platforms", "cpu")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tpu", metavar="TOPOLOGY", help="compile for this TPU, such as v5e:16x16")
    chosen = parser.parse_args(arguments)
    return on_tpu(chosen.tpu) if chosen.tpu else on_cpu()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
