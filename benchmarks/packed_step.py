"""What packed rows are worth in training: useful tokens a second.                    python -m benchmarks.packed_step

The mix of `benchmarks.packing` goes through forward and backward pass of one layer of a decoder, by default of
Qwen2-VL-2B's shape, on this machine: ours in rows of 8192 packed by `Packed`; the peer in batches of as many samples as
fit one such row on average (kindest to it), or eight, each padded to its longest sample, rounded up to 128 so that
there are fewer shapes to compile for. Same model, same samples in the same order, same choice of kernels; places of
pictures are ids like any other. A packed row must lose what its samples lose alone (to 1e-4) before time counts.

Useful tokens a second are slots a second, measured on a few rows from all over the data and on a few batches, times the
share of slots in use in all of them. Compilation is not in the times. The narrower the model, the more of its time goes
to attention, which costs both sides the same: `--size S` has a width of 384.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.measure import Target, conclude, table, time_calls
from benchmarks.packing import LENGTH, LONGEST, ROWS, STEP, mixed, padded
from data_pipelines.packed import measured
from mmjax.core.allocator import keep_pages
from mmjax.core.batch import Batch, Text
from mmjax.core.compilation import executable
from mmjax.core.parameters import unbox
from mmjax.core.pytrees import joined
from mmjax.models.decoder import Decoder
from mmjax.nn.decoder_sizes import decoder_size
from mmjax.nn.stack import Stack

FASTER, VOCAB, SAMPLES = 1.7, 512, 4_096


def as_text(text: Text, row: slice, length: int) -> Batch:
    """Rows of a batch as far as `length`, every place an id drawn by its position in its sample."""
    cut = jax.tree.map(lambda x: np.asarray(x)[row, :length], text)
    ids = np.where(cut.segment > 0, (cut.position * 31 + 7) % VOCAB, 0).astype(np.int32)
    return of_text(dataclasses.replace(cut, ids=ids, slot=np.full_like(ids, -1), per_item=()))


def of_text(text: Text) -> Batch:
    """A batch of text alone. (What it says of samples, the model does not read.)"""
    none = np.zeros((len(text.ids), 1), np.int32)
    return Batch(text=text, id=none, fault=none.astype(np.uint8))


def packed_rows(data: Any, count: int) -> list[Batch]:
    """Rows from all over the data, one by one: packing puts like samples side by side."""
    every = data.total // data.spec().rows // count
    batches = itertools.islice(data.batches(), 0, every * count, every)
    return [as_text(batch.text, slice(0, 1), LENGTH) for batch in batches]


def padded_batches(data: Any, size: int, count: int) -> list[Batch]:
    """The first `count` batches of `size` samples, each as long as its longest."""
    stream = dataclasses.replace(data, batch=size).batches()
    found = []
    for _ in range(count):
        text = next(stream).text
        longest = int((text.segment > 0).sum(axis=1).max())
        found.append(as_text(text, slice(None), min(LONGEST, -(-longest // STEP) * STEP)))
    stream.close()
    return found


def stepper(model: Decoder, params: Any) -> Callable[[Batch], Callable[[], jax.Array]]:
    """batch -> a call that takes its gradients and gives its loss; compiled, and called, once for each shape."""
    programs: dict[tuple[int, ...], Any] = {}

    def loss(params: Any, batch: Batch) -> jax.Array:
        return jnp.sum(model.apply({"params": params}, batch, train=True)["nll"] * batch.text.loss)

    def of(batch: Batch) -> Callable[[], jax.Array]:
        shape = batch.text.ids.shape
        if shape not in programs:
            print(f"  compiling for {shape}", file=sys.stderr, flush=True)
            programs[shape] = executable(jax.jit(jax.value_and_grad(loss)).lower(params, batch), "cpu")
            jax.block_until_ready(programs[shape](params, batch))
        return lambda: jax.block_until_ready(programs[shape](params, batch))[0]

    return of


def timed(of: Callable[[Batch], Callable], batches: Sequence[Batch], calls: int) -> np.ndarray:
    """[n 3] places of a row, slots and least seconds of each batch."""
    found = []
    for batch in batches:
        rows, length = batch.text.ids.shape
        found.append((length, rows * length, min(time_calls(of(batch), calls, warmup=0)["wall_s"])))
        print(f"  ({rows}, {length}): {rows * length / found[-1][-1]:.0f} slots / s", file=sys.stderr, flush=True)
    return np.array(found)


def agree(of: Callable[[Batch], Callable], row: Batch) -> None:
    """A packed row loses what its samples lose, one to a row."""
    text = row.text
    alone = []
    for number in range(1, int(text.segment.max()) + 1):
        here = np.flatnonzero(text.segment[0] == number)
        part = jax.tree.map(lambda x, here=here: np.pad(x[:, here], ((0, 0), (0, LONGEST - len(here)))), text)
        alone.append(part)
    rows = joined(alone)
    rows = dataclasses.replace(rows, segment=np.minimum(rows.segment, 1), slot=np.full_like(rows.ids, -1))
    np.testing.assert_allclose(of(row)(), of(of_text(rows))(), rtol=1e-4)


def main(arguments: list[str]) -> int:
    """The door."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="qwen2-vl-2b", help="a shape of `mmjax.nn.decoder_sizes`")
    parser.add_argument("--rows", type=int, default=4, help="packed rows that are timed")
    parser.add_argument("--batches", type=int, default=5, help="padded batches that are timed")
    parser.add_argument("--calls", type=int, default=1)
    chosen = parser.parse_args(arguments)
    jax.config.update("jax_platforms", "cpu")
    keep_pages()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MMJAX_CACHE"] = folder
        data = mixed(SAMPLES)
        places = measured(data.data)[data.data.indices(np.arange(SAMPLES)), 0]
        size = round(LENGTH / places.mean())
        rows, batches = packed_rows(data, chosen.rows), padded_batches(data.data, size, chosen.batches)
        model = Decoder.of(chosen.size, VOCAB, stack=Stack(decoder_size(chosen.size).block(), 1))
        params = unbox(model.init(jax.random.key(0), as_text(rows[0].text, slice(0, 1), 64))["params"])
        of = stepper(model, params)
        agree(of, rows[0])
        packed, padding = timed(of, rows, chosen.calls), timed(of, batches, chosen.calls)
        useful = data.useful(sys.maxsize)
    long = padding[padding[:, 0] == padding[:, 0].max()]  # many samples have a long one among them
    sides = {
        f"packed, rows of {LENGTH}": (useful, 1, packed),
        f"padded to the longest of {size}": (*padded(places, size, STEP), padding),
        f"padded to the longest of {size * ROWS}": (*padded(places, size * ROWS, STEP), long),
    }
    found = {}
    for name, (share, shapes, times) in sides.items():
        speed = float(times[:, 1].sum() / times[:, 2].sum())
        found[name] = {"useful": share, "shapes": shapes, "slots_per_s": speed, "useful_per_s": share * speed}
    print(table(["side", *next(iter(found.values()))], [[name, *each.values()] for name, each in found.items()]))
    ours, *peers = (each["useful_per_s"] for each in found.values())
    names = f"{size} in a batch", f"{size * ROWS} in a batch"
    targets = [
        Target.at_least(f"useful tokens / s, packed / padded, {name}", ours / each, FASTER)
        for name, each in zip(names, peers, strict=True)
    ]
    return conclude("packed_step", found | {"size": chosen.size}, targets)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
