"""The loop as a whole: resume, metrics, evaluation, stops, rollbacks, and what it refuses."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import sys
import threading

import jax
import jax.monitoring
import numpy as np
import pytest
import training_toy
from training_toy import Fake, experiment

from mmjax.core.config import from_json, to_json
from mmjax.core.errors import DataError, ExitCode, UserError
from mmjax.core.layout import Layout
from mmjax.training import loop
from mmjax.training.average import Ema
from mmjax.training.checkpoints import Checkpoints, CheckpointStore
from mmjax.training.experiment import every
from mmjax.training.guard import Guard
from mmjax.training.hooks import Hook, Profile
from mmjax.training.loop import compile_steps, feeder, train
from mmjax.training.optim import adamw, frozen
from mmjax.training.schedules import Cosine
from mmjax.training.session import Unsupervised
from mmjax.training.supervisor import Stopped
from mmjax.training.writers import Jsonl, Writers, read_metrics


def fit(folder, trained=None, **settings):
    """The last state, on the host."""
    settings = {"writers": Writers((Jsonl(folder / "metrics.jsonl"),)), "devices": jax.devices()[:1], **settings}
    return jax.device_get(train(trained or experiment(), folder, **settings))


def records(folder, kind="train"):
    return [record for record in read_metrics(folder / "metrics.jsonl") if record["kind"] == kind]


def losses(folder):
    return {record["step"]: record["loss"].hex() for record in records(folder)}


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


class StopAt(Unsupervised):
    """Asked to stop during step `at`."""

    def __init__(self, at):
        self.at = at

    def beat(self, step):
        self.stopping = step >= self.at

    def raise_if_stopping(self):
        if self.stopping:
            raise self.stopped()

    def stopped(self):
        return Stopped("asked")


@dataclasses.dataclass(frozen=True)
class Score:
    """Mean of the first output over some data."""

    data: Fake

    def evaluate(self, context):
        outputs = [outputs["value"][:, 0] for outputs, _ in context.outputs(self.data)]
        return {"score": {"value": float(np.mean(np.concatenate(outputs))), "n": 32}, "step": context.step}


SCORED = {"score": every(2, Score(Fake(length=32))), "final": every(0, Score(Fake(length=16)))}


def test_a_stopped_run_goes_on_bit_for_bit(tmp_path):
    trained = experiment(average=Ema(0.9), steps=7, evals=SCORED, layout=Layout(data=2, fsdp=2, tensor=2, fsdp_floor=8))
    fit = functools.partial(globals()["fit"], devices=None)
    whole = fit(tmp_path / "whole", trained)
    for at in (3, 4):  # at 4 the stop falls into an evaluation
        with pytest.raises(Stopped):
            fit(tmp_path / "parts", trained, supervisor=StopAt(at))
    assert_same(whole, fit(tmp_path / "parts", trained))
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")
    for kind in ("train", "eval"):
        steps = [(r["step"], r.get("name")) for r in records(tmp_path / "parts", kind)]
        assert (
            sorted(steps)
            == sorted(set(steps))
            == sorted((r["step"], r.get("name")) for r in records(tmp_path / "whole", kind))
        )
    for path in (tmp_path / "whole" / "evals").rglob("*.json"):
        assert path.read_text() == (tmp_path / "parts" / path.relative_to(tmp_path / "whole")).read_text()


def test_metrics_after_the_restored_step_are_written_once(tmp_path):
    trained = experiment(checkpoints=Checkpoints(every=2), steps=6)
    fit(tmp_path, trained.replace(steps=5))  # its last checkpoint is that of step 5
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 6, "kind": "train", "loss": 1.0}\n{"step": 7, "kind": "tr')
    fit(tmp_path, trained)
    assert [record["step"] for record in records(tmp_path)] == [1, 2, 3, 4, 5, 6]
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5, 6]


def test_a_finished_run_is_left_as_it_is(tmp_path):
    done = fit(tmp_path)
    before = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads((tmp_path / "DONE").read_text()) == {"step": 6}
    assert_same(done, fit(tmp_path))
    assert (tmp_path / "metrics.jsonl").read_text() == before


def test_another_batch_size_goes_on_at_the_same_example(tmp_path):
    seen = []

    class Watch(Fake):
        def batches(self, position=0, process=0, processes=1):
            for batch in super().batches(position, process, processes):
                seen.extend(batch.id.ravel().tolist())
                yield batch

    fit(tmp_path, experiment(data=Watch(), steps=3))
    fit(tmp_path, experiment(data=Watch(rows=8), steps=5))
    assert seen == list(range(3 * 16 + 2 * 8))


@pytest.mark.parametrize(
    ("changes", "part", "row"),
    [
        ({"data": Fake(seed=1)}, "data", r"data\.seed +0 +1"),
        ({"seed": 3}, "seed", r"seed\.seed +0 +3"),
        ({"model": training_toy.Net(gain=2.0)}, "model", r"model\.gain +1.0 +2.0"),
    ],
)
def test_a_run_started_with_something_else_is_refused_side_by_side(tmp_path, changes, part, row):
    fit(tmp_path, experiment(steps=2))
    with pytest.raises(UserError, match=rf"(?s)another {part}.*saved +now.*{row}.*--allow {part}"):
        fit(tmp_path, experiment(**changes))
    fit(tmp_path, experiment(**changes), allow=(part,))
    assert len(records(tmp_path)) == 6


def test_the_step_is_compiled_once_and_nothing_else_is_compiled_between_steps(tmp_path):
    compiled, at_step = [], []

    @dataclasses.dataclass(frozen=True)
    class Watch(Hook):
        def after(self, folder, step, state, metrics):
            at_step.append(len(compiled))

    jax.monitoring.register_event_duration_secs_listener(
        lambda event, _, **__: compiled.append(event) if event == "/jax/core/compile/jaxpr_trace_duration" else None
    )
    try:
        fit(tmp_path, experiment(hooks=(Watch(),), steps=6, log_every=2))
    finally:
        jax.monitoring.clear_event_listeners()
    assert at_step[0] > 0
    assert len(at_step) == 6 and set(at_step) == {at_step[0]}


def test_the_data_open_while_the_step_compiles(tmp_path, monkeypatch):
    opened = threading.Event()

    @dataclasses.dataclass(frozen=True)
    class Slow(Fake):
        def batches(self, position=0, process=0, processes=1):
            opened.set()
            yield from super().batches(position, process, processes)

    def compile_later(*given):
        assert opened.wait(timeout=60)
        return compile_steps(*given)

    monkeypatch.setattr(loop, "compile_steps", compile_later)
    fit(tmp_path, experiment(data=Slow()))
    assert [record["examples"] for record in records(tmp_path)] == [16 * (1 + step) for step in range(6)]


def test_moving_data_inside_the_loop_is_an_error(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Careless(Hook):
        def after(self, folder, step, state, metrics):
            _ = metrics["loss"] + np.ones(3)

    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        fit(tmp_path, experiment(hooks=(Careless(),)))


def test_metrics_are_fetched_one_log_point_late(tmp_path):
    lines = []

    @dataclasses.dataclass(frozen=True)
    class Watch(Hook):
        def after(self, folder, step, state, metrics):
            lines.append([record["step"] for record in records(tmp_path)])

    fit(tmp_path, experiment(hooks=(Watch(),), steps=5, log_every=2))
    assert lines == [[], [], [], [], [2]]
    assert [record["step"] for record in records(tmp_path)] == [2, 4, 5]


def test_too_many_bad_batches_roll_back_and_then_stop_with_76(tmp_path):
    poison = tuple(range(16 * 5, 16 * 40))  # all batches after the fifth
    trained = experiment(
        data=Fake(poison=poison),
        steps=40,
        guard=Guard(budget=3, window=8, rollbacks=2),
        checkpoints=Checkpoints(every=2),
    )
    with pytest.raises(UserError, match="after 2 rollbacks") as stopped:
        fit(tmp_path, trained)
    assert stopped.value.code == ExitCode.NUMERICS
    assert len(records(tmp_path, "event")) == 2
    listed = read_metrics(tmp_path / "skipped_batches.jsonl")
    assert [record["step"] for record in listed] == list(range(6, 6 + len(listed)))
    assert listed[0]["ids"] == list(range(16 * 5, 16 * 6))


def test_a_rollback_takes_the_weights_of_the_last_good_checkpoint_and_leaves_the_bad_data_out(tmp_path):
    poison = tuple(range(16 * 5, 16 * 11))  # batches 6 to 11
    bad = experiment(
        data=Fake(poison=poison), steps=12, guard=Guard(budget=3, window=8), checkpoints=Checkpoints(every=4)
    )
    seen = {}

    @dataclasses.dataclass(frozen=True)
    class Watch(Hook):
        def after(self, folder, step, state, metrics):
            with jax.transfer_guard("allow"):
                seen[step] = np.asarray(state.params["head"])

    state = fit(tmp_path, bad.replace(hooks=(Watch(),)))
    event, *more = records(tmp_path, "event")
    assert not more and state.step == 12
    np.testing.assert_array_equal(seen[event["step"] + 1], seen[4])  # still inside the bad data: held at step 4
    assert not np.array_equal(seen[12], seen[4]) and np.isfinite(records(tmp_path)[-1]["loss"])
    assert CheckpointStore(tmp_path / "checkpoints").steps()[-1] == 12


def test_every_fault_of_an_experiment_is_told_before_any_device_is_touched(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "jit", lambda *_, **__: pytest.fail("compiled"))
    wrong = experiment(
        adamw(Cosine(1e-3, warmup=10), groups=(frozen("stak/.*"),), clip=0.0), log_every=0, layout=Layout(tensor=8),
        model=training_toy.Net(vocab=12), data=Fake(rows=6), accumulate=4, evals={"it": every(2, Score(Fake(rows=15)))},
    )  # fmt: skip
    with pytest.raises(UserError) as error:
        train(wrong, tmp_path)
    for told in ("log_every=0", "accumulate=4 does not divide", "vocab=12 cannot be split", "clip must be above 0",
                 "warmup", "'stak/.*' matches no parameter", "stack/"):  # fmt: skip
        assert told in str(error.value), told
    with pytest.raises(UserError, match="evals.it: layout: a batch of 15 rows"):
        train(experiment(layout=Layout(data=8), evals={"it": every(2, Score(Fake(rows=15)))}), tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_objective_that_asks_for_what_is_not_there_is_told_what_is(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Blind:
        def __call__(self, outputs, batch):
            return {"loss": outputs["valeu"]}

    with pytest.raises(UserError, match="objectives.blind: no output or label is called 'valeu'; did you mean value"):
        train(experiment(objectives={"blind": training_toy.weighted(1.0, Blind())}), tmp_path)


def test_data_that_ends_before_the_run_does_says_so(tmp_path):
    with pytest.raises(DataError, match="ended after 32 examples"):
        fit(tmp_path, experiment(data=Fake(length=32)))


@dataclasses.dataclass(frozen=True)
class Torn(Fake):
    """Example 5 of every 8 is a null example."""

    def batches(self, position=0, process=0, processes=1):
        for batch in super().batches(position, process, processes):
            yield batch.replace(fault=np.where(batch.id % 8 == 5, 2, batch.fault).astype(np.uint8))


def test_null_examples_are_listed_once_also_by_a_run_that_was_stopped(tmp_path):
    torn = Torn(**{field.name: getattr(experiment().data, field.name) for field in dataclasses.fields(Fake)})
    whole = experiment(data=torn, steps=6, checkpoints=Checkpoints(every=2))
    train(whole, tmp_path / "whole")
    with contextlib.suppress(Stopped):
        train(whole, tmp_path / "stopped", supervisor=StopAt(3))
    train(whole, tmp_path / "stopped")
    lines = [(tmp_path / name / "bad_records.jsonl").read_text() for name in ("whole", "stopped")]
    assert lines[0] == lines[1]
    listed = [json.loads(line) for line in lines[0].splitlines()]
    assert listed and all(entry["fault"] == "unreadable" and entry["id"] % 8 == 5 for entry in listed)
    assert sorted({entry["step"] for entry in listed}) == [1, 2, 3, 4, 5, 6]


def test_an_experiment_survives_its_run_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["training_toy"], "__mmjax_user__", True, raising=False)
    trained = experiment(
        adamw(Cosine(1e-3, warmup=2), groups=(frozen("table"),)), average=Ema(), hooks=(Profile(2, 1),), steps=4
    )
    fit(tmp_path, trained, source={"file": "toy.py", "settings": {"steps": "4"}})
    record = json.loads((tmp_path / "experiment.json").read_text())
    assert from_json(record["experiment"]) == trained
    assert from_json(to_json(trained)) == trained
    assert (
        record["source"] == {"file": "toy.py", "settings": {"steps": "4"}}
        and record["versions"]["jax"] == jax.__version__
    )
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    params = CheckpointStore(tmp_path / "checkpoints").restore({"params": jax.eval_shape(lambda: fit_params(trained))})
    assert params.meta["examples"] == 64


def fit_params(trained):
    from mmjax.core.parameters import unbox

    return jax.tree.map(lambda x: jax.numpy.zeros(x.shape, x.dtype), unbox(trained.declared))


def test_evaluation_uses_the_average_where_there_is_one(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Head:
        def evaluate(self, context):
            return {"head": np.asarray(context.params["head"]).tolist()}

    state = fit(tmp_path, experiment(average=Ema(0.5), evals={"head": every(0, Head())}))
    found = json.loads((tmp_path / "evals" / "head" / "6.json").read_text())
    np.testing.assert_array_equal(np.float32(found["head"]), state.average["head"])
    assert not np.array_equal(state.average["head"], state.params["head"])


def test_one_cpu_has_large_arrays_before_the_step_is_called_and_waits_for_no_small_one():
    """A program whose arguments still arrive runs on another thread, and its scratch space is cleared each time."""
    fed = feeder(Layout(), Layout().mesh(jax.devices()[:1]))({"large": np.ones((1, 50_000)), "small": np.ones((1, 2))})
    assert isinstance(fed["large"], jax.Array) and fed["large"].is_ready()
    assert isinstance(fed["small"], np.ndarray)
