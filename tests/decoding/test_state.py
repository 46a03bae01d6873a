"""How a model is laid out for decoding changes what it costs, and nothing that it says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core.config import override
from mmjax.core.pytrees import flatten_names
from mmjax.core.tokens import Places, Tokens
from mmjax.decoding.state import Fixed, advance, asked, start
from mmjax.nn import cache
from mmjax.nn.attention import Attention
from mmjax.nn.block import Block, Chain
from mmjax.nn.stack import Stack, apart, at, placed, stacks_called
from mmjax.ops.few import FEW, LARGE
from tests.drawn import drawn
from tests.models import seq2seq_toy
from tests.rows import rows_of

STACKS = {
    "plain": Stack(Block(Attention(2)), 3),
    "seeing": Stack(Block(Attention(2), cross=Attention(2)), 2),
    "nested": Stack(Stack(Block(Attention(2)), 2), 2),
    "two": Chain((Stack(Block(Attention(2)), 2), Stack(Block(Attention(2), cross=Attention(2)), 2))),
}
PATHS = {"two": [("blocks_0",), ("blocks_1",)]}


@pytest.mark.parametrize("name", STACKS)
def test_layers_that_lie_apart_say_what_the_stack_says(name):
    model, rng = STACKS[name], np.random.default_rng(0)
    x, memory = (jnp.asarray(rng.normal(size=(2, length, 8)), jnp.float32) for length in (5, 3))
    given = x, Places.all_of("text", 2, 5).causal(), Tokens(memory, Places.all_of("image", 2, 3))
    params = drawn(model, *given)["params"]
    with stacks_called() as paths:
        whole = model.apply({"params": params}, *given)
    assert paths == PATHS.get(name, [()])
    for path in paths:
        stacked = at(params, path)
        params = placed(params, path, apart(stacked))
        assert set(at(params, path)) == {f"layer_{i}" for i in range(len(jax.tree.leaves(stacked)[0]))}
    np.testing.assert_allclose(model.apply({"params": params}, *given), whole, atol=1e-5)


def test_what_is_not_there_is_left_alone():
    tree = {"stack": {"block": {"kernel": np.arange(6).reshape(2, 3)}}, "norm": {"scale": 1}}
    assert apart(at(tree, ("decoder", "stack"))) == {}
    moved = placed(tree, ("stack",), apart(at(tree, ("stack",))))
    assert moved["norm"] == {"scale": 1} and "block" in tree["stack"]
    np.testing.assert_array_equal(moved["stack"]["layer_1"]["kernel"], [3, 4, 5])


def test_a_step_on_a_cpu_does_not_loop_over_stacked_layers(each):
    model, params = each
    batch = asked(model, rows_of([[3, 1, 4], [1, 5]]), 2)
    ids = jnp.ones((2, 1), jnp.int32)
    state = jax.eval_shape(lambda p: start(model, p, batch, room=2), params)[1]
    step = jax.jit(lambda p, state: advance(model, p, state, ids)).lower(params, state).as_text()
    assert "stablehlo.while" not in step and "stablehlo.dot_general" in step


def test_a_few_rows_on_a_cpu_read_large_matrices_outputs_first_and_nothing_else_of_them(each, monkeypatch):
    monkeypatch.setattr(cache, "LARGE", 1)
    model, params = each

    def held(rows, abreast):
        batch = asked(model, rows_of([[3, 1, 4]] * rows), 2)
        state = jax.eval_shape(lambda p: start(model, p, batch, room=2, abreast=abreast), params)[1]
        return {name.split("/")[-1] for name in flatten_names(state.layers)}, bool(state.laid)

    kernels, laid = held(2, 1)
    assert "kernel" not in kernels and laid and "scale" in kernels
    assert held(1, 4) == held(1, 1) == (kernels, True)
    for rows, abreast, large in ((2, 0, 1), (FEW + 1, 1, 1), (2, 1, LARGE)):
        monkeypatch.setattr(cache, "LARGE", large)
        kernels, laid = held(rows, abreast)
        assert "kernel" in kernels and not laid


def test_matrices_that_steps_do_not_read_are_not_laid(monkeypatch):
    """Keys and values of a memory are made once, in the prefill."""
    monkeypatch.setattr(cache, "LARGE", 1)
    model, params = seq2seq_toy.MODELS["whisper"], seq2seq_toy.parameters("whisper")
    batch = asked(model, seq2seq_toy.fake("whisper"), 2)
    state = jax.eval_shape(lambda p: start(model, p, batch, room=2, abreast=1), params)[1]
    crossing = {name.split("/")[-2] for name in flatten_names(state.laid) if "cross" in name}
    assert crossing == {"query", "out"}


@pytest.mark.parametrize("name", ["whisper", "unified_io", "show_attend_tell", "coca"])
def test_models_of_models_decode_in_full_precision_on_a_cpu(name):
    model, batch = seq2seq_toy.MODELS[name], seq2seq_toy.fake(name)
    half = override(model, {"decoder.dtypes.compute": "bfloat16", "decoder.dtypes.params": "bfloat16"})
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), seq2seq_toy.parameters(name))
    fixed, batch = Fixed(half), asked(half, batch, 2)

    def first(params, batch):
        model, params = fixed.with_parameters(params)
        logits, state = start(model, params, batch, room=2)
        return advance(model, params, state, jnp.argmax(logits, -1)[:, None])[0]

    text = jax.jit(first).lower(params, batch).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert products and not any("bf16" in line for line in products)


def test_a_model_without_narrow_formats_stays_what_it_is():
    fixed = Fixed(seq2seq_toy.MODELS["coca"])
    assert fixed.with_parameters({})[0] == fixed.model
