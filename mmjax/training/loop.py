"""The loop: batches in, steps out, and nothing that knows what is trained."""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import functools
import pathlib
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mmjax.core import faults
from mmjax.core.batch import Batch
from mmjax.core.compilation import executable
from mmjax.core.errors import DataError
from mmjax.core.layout import Layout
from mmjax.core.protocols import Data, specs_of
from mmjax.training import records, recovery
from mmjax.training.check import check
from mmjax.training.checkpoints import CheckpointStore
from mmjax.training.experiment import Experiment
from mmjax.training.optim import Update
from mmjax.training.session import Session, Unsupervised
from mmjax.training.state import TrainState, abstract_state, build_update
from mmjax.training.step import make_step
from mmjax.training.supervisor import Supervisor
from mmjax.training.writers import Writers

AT_ONCE = 100_000
"""Bytes that XLA:CPU copies before a call returns."""


def train(
    experiment: Experiment,
    folder: pathlib.Path | str,
    *,
    writers: Writers | None = None,
    supervisor: Supervisor | Unsupervised | None = None,
    source: Mapping[str, Any] | None = None,
    allow: Collection[str] = (),
    devices: Sequence[jax.Device] | None = None,
) -> TrainState:
    """Trains to `experiment.steps` in a run folder, or goes on where the run in it stopped; returns the last state.

    source: the file and settings that made the experiment, for its record. allow: parts of the run ("data", "seed",
    "model") that may differ from what it was started with. devices: default all. Raises UserError for what the
    experiment, the data or the folder has wrong, and, once everything is saved, the supervisor's Stopped."""
    folder, supervisor = pathlib.Path(folder), supervisor or Unsupervised()
    check(experiment, len(devices) if devices else jax.device_count())
    writers = writers or Writers.of(folder, experiment.steps)
    mesh, update = experiment.layout.mesh(devices), build_update(experiment)
    store = CheckpointStore(folder / "checkpoints", experiment.checkpoints)
    with experiment.layout.use(mesh), contextlib.closing(writers):
        abstract = abstract_state(experiment, update, mesh)
        start = recovery.begin(experiment, update, abstract, store, allow)
        records.write_record(folder, experiment, source or {})
        records.forget_later(folder, start.step, experiment.steps)
        writers.open(start.step)
        if start.origin is not None:
            records.tell_origin(folder, start.origin.report(update.trains), writers)
        going = start.step < experiment.steps
        batches = _begun(_batches(experiment.data, start.examples)) if going else iter(())
        with supervisor.pause("compilation"):
            step = compile_steps(experiment, update, abstract, mesh) if going else None
        flee = functools.partial(recovery.roll_back, experiment, update, abstract, store)
        session = Session(experiment, folder, mesh, start, flee, store, writers, supervisor)
        lent = start.origin.lent if start.origin is not None else ()
        del start  # its state is about to be donated
        if lent:
            session.keep()  # from here on the run stands alone
        session.evaluate()  # what a stop has cut short
        if step is not None:
            _run(session, step, batches, feeder(experiment.layout, mesh))
        session.finish()
        return session.state


def _run(session: Session, step: Callable, batches: Iterator[Batch], feed: Callable[[Batch], Batch]) -> None:
    """Steps until the last one. The host is at most a few steps ahead of the devices."""
    hooks, folder = session.experiment.hooks, session.folder
    in_flight: collections.deque[jax.Array] = collections.deque()
    ahead = steps_ahead(session.mesh)
    with jax.transfer_guard("disallow"):
        while not session.last:
            number = session.step + 1
            for hook in hooks:
                hook.before(folder, number)
            batch = next(batches)
            faults.point("step", number)
            with jax.transfer_guard_host_to_device("allow"):  # the batch goes in here, and nowhere else
                state, metrics = step(session.state, feed(batch))
            session.advance(state, metrics, batch)
            in_flight.append(metrics["loss"])
            if len(in_flight) > ahead:
                jax.block_until_ready(in_flight.popleft())
            for hook in hooks:
                hook.after(folder, number, state, metrics)
            del state, metrics  # donated to the next step
            session.between()


