"""The vocabulary loss: every execution is the formula, in values and gradients, on one device and on many."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mmjax.core.errors import UserError
from mmjax.core.layout import Layout
from mmjax.ops.crossentropy import Auto, Dense, GradientInForward, Recompute, cross_entropy
from mmjax.ops.vocabulary import Form
from mmjax.training.cost import flops

ROWS, LENGTH, WIDTH, VOCAB, REAL = 4, 6, 16, 320, 301
CHUNKED = [Recompute(128), GradientInForward(places=5, otherwise=Recompute(200))]
EXECUTIONS = [Dense(), *CHUNKED, Auto(scores=0)]


def inputs(seed=0, scale=1.0, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(ROWS, LENGTH, WIDTH)).astype(np.float32)
    table = rng.normal(size=(VOCAB, WIDTH), scale=scale).astype(np.float32)
    bias = rng.normal(size=VOCAB).astype(np.float32)
    target = rng.integers(0, REAL, (ROWS, LENGTH))
    target[0, :2] = -1
    return (jnp.asarray(x, dtype), jnp.asarray(table, dtype), jnp.asarray(bias, dtype)), jnp.asarray(target)


def formula(x, table, bias, target, form):
    """Scores of all words, and optax's cross entropy on them."""
    z = (x @ table.T + bias)[..., : form.vocab]
    z = z if form.cap is None else form.cap * jnp.tanh(z / form.cap)
    nll = optax.softmax_cross_entropy_with_integer_labels(z, jnp.maximum(target, 0))
    real = target >= 0
    log_z = jax.nn.logsumexp(z, axis=-1)
    return jnp.where(real, nll, 0), jnp.where(real, log_z, 0), real & (z.argmax(-1) == target)


def ours(execution, form, weight=None):
    def run(x, table, bias, target):
        out = cross_entropy(x, table, target, bias=bias, weight=weight, form=form, execution=execution)
        return out.nll, out.log_z, out.hit

    return run


def mix(rng_seed=3):
    """Numbers that multiply each place's nll and log_z: nothing that a loss of the forward pass could know."""
    return jnp.asarray(np.random.default_rng(rng_seed).normal(size=(2, ROWS, LENGTH)), jnp.float32)


def slopes(function, parts, target, how):
    return jax.jit(jax.grad(lambda parts: how(*function(*parts, target)[:2])))(parts)


def assert_close(got, expected, tolerance=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), got, expected)


@pytest.mark.parametrize("form", [Form(VOCAB), Form(REAL, cap=3.0)], ids=["plain", "padded and capped"])
@pytest.mark.parametrize("execution", EXECUTIONS, ids=lambda e: type(e).__name__)
def test_every_execution_is_the_formula_whatever_gradient_flows_into_each_place(execution, form):
    parts, target = inputs()

    def how(nll, log_z):
        return jnp.sum(mix()[0] * nll + mix()[1] * log_z**2)

    expected = formula(*parts, target, form)
    assert_close(jax.jit(ours(execution, form))(*parts, target), expected)
    found = slopes(ours(execution, form), parts, target, how)
    assert_close(found, slopes(lambda *a: formula(*a, form), parts, target, how))
    assert not np.any(found[0][0, :2]), "places without a target have no gradient"
    assert not np.any(found[1][form.vocab :]), "nor does the padding of the table"


@pytest.mark.parametrize("asked", [0.0, 1e-2], ids=["nll", "z-loss"])
def test_gradients_made_in_the_forward_pass_are_those_of_the_weighted_mean(asked):
    """Whether the objective's z-loss is the one that was foreseen (the saved gradients serve) or not (they do not)."""
    parts, target = inputs()
    weight = jnp.abs(mix()[0]) * (mix()[1] > -0.5)
    form = Form(REAL)

    def how(nll, log_z):
        return 0.7 * jnp.sum(weight * (nll + asked * log_z**2)) / jnp.sum(weight)

    expected = slopes(lambda *a: formula(*a, form), parts, target, how)
    for foreseen in (0.0, 1e-2):
        execution = GradientInForward(places=7, z_loss=foreseen)
        assert_close(slopes(ours(execution, form, weight), parts, target, how), expected)


def test_what_each_execution_costs():
    """Products of N x V x D, three of which (scores, two gradients) are the least there is."""
    parts, target = inputs()
    parts = (parts[0], parts[1][:256], parts[2][:256])  # two chunks of 128 fit exactly
    one = 2 * ROWS * LENGTH * 256 * WIDTH

    def cost(execution, how):
        run = ours(execution, Form(256))
        return sum(flops(how(lambda parts: jnp.sum(run(*parts, target)[0])), parts).values()) / one

    for execution in (Dense(), Recompute(128), GradientInForward(places=8, otherwise=Recompute(128))):
        assert cost(execution, lambda f: f) == 1
    assert cost(Dense(), jax.grad) == 3
    assert cost(Recompute(128), jax.grad) == 4
    # Three, and in the branch that is not taken when the loss is the weighted sum, the three of a second look.
    assert cost(GradientInForward(places=8, otherwise=Recompute(128)), jax.grad) == 6


