"""The step: the same under every layout and in micro-batches, and unmoved by bad numbers."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from training_toy import Fake, Match, Regress, experiment

from mmjax.core.layout import Layout
from mmjax.core.pytrees import flatten_names
from mmjax.training.average import Ema
from mmjax.training.experiment import weighted
from mmjax.training.guard import Guard
from mmjax.training.loop import compile_step
from mmjax.training.optim import adamw
from mmjax.training.state import abstract_state, build_update, new_state


def run(trained, steps=2, devices=8):
    """(metrics of each step, final state), all on the host."""
    mesh = trained.layout.mesh(jax.devices()[:devices])
    update = build_update(trained)
    with trained.layout.use(mesh):
        abstract = abstract_state(trained, update, mesh)
        state, step = new_state(trained, update, abstract), compile_step(trained, update, abstract, mesh)
        found = []
        for batch, _ in zip(trained.data.batches(), range(steps), strict=False):
            state, metrics = step(state, batch)
            found.append(jax.device_get(metrics))
        return found, jax.device_get(state)


def assert_close(a, b, tolerance):
    b = flatten_names(b)
    for name, leaf in flatten_names(a).items():
        np.testing.assert_allclose(leaf, b[name], rtol=tolerance, atol=tolerance, err_msg=name)


@pytest.fixture(scope="module")
def alone():
    return run(experiment(layout=Layout()), devices=1)


@pytest.mark.parametrize(
    "layout",
    [
        Layout(data=8),
        Layout(data=1, fsdp=8, fsdp_floor=8),
        Layout(data=1, tensor=8),
        Layout(data=2, fsdp=2, tensor=2, fsdp_floor=8),
    ],
    ids=["data", "fsdp", "tensor", "mixed"],
)
def test_every_layout_computes_what_one_device_computes(alone, layout):
    metrics, state = run(experiment(layout=layout))
    for one, many in zip(alone[0], metrics, strict=True):
        assert_close(one, many, 2e-5)
    assert_close(alone[1].params, state.params, 2e-5)


def test_a_layout_splits_parameters_and_moments_as_it_says():
    trained = experiment(layout=Layout(data=1, fsdp=2, tensor=4, fsdp_floor=8))
    mesh, update = trained.layout.mesh(), build_update(trained)
    state = abstract_state(trained, update, mesh)
    with trained.layout.use(mesh):
        born = new_state(trained, update, state)
    for name, leaf in flatten_names(state).items():
        assert flatten_names(born)[name].sharding.is_equivalent_to(leaf.sharding, leaf.ndim), name
    up = {name: leaf for name, leaf in flatten_names(state).items() if name.endswith("stack/up")}
    assert len(up) == 3  # the parameter and two moments
    assert {leaf.sharding.shard_shape(leaf.shape) for leaf in up.values()} == {(2, 4, 4)}
    assert state.step.sharding.is_fully_replicated


@pytest.mark.parametrize("objective", [Regress(), Match()], ids=["additive", "pairwise"])
def test_micro_batches_give_the_loss_and_gradient_of_the_whole_batch(objective):
    whole = experiment(objectives={"it": weighted(1.0, objective)})
    (first, *_), state = run(whole, devices=2)
    (parts, *_), accumulated = run(whole.replace(accumulate=4), devices=2)
    assert_close(first, parts, 1e-5)
    assert_close(state.params, accumulated.params, 1e-5)


def test_a_batch_with_nan_changes_nothing_but_the_step_and_the_counters():
    trained = experiment(data=Fake(poison=(20,)), average=Ema(0.9), steps=8)  # in the second batch
    _, before = run(trained, steps=1, devices=1)
    metrics, after = run(trained, steps=2, devices=1)
    assert not np.isfinite(metrics[1]["loss"])
    assert after.step == 2 and after.guard.skipped == 1
    for part in ("params", "opt_state", "average"):
        jax.tree.map(np.testing.assert_array_equal, getattr(before, part), getattr(after, part))
    metrics, later = run(trained, steps=3, devices=1)
    assert np.isfinite(metrics[2]["loss"]) and metrics[2]["loss"] != metrics[0]["loss"]
    assert not np.array_equal(later.params["head"], after.params["head"])


def test_a_spike_is_skipped_and_ordinary_noise_is_not():
    guard = Guard(window=16)
    state, rng = guard.init(), np.random.default_rng(0)
    for step in range(60):
        ok, state = guard.judge(state, step, rng.normal(2.0, 0.2), rng.normal(1.0, 0.1))
        assert ok, step
    for loss, norm in ((6.0, 1.0), (2.0, 4.0), (np.inf, 1.0), (2.0, np.nan)):
        ok, after = guard.judge(state, 60, np.float32(loss), np.float32(norm))
        assert not ok and after.skipped == 1
        np.testing.assert_array_equal(after.losses, state.losses)


def test_the_average_follows_the_parameters_by_its_formula():
    trained = experiment(average=Ema(decay=0.5, warmup=4))
    states = [run(trained, steps=n, devices=1)[1] for n in (1, 2, 3)]
    start = run(trained, steps=0, devices=1)[1]
    average = start.params["head"]
    for d, state in zip((1 / 4, 2 / 5, 0.5), states, strict=True):
        average = d * average + (1 - d) * state.params["head"]
        np.testing.assert_allclose(state.average["head"], average, rtol=1e-5)


def test_two_objectives_add_up_by_weight():
    (metrics, *_), _ = run(experiment(), steps=1, devices=1)
    total = metrics["regress/loss"] + 0.5 * metrics["match/loss"]
    np.testing.assert_allclose(metrics["loss"], total, rtol=1e-6)


def test_no_decay_and_no_rate_scale_change_reported_numbers():
    (metrics, *_), _ = run(experiment(adamw(0.25, clip=None)), steps=1, devices=1)
    assert metrics["lr"] == 0.25
    assert metrics["grad_norm"] > 0 and metrics["param_norm"] > 0 and metrics["update_ratio"] > 0