def compile_steps(experiment: Experiment, update: Update, abstract: TrainState, mesh: Mesh) -> Callable:
    """The step as executables, one for each shape of batch that the data may give: none is compiled on the way, where
    it would look like a step that hangs."""
    specs = specs_of(experiment.data)
    steps = {_shapes(spec): compile_step(experiment, update, abstract, mesh, spec) for spec in specs}
    known = steps[_shapes(experiment.data.spec())]  # refuses other shapes by name
    return known if len(steps) == 1 else lambda state, batch: steps.get(_shapes(batch), known)(state, batch)


def _shapes(batch: Batch) -> tuple[tuple[int, ...], ...]:
    return tuple(leaf.shape for leaf in jax.tree.leaves(batch))


def compile_step(
    experiment: Experiment, update: Update, abstract: TrainState, mesh: Mesh, spec: Batch | None = None
) -> Callable:
    """The step for one shape of batch (None: `data.spec()`) as an executable, compiled ahead of time: it can not be
    compiled again, only refuse other shapes."""
    faults.point("compile")
    rows = experiment.layout.batch_sharding(mesh)
    state = jax.tree.map(lambda x: x.sharding, abstract)
    whole = NamedSharding(mesh, PartitionSpec())
    step = jax.jit(
        make_step(experiment, update), in_shardings=(state, rows), out_shardings=(state, whole), donate_argnums=0
    )
    return executable(step.lower(abstract, spec or experiment.data.spec()), mesh.devices.flat[0].platform)


def feeder(layout: Layout, mesh: Mesh) -> Callable[[Batch], Batch]:
    """Host batch -> what the executable takes. One process hands over numpy as it is: the executable splits it over
    the devices in C++, in a third of the time of building global arrays first (60 us against 200 for four leaves).
    One CPU has large arrays before the step is called: a program that must wait for its arguments runs on another
    thread, which does not keep its scratch space (`core.allocator`). Small ones are copied at once anyway."""
    rows = layout.batch_sharding(mesh)
    if mesh.size == 1 and mesh.devices.flat[0].platform == "cpu":
        put = functools.partial(jax.device_put, device=rows)
        return lambda batch: jax.tree.map(lambda x: x if x.nbytes < AT_ONCE else jax.block_until_ready(put(x)), batch)
    if jax.process_count() == 1:
        return lambda batch: batch
    whole = functools.partial(jax.make_array_from_process_local_data, rows)
    return functools.partial(jax.tree.map, whole)


def steps_ahead(mesh: Mesh) -> int:
    """Steps that may be in flight. Collectives between virtual CPU devices deadlock when two programs overlap: a small
    thread pool runs both."""
    return 0 if mesh.devices.flat[0].platform == "cpu" and mesh.size > 1 else 2


def _begun(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The same batches. A thread begins to fetch the first, for which data are opened and perhaps made, so that it is
    there when the step is compiled."""
    first: concurrent.futures.Future[Batch] = concurrent.futures.Future()

    def fetch() -> None:
        try:
            first.set_result(next(batches))
        except BaseException as error:  # also what ends a process is raised where the batch is wanted
            first.set_exception(error)

    def all_of_them() -> Iterator[Batch]:
        yield first.result()
        yield from batches

    threading.Thread(target=fetch, name="first batch", daemon=True).start()
    return all_of_them()


def _batches(data: Data, position: int) -> Iterator[Batch]:
    """Host batches from `position` on. Raises DataError where the data ends before the run does."""
    processes = jax.process_count()
    faults.point("data.start", position)
    batches = iter(data.batches(position, jax.process_index(), processes))
    while True:
        faults.point("data.read", position)
        batch = next(batches, None)
        if batch is None:
            raise DataError(
                f"the data ended after {position} examples, before the run did; let it repeat (epochs=None) or ask "
                "for fewer steps"
            )
        yield batch
        position += len(batch.id) * processes