def test_recompute_holds_a_chunk_of_the_scores_at_a_time():
    x, table = jax.ShapeDtypeStruct((1024, 32), jnp.float32), jax.ShapeDtypeStruct((32_000, 32), jnp.float32)
    target = jax.ShapeDtypeStruct((1024,), jnp.int32)

    def temporary(execution):
        def loss(x, table, target):
            return jnp.sum(cross_entropy(x, table, target, execution=execution).nll)

        compiled = jax.jit(jax.grad(loss, (0, 1))).lower(x, table, target).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    every_score = 1024 * 32_000 * 4
    assert every_score <= temporary(Dense()) < 1.01 * every_score  # once, its gradient in its place
    assert temporary(Recompute(1024)) < every_score / 8
    assert temporary(GradientInForward(64)) < every_score / 4


LAYOUTS = {
    "data": Layout(data=8),
    "tensor": Layout(data=2, fsdp=2, tensor=2),
    "context": Layout(context=2, tensor=4),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("execution", [Dense(), *CHUNKED], ids=lambda e: type(e).__name__)
def test_split_over_devices_the_loss_is_that_of_one(execution, layout):
    (x, table, bias), target = inputs()
    x, target = (jnp.concatenate([part, part[::-1]]) for part in (x, target))  # eight rows
    form, weight = Form(REAL, cap=5.0), jnp.abs(jnp.concatenate([mix()[0], mix()[1]]))

    def step(parts, target):
        nll, log_z, hit = ours(execution, form, weight)(*parts, target)
        return jnp.sum(weight * nll) / jnp.sum(weight), (nll, log_z, hit)

    run = jax.value_and_grad(step, has_aux=True)
    expected = jax.jit(run)((x, table, bias), target)
    mesh = layout.mesh()
    with layout.use(mesh):
        rows, words = layout.batch_sharding(mesh), jax.NamedSharding(mesh, jax.P("tensor"))
        placed = tuple(map(jax.device_put, (x, table, bias), (rows, words, words)))
        got = jax.jit(run)(placed, jax.device_put(target, rows))
    assert_close(got, expected)


def test_of_equal_scores_the_first_is_the_guess():
    """A table of zeros knows nothing: it is right where the target is entry 0, not everywhere."""
    x, target = jnp.ones((3, WIDTH)), jnp.array([0, 5, 129])
    for execution in (Dense(), *CHUNKED):
        out = cross_entropy(x, jnp.zeros((VOCAB, WIDTH)), target, execution=execution)
        assert out.hit.tolist() == [True, False, False]
        np.testing.assert_allclose(out.nll, np.log(VOCAB), rtol=1e-6)


@pytest.mark.parametrize("execution", [Dense(), *CHUNKED], ids=lambda e: type(e).__name__)
def test_bfloat16_is_summed_in_float32_and_large_scores_stay_finite(execution):
    parts, target = inputs(scale=30.0, dtype=jnp.bfloat16)
    exact = formula(*(x.astype(jnp.float32) for x in parts), target, Form(VOCAB))
    got = ours(execution, Form(VOCAB))(*parts, target)
    assert got[0].dtype == jnp.float32
    np.testing.assert_allclose(got[0], exact[0], rtol=1e-4, atol=1e-3)
    found = slopes(ours(execution, Form(VOCAB)), parts, target, lambda nll, _: jnp.mean(nll))
    wide = tuple(x.astype(jnp.float32) for x in parts)
    for mine, true in zip(
        found, slopes(lambda *a: formula(*a, Form(VOCAB)), wide, target, lambda nll, _: jnp.mean(nll)), strict=True
    ):
        assert mine.dtype == jnp.bfloat16
        np.testing.assert_allclose(mine.astype(jnp.float32), true, rtol=0.03, atol=0.01 * float(np.abs(true).max()))


def test_an_id_that_the_vocabulary_does_not_have_makes_the_loss_nan():
    (x, table, _), _ = inputs()
    target = jnp.full((ROWS, LENGTH), REAL)
    for execution in (Dense(), *CHUNKED):
        assert np.all(np.isnan(cross_entropy(x, table, target, form=Form(REAL), execution=execution).nll))


def test_shapes_that_do_not_fit_are_refused():
    (x, table, bias), target = inputs()
    with pytest.raises(UserError, match=r"table must be \[V 16\], one vector per entry; got \(16, 320\)"):
        cross_entropy(x, table.T, target)
    with pytest.raises(UserError, match=r"offset must be \[320\]; got \[319\]"):
        cross_entropy(x, table, target, bias=bias[1:])
    with pytest.raises(UserError, match="a table of 320 entries cannot hold a vocabulary of 321"):
        cross_entropy(x, table, target, form=Form(321))
    with pytest.raises(UserError, match=r"one per place, \(4, 6\); got \(4, 5\)"):
        cross_entropy(x, table, target[:, 1:])
