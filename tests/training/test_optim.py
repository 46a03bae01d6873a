"""Optimizers: they learn, groups hold, and patterns that match nothing are told."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from training_toy import experiment

from mmjax.core.errors import UserError
from mmjax.core.layout import Layout
from mmjax.core.parameters import Declared, unbox
from mmjax.core.pytrees import flatten_names
from mmjax.training.optim import Group, adafactor, adamw, frozen, lion, muon
from mmjax.training.rules import Adam, Lion, matrix
from mmjax.training.schedules import Constant, ReduceOnPlateau
from mmjax.training.state import abstract_state, build_update, new_state
from mmjax.training.step import make_step

DECLARED = {
    "head": {"kernel": Declared(jax.ShapeDtypeStruct((4, 6), jnp.float32), ("width", "embed"))},
    "stack": {
        "kernel": Declared(jax.ShapeDtypeStruct((3, 4, 2, 2), jnp.float32), ("layers", "width", "heads", "head_dim")),
        "bias": Declared(jax.ShapeDtypeStruct((3, 4), jnp.float32), ("layers", "width")),
    },
}
PARAMS = jax.tree.map(lambda x: jnp.full(x.shape, 2.0), unbox(DECLARED))
GRADS = jax.tree.map(lambda x: jax.random.normal(jax.random.key(x.size), x.shape), PARAMS)


def steps(optimizer, count=1, total=100, loss=1.0):
    """(changes of the last of `count` steps, optimizer state), the parameters held where they are."""
    update = optimizer.build(DECLARED, total)
    state = update.init(PARAMS)
    for step in range(count):
        changes, state = update(GRADS, state, PARAMS, step=jnp.int32(step), loss=jnp.float32(loss))
    return changes, state, update


@pytest.mark.parametrize(
    "optimizer",
    [adamw(1e-2), lion(3e-3), adafactor(1e-2), muon(1e-2), adamw(ReduceOnPlateau(Constant(1e-2)))],
    ids=["adamw", "lion", "adafactor", "muon", "plateau"],
)
def test_every_optimizer_learns_and_its_state_fits_the_layout(optimizer):
    trained = experiment(optimizer, layout=Layout(data=1, fsdp=1, tensor=2, fsdp_floor=8))
    mesh, update = trained.layout.mesh(jax.devices()[:2]), build_update(trained)
    with trained.layout.use(mesh):
        state = new_state(trained, update, abstract_state(trained, update, mesh))
        step, batch = jax.jit(make_step(trained, update)), next(trained.data.batches())
        losses = []
        for _ in range(20):
            state, metrics = step(state, batch)
            losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.8 * losses[0], losses
    sharded = [x for x in jax.tree.leaves(state.opt_state) if not x.sharding.is_fully_replicated]
    assert sharded or optimizer.rule == adafactor(1.0).rule


def test_adamw_is_the_published_formula():
    changes, _, _ = steps(adamw(0.1, b1=0.9, b2=0.99, decay=0.5, clip=None), count=2)
    kernel, bias = np.asarray(GRADS["head"]["kernel"]), np.asarray(GRADS["stack"]["bias"])
    direction = kernel / (np.abs(kernel) + 1e-8)  # equal gradients: bias-corrected moments are g and g^2
    np.testing.assert_allclose(changes["head"]["kernel"], -0.1 * (direction + 0.5 * 2.0), atol=1e-6)
    np.testing.assert_allclose(changes["stack"]["bias"], -0.1 * np.sign(bias), rtol=1e-4)  # no decay on biases


def test_frozen_parameters_do_not_move_and_have_no_moments():
    trained = experiment(adamw(1e-2, decay=0.1, groups=(frozen("stack/.*"), frozen("table"))))
    mesh, update = trained.layout.mesh(jax.devices()[:1]), build_update(trained)
    state = new_state(trained, update, abstract_state(trained, update, mesh))
    after, metrics = jax.jit(make_step(trained, update))(state, next(trained.data.batches()))
    before, moved = flatten_names(state.params), flatten_names(after.params)
    for name in before:
        same = np.array_equal(before[name], moved[name])
        assert same == (name.startswith("stack") or name == "table"), name
    assert not [name for name in flatten_names(after.opt_state) if "stack" in name or "table" in name]
    free = experiment(adamw(1e-2))
    _, whole = jax.jit(make_step(free))(new_state(free, u := build_update(free), abstract_state(free, u, mesh)),
                                        next(free.data.batches()))  # fmt: skip
    assert metrics["grad_norm"] < whole["grad_norm"]  # the frozen gradients do not count


def test_the_first_group_that_matches_counts():
    groups = (Group(".*/bias", lr_scale=0.5, decay=1.0), Group("stack/.*", lr_scale=0.1, rule=Lion()), Group(".*", 2.0))
    changes, state, _ = steps(adamw(0.1, clip=None, groups=groups))
    np.testing.assert_allclose(changes["stack"]["bias"], -0.05 * (np.sign(GRADS["stack"]["bias"]) + 2.0), rtol=1e-4)
    np.testing.assert_allclose(changes["stack"]["kernel"], -0.01 * np.sign(GRADS["stack"]["kernel"]), rtol=1e-4)
    np.testing.assert_allclose(changes["head"]["kernel"], -0.2 * np.sign(GRADS["head"]["kernel"]), rtol=1e-4)
    second_moments = [name for name in flatten_names(state) if "/nu/" in name]
    assert sorted(name.split("/nu/")[1] for name in second_moments) == ["head/kernel", "stack/bias"]


def test_decay_goes_where_it_is_told():
    everywhere = dataclasses.replace(adamw(0.1, clip=None, decay=0.5), decay_on="stack/.*")
    plain, _, _ = steps(adamw(0.1, clip=None))
    changes, _, _ = steps(everywhere)
    np.testing.assert_array_equal(changes["head"]["kernel"], plain["head"]["kernel"])
    np.testing.assert_allclose(changes["stack"]["bias"], plain["stack"]["bias"] - 0.1 * 0.5 * 2.0, atol=1e-6)


def test_gradients_are_clipped_to_a_global_norm():
    small = jax.tree.map(lambda g: g / optax.global_norm(GRADS) * 0.25, GRADS)
    clipped, _, _ = steps(dataclasses.replace(adafactor(0.1), rule=Adam(eps=1.0), clip=0.25))
    update = dataclasses.replace(adafactor(0.1), rule=Adam(eps=1.0), clip=None).build(DECLARED, 100)
    direct, _ = update(small, update.init(PARAMS), PARAMS, step=jnp.int32(0), loss=jnp.float32(1))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), clipped, direct)


def test_muon_orthogonalises_each_layer_and_leaves_the_rest_to_adam():
    changes, _, _ = steps(muon(1.0, clip=None))
    for layer in np.asarray(changes["stack"]["kernel"]).reshape(3, 4, 4):
        values = np.linalg.svd(layer, compute_uv=False)
        assert (
            values.max() < 1.4 * 0.2 * 2 and values.min() > 0.4 * 0.2 * 2
        )  # rms 0.2 * sqrt(4), singular values near 1
    np.testing.assert_allclose(changes["stack"]["bias"], -np.sign(GRADS["stack"]["bias"]), rtol=1e-4)


def test_a_group_may_follow_another_rule_than_muon():
    changes, _, _ = steps(muon(0.1, clip=None, groups=(Group("head/.*", rule=Adam()),)))
    adam, _, _ = steps(adamw(0.1, clip=None))
    muon_alone, _, _ = steps(muon(0.1, clip=None))
    np.testing.assert_allclose(changes["head"]["kernel"], adam["head"]["kernel"], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(changes["stack"]["kernel"], muon_alone["stack"]["kernel"], rtol=1e-5, atol=1e-7)
    assert not np.allclose(muon_alone["head"]["kernel"], adam["head"]["kernel"], rtol=1e-2)


def test_what_counts_as_a_matrix():
    assert matrix(("layers", "heads", "head_dim", "width")) == ((1, 2), (3,))
    assert matrix(("width", "stack", "kv_heads", "head_dim")) == ((0,), (2, 3))
    assert matrix(("layers", "heads", "head_dim")) is None
    assert matrix(("vocab", "width")) is None and matrix(("width",)) is None


def test_the_rate_falls_on_a_plateau_and_the_log_says_so():
    optimizer = adamw(ReduceOnPlateau(Constant(0.1), factor=0.5, patience=2, window=2), clip=None)
    first, state, update = steps(optimizer, count=2)
    np.testing.assert_allclose(update.rate(state, 2), 0.1, rtol=1e-6)
    later, state, _ = steps(optimizer, count=6)  # three windows of the same loss: the first was the best, two are not
    np.testing.assert_allclose(update.rate(state, 6), 0.05, rtol=1e-6)
    np.testing.assert_allclose(later["stack"]["bias"], first["stack"]["bias"] / 2, rtol=1e-4)


def test_patterns_that_match_nothing_are_told_together_with_the_nearest_parameter():
    wrong = adamw(0.1, decay_on="hed/kernel", groups=(Group("stack/kernal"), frozen(".*")))
    with pytest.raises(UserError) as error:
        wrong.build(DECLARED, 10)
    message = str(error.value)
    assert "'hed/kernel' matches no parameter" in message and "did you mean head/kernel" in message
    assert "'stack/kernal' matches no parameter" in message and "stack/kernel" in message
    assert "every parameter is frozen" in message
