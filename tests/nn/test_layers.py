"""Layers against hand-written formulas, and the properties a stack must keep."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core.errors import UserError
from mmjax.core.parameters import Declared, is_declared, unbox
from mmjax.core.pytrees import flatten_names
from mmjax.core.tokens import Places, Tokens
from mmjax.nn.attention import Attention
from mmjax.nn.block import Block, Residual
from mmjax.nn.embeddings import LearnedGrid, LearnedPositions, SinCosGrid
from mmjax.nn.feedforward import FeedForward, GatedFeedForward
from mmjax.nn.linear import Linear
from mmjax.nn.norms import RMSNorm
from mmjax.nn.pooling import AttentionPool, First, Last, Mean, WeightedMean
from mmjax.nn.sizes import SIZES, size_of, with_patch
from mmjax.nn.stack import KeepAll, KeepNamed, KeepNothing, Stack
from mmjax.ops.rotary import Rotary
from tests.drawn import applied, drawn

X = np.random.default_rng(0).normal(size=(2, 6, 16)).astype(np.float32)

POOLS = [First(), Last(), Mean(), WeightedMean(2), AttentionPool(2)]


def boxed(module, *inputs):
    return jax.jit(lambda key: module.init({"params": key}, *inputs))(jax.random.key(0))


def run(module, *inputs):
    """What a fresh module makes of inputs."""
    return jax.jit(lambda key: module.init_with_output({"params": key}, *inputs)[0])(jax.random.key(0))


def test_linear_is_the_einsum_it_names_and_declares_its_dimensions():
    layer = Linear("btd,dhk->bhtk", (4, 8))
    params = boxed(layer, X)["params"]
    assert params["kernel"].dims == ("width", "heads", "head_dim") and params["bias"].dims == ("heads", "head_dim")
    plain = unbox(params)
    plain["bias"] = jnp.arange(32.0).reshape(4, 8)
    expected = np.einsum("btd,dhk->bhtk", X, plain["kernel"]) + np.arange(32.0).reshape(4, 1, 8)
    np.testing.assert_allclose(applied(layer)({"params": plain}, X), expected, rtol=1e-4, atol=1e-5)


def test_linear_starts_with_unit_variance_and_gain_zero_starts_at_zero():
    x = np.random.default_rng(0).normal(size=(64, 512)).astype(np.float32)
    assert np.std(run(Linear("bd,de->be", (256,)), x)) == pytest.approx(1, rel=0.05)
    assert not np.any(run(Linear("bd,de->be", (256,), gain=0.0), x))


def test_linear_names_the_equation_when_the_input_does_not_fit():
    with pytest.raises(UserError, match="btd,dm->btm takes an input of 3 dimensions"):
        run(Linear("btd,dm->btm", (4,)), X[0])


def test_branches_with_gain_zero_start_as_nothing():
    block = Block(Attention(2, gain=0.0), FeedForward(32, gain=0.0))
    np.testing.assert_array_equal(run(block, X), X)
    np.testing.assert_array_equal(run(Residual(GatedFeedForward(32, gain=0.0)), X), X)


def test_gated_feedforward_is_the_published_product():
    layer = GatedFeedForward(mlp=32)
    p = unbox(boxed(layer, X))["params"]
    gate, up = X @ p["gate"]["kernel"], X @ p["up"]["kernel"]
    expected = (jax.nn.silu(gate) * up) @ p["down"]["kernel"]
    np.testing.assert_allclose(applied(layer)({"params": p}, X), expected, atol=1e-4)
    assert run(GatedFeedForward(), X).shape == X.shape


def test_grouped_heads_equal_full_heads_with_shared_keys():
    grouped, full = Attention(heads=4, kv_heads=2), Attention(heads=4)
    params = unbox(boxed(grouped, X))["params"]
    wide = {**params}
    for name in ("key", "value"):
        wide[name] = {
            "kernel": jnp.repeat(params[name]["kernel"], 2, axis=1),
            "bias": jnp.repeat(params[name]["bias"], 2, 0),
        }
    np.testing.assert_allclose(applied(grouped)({"params": params}, X), applied(full)({"params": wide}, X), atol=1e-5)


def test_qk_norm_makes_attention_blind_to_the_size_of_queries():
    layer = Attention(heads=2, qk_norm=RMSNorm(), bias=False)
    params = unbox(boxed(layer, X))["params"]
    louder = {**params, "query": {"kernel": 7 * params["query"]["kernel"]}}
    np.testing.assert_allclose(applied(layer)({"params": louder}, X), applied(layer)({"params": params}, X), atol=1e-4)


def test_rotary_attention_sees_distances_not_positions():
    layer, places = Attention(heads=2, rotary=Rotary()), Places.all_of("text", 2, 6)
    params = unbox(boxed(layer, X, places))
    later = dataclasses.replace(places, position=places.position + 11)
    np.testing.assert_allclose(applied(layer)(params, X, places), applied(layer)(params, X, later), atol=1e-5)


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(UserError, match="3 heads must divide the width 16"):
        run(Attention(heads=3), X)


@pytest.fixture(scope="module")
def unrolled():
    """Parameters of a stack of three; the value and gradient of its blocks in turn."""
    one = Block(Attention(2), FeedForward(32))
    params = drawn(Stack(one, depth=3), X)["params"]

    def value(params):
        x = jnp.asarray(X)
        for i in range(3):
            x = one.apply({"params": jax.tree.map(lambda leaf, i=i: leaf[i], params["block"])}, x)
        return jnp.sum(jnp.sin(x))

    return params, jax.jit(jax.value_and_grad(value))(params)


@pytest.mark.parametrize("keep", [KeepAll(), KeepNamed(), KeepNothing()], ids=str)
def test_a_scanned_stack_is_its_blocks_in_turn(keep, unrolled):
    stack = Stack(Block(Attention(2), FeedForward(32)), depth=3, keep=keep)
    params, (b, db) = unrolled
    a, da = jax.jit(jax.value_and_grad(lambda p: jnp.sum(jnp.sin(stack.apply({"params": p}, X)))))(params)
    np.testing.assert_allclose(a, b, rtol=1e-5)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-4), da, db)


def test_layers_of_a_stack_start_different_and_know_their_layer_dimension():
    params = boxed(Stack(Block(Attention(2)), depth=3), X)["params"]
    for name, leaf in flatten_names(params, is_leaf=is_declared).items():
        assert isinstance(leaf, Declared) and leaf.dims[0] == "layers" and leaf.value.shape[0] == 3, name
    kernel = params["block"]["attention"]["query"]["kernel"].value
    assert not np.allclose(kernel[0], kernel[1])


def test_intermediates_are_captured_per_layer_when_asked():
    stack = Stack(Block(Attention(2)), depth=3)
    _, state = jax.jit(lambda params: stack.apply(params, X, mutable=["intermediates"]))(drawn(stack, X))
    shapes = {leaf.shape for leaf in jax.tree.leaves(state["intermediates"])}
    assert shapes == {(3, *X.shape)}


def test_dropout_differs_by_layer_and_is_off_in_evaluation():
    stack = Stack(Block(Attention(2), FeedForward(32, dropout=0.5)), depth=2)
    params = drawn(stack, X)
    still = applied(stack)(params, X)
    train = jax.jit(lambda rng: stack.apply(params, X, train=True, rngs={"dropout": rng}))
    noisy = [train(jax.random.key(i)) for i in (0, 0, 1)]
    np.testing.assert_array_equal(noisy[0], noisy[1])
    assert not np.allclose(noisy[0], noisy[2]) and not np.allclose(noisy[0], still)


@pytest.mark.parametrize("pool", POOLS, ids=["first", "last", "mean", "weighted", "attention"])
def test_pools_are_blind_to_padding(pool):
    tokens = Tokens(jnp.asarray(X), Places.all_of("text", 2, 6))
    params, run = drawn(pool, tokens), applied(pool)
    alone = run(params, tokens)
    noise = Tokens(
        jnp.full((2, 3, 16), 9.0), dataclasses.replace(Places.all_of("text", 2, 3), valid=jnp.zeros((2, 3), bool))
    )
    for order in ([tokens, noise], [noise, tokens]):
        np.testing.assert_allclose(run(params, Tokens.concat(order)), alone, atol=1e-5)


@pytest.mark.parametrize("pool", POOLS, ids=["first", "last", "mean", "weighted", "attention"])
def test_pools_keep_the_samples_of_a_row_apart(pool):
    whole = Tokens(jnp.asarray(X), Places.all_of("text", 2, 6))
    params, run = drawn(pool, whole), jax.jit(pool.apply, static_argnums=2)
    segment = jnp.array([[1, 1, 1, 1, 2, 2], [1, 2, 2, 2, 2, 2]])
    packed = run(params, Tokens(whole.x, whole.places.replace(segment=segment)), 2)
    for row, sample in np.ndindex(2, 2):
        mine = np.flatnonzero(segment[row] == sample + 1)
        alone = Tokens(whole.x[row : row + 1, mine], Places.all_of("text", 1, len(mine)))
        np.testing.assert_allclose(packed[row, sample], run(params, alone, 1)[0, 0], atol=1e-5)


def test_first_and_last_pick_tokens_and_mean_of_nothing_is_zero():
    places = Places.all_of("text", 2, 6)
    np.testing.assert_array_equal(run(First(), Tokens(jnp.asarray(X), places))[:, 0], X[:, 0])
    np.testing.assert_array_equal(run(Last(), Tokens(jnp.asarray(X), places))[:, 0], X[:, -1])
    nothing = dataclasses.replace(places, valid=jnp.zeros((2, 6), bool))
    assert not np.any(run(Mean(), Tokens(jnp.asarray(X), nothing)))


def test_positions_tell_places_apart_and_long_rows_are_refused():
    position = jnp.broadcast_to(jnp.arange(6), (2, 6))
    y = run(LearnedPositions(8), jnp.zeros_like(X), position)
    assert len(np.unique(np.round(np.asarray(y[0]), 6), axis=0)) == 6
    with pytest.raises(UserError, match="position table has 4 entries; the row has 6"):
        run(LearnedPositions(4), X, position)
    grid = run(SinCosGrid(), jnp.zeros((1, 6, 16)), (2, 3))
    assert len(np.unique(np.round(np.asarray(grid[0]), 6), axis=0)) == 6
    assert run(LearnedGrid((4, 4)), jnp.zeros((1, 6, 16)), (2, 3)).shape == (1, 6, 16)


def test_sizes_are_named_and_typos_get_the_nearest():
    assert with_patch("B/16") == (SIZES["B"], 16)
    with pytest.raises(UserError, match="So400m"):
        size_of("so400")
    with pytest.raises(UserError, match="SIZE/PATCH"):
        with_patch("B16")
