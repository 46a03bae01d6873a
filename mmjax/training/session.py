"""A run in progress: the state, how far it is, and what happens between steps."""

from __future__ import annotations

import collections
import contextlib
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from mmjax.core import faults
from mmjax.core.batch import Batch
from mmjax.training import records, recovery
from mmjax.training.checkpoints import CheckpointStore
from mmjax.training.context import Context, compile_forward
from mmjax.training.experiment import Experiment
from mmjax.training.recovery import Start
from mmjax.training.state import inference_params
from mmjax.training.supervisor import Stopped, Supervisor
from mmjax.training.writers import Writers


class Unsupervised:
    """Stands in for a Supervisor where nobody watches: never stops, pauses nothing."""

    stopping = False

    def beat(self, step: int) -> None:
        """Nobody listens."""

    def pause(self, what: str) -> contextlib.AbstractContextManager[None]:
        """Nothing to pause."""
        return contextlib.nullcontext()

    def raise_if_stopping(self) -> None:
        """Never."""


class Session:
    """The only mutable thing of a run, on the host. Metrics are fetched one log point late, when they are long ready;
    evaluations, saves and rollbacks are the places that wait for the devices."""

    def __init__(
        self,
        experiment: Experiment,
        folder: pathlib.Path,
        mesh: Mesh,
        start: Start,
        flee: Callable[[Start], Start],
        store: CheckpointStore,
        writers: Writers,
        supervisor: Supervisor | Unsupervised,
    ):
        self.experiment, self.folder, self.mesh, self.flee = experiment, folder, mesh, flee
        self.store, self.writers, self.supervisor = store, writers, supervisor
        self.state, self.step, self.examples, self.rollbacks = start.state, start.step, start.examples, start.rollbacks
        self._processes = jax.process_count()
        self._forward = compile_forward(experiment.model, experiment.layout, mesh)
        self._batches: collections.deque[tuple[int, Any]] = collections.deque(maxlen=experiment.guard.window)
        self._metrics: Mapping[str, jax.Array] = {}  # of the last step
        self._pending: tuple[dict[str, Any], Mapping[str, jax.Array]] | None = None  # logged, not yet fetched
        self._mark = (self.examples, time.monotonic())  # where the present rate is measured from

    @property
    def last(self) -> bool:
        """Whether all steps are done."""
        return self.step >= self.experiment.steps

    def advance(self, state: Any, metrics: Mapping[str, jax.Array], batch: Batch) -> None:
        """One more step was dispatched."""
        self.state, self._metrics = state, metrics
        self.step += 1
        self.examples += len(batch.id) * self._processes
        self._batches.append((self.step, batch.id))
        records.list_bad(self.folder, self.experiment.data, self.step, batch)
        self.supervisor.beat(self.step)

    def between(self) -> None:
        """What is due after a step. Raises the supervisor's Stopped when it was asked to stop and all is saved."""
        self.store.check()
        if self.step % self.experiment.log_every == 0 or self.last:
            self._log()
        if self.last:
            self.keep()
        with contextlib.suppress(Stopped):
            self.evaluate()
        if self.supervisor.stopping:
            self.keep()
            raise self.supervisor.stopped()
        if self.store.due(self.step):
            self._save(self.store.save)

    def keep(self) -> None:
        """Saves the state as it is; returns when it is safe."""
        self._save(self.store.save_now)

    def evaluate(self) -> None:
        """Runs the evaluators that are due after this step and have left no result for it yet."""
        for name, each in self.experiment.evals.items():
            if not each.due(self.step, self.experiment.steps):
                continue
            if records.result_path(self.folder, name, self.step).exists():
                continue
            with self._waiting(f"evaluation {name}"):
                faults.point("eval", self.step)
                self._settle()
                start_s = time.monotonic()
                results = each.evaluator.evaluate(self._context())
                record = {"step": self.step, "kind": "eval", "name": name, "seconds": time.monotonic() - start_s}
                self.writers.write(record | dict(records.numbers(results)))
                records.write_result(self.folder, name, self.step, results)
                for hook in self.experiment.hooks:
                    hook.on_eval(self.folder, self.step, name, results)

    def finish(self) -> None:
        """After the last step: everything is on disk, and the folder says so."""
        with self._waiting("the end"):
            self._settle()
            self.store.wait()
            for hook in self.experiment.hooks:
                hook.on_finish(self.folder, self.step, self.state)
            records.write_done(self.folder, self.step)

    def _context(self) -> Context:
        params = inference_params(self.experiment, self.state)
        poll, layout = self.supervisor.raise_if_stopping, self.experiment.layout
        return Context(self.experiment.model, params, self.step, layout, self.mesh, self._forward, poll)

    def _log(self) -> None:
        """Writes what was logged before, and keeps this step's metrics for the next time."""
        now, (examples, since_s) = time.monotonic(), self._mark
        self._mark = (self.examples, now)
        rate = (self.examples - examples) / max(now - since_s, 1e-9)
        record = {"step": self.step, "kind": "train", "examples": self.examples, "examples_per_s": round(rate, 1)}
        older, self._pending = self._pending, (record, self._metrics)
        self._write(older)

    def _settle(self) -> None:
        """Writes what is logged, waiting for it."""
        older, self._pending = self._pending, None
        self._write(older)

    def _write(self, logged: tuple[dict[str, Any], Mapping[str, jax.Array]] | None) -> None:
        if logged is not None:
            record = _fetched(*logged)
            self.writers.write(record)
            if self.experiment.guard.exhausted(record):
                self._flee()

    def _save(self, save: Callable[..., None]) -> None:
        """Saves the state, after its metrics are written; a state over the guard's budget is left, not saved."""
        with self._waiting("a save"):
            self._settle()
            guard = _fetched({}, self.experiment.guard.metrics(self.state.guard))
            if self.experiment.guard.exhausted(guard):
                self._flee()
            lately = int(guard.get("skipped_lately", 0))
            items = {"state": self.state, "params": inference_params(self.experiment, self.state)}
            save(self.step, items, recovery.meta(self.experiment, self.examples, self.rollbacks, lately))

    def _flee(self) -> None:
        """Goes back to good weights, or gives the run up."""
        with self._waiting("a rollback"):
            pending, self._pending = self._pending, None
            if pending is not None:  # of the same trouble: written, not judged
                self.writers.write(_fetched(*pending))
            start = Start(self.state, self.step, self.examples, self.rollbacks)
            recovery.list_batches(self.folder, dict(self._batches), np.asarray(self.state.guard.skips))
            if self.rollbacks >= self.experiment.guard.rollbacks:
                raise recovery.give_up(self.folder, start, self.experiment.guard.budget)
            start = self.flee(start)
            self.state, self.rollbacks = start.state, start.rollbacks
            text = f"rolled back to earlier weights ({self.rollbacks} of {self.experiment.guard.rollbacks} times)"
            self.writers.write({"step": self.step, "kind": "event", "text": text})

    @contextlib.contextmanager
    def _waiting(self, what: str) -> Iterator[None]:
        """A named place that may move data and take its time."""
        start_s = time.monotonic()
        with self.supervisor.pause(what), jax.transfer_guard("allow"):
            yield
        examples, since_s = self._mark
        self._mark = (examples, since_s + time.monotonic() - start_s)


def _fetched(record: dict[str, Any], metrics: Mapping[str, jax.Array]) -> dict[str, Any]:
    """The record with its metrics as numbers."""
    return record | {name: float(value) for name, value in jax.device_get(dict(metrics)).items()}
