"""Recurrent layers against their formulas; padding, packing and decoding change nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core.errors import UserError
from mmjax.core.tokens import Live, Places, Tokens
from mmjax.decoding.generate import generate
from mmjax.decoding.state import advance, start
from mmjax.models.decoder import Decoder
from mmjax.nn.block import Block, Chain
from mmjax.nn.norms import RMSNorm
from mmjax.nn.recurrent import GRU, LSTM, AttendTell, Backward, Recurrent
from mmjax.nn.stack import Stack
from tests.decoding.conftest import PROMPTS, VOCAB, scores
from tests.decoding.conftest import parameters as decoder_parameters
from tests.drawn import applied, drawn
from tests.rows import rows_of

RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 6, 8)).astype(np.float32)
PLACES = Places.all_of("text", 2, 6).causal()
LAYERS = {"lstm": Recurrent(LSTM(8)), "gru": Recurrent(GRU(5))}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def spread(parts, segments, valid):
    """Parts of X side by side: [1 T D] and their places."""
    x = jnp.concatenate(parts, axis=1)
    segment = jnp.asarray([segments], jnp.int32)
    places = Places.all_of("text", 1, x.shape[1])
    return x, places.replace(segment=segment, valid=jnp.asarray([valid]))


def test_lstm_is_the_published_formula():
    layer = LAYERS["lstm"]
    params = drawn(layer, X, PLACES)
    p = jax.tree.map(np.asarray, params["params"])
    h = c = np.zeros((2, 8))
    expected = []
    for t in range(6):
        gates = np.einsum("bd,dsD->sbD", X[:, t], p["inputs"]["kernel"]) + p["inputs"]["bias"][:, None]
        i, f, o, g = gates + np.einsum("bd,dsD->sbD", h, p["cell"]["recurrent"])
        c = sigmoid(f + 1) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        expected.append(h)
    np.testing.assert_allclose(applied(layer)(params, X, PLACES), np.stack(expected, 1), atol=1e-5)


def test_gru_is_the_published_formula():
    layer = LAYERS["gru"]
    params = drawn(layer, X, PLACES)
    p = jax.tree.map(np.asarray, params["params"])
    h, expected = np.zeros((2, 5)), []
    for t in range(6):
        x = np.einsum("bd,dsD->sbD", X[:, t], p["inputs"]["kernel"]) + p["inputs"]["bias"][:, None]
        u = np.einsum("bd,dsD->sbD", h, p["cell"]["recurrent"])
        r, z = sigmoid(x[0] + u[0]), sigmoid(x[1] + u[1])
        h = (1 - z) * np.tanh(x[2] + r * (u[2] + p["cell"]["bias"])) + z * h
        expected.append(h @ p["out"]["kernel"] + p["out"]["bias"])
    np.testing.assert_allclose(applied(layer)(params, X, PLACES), np.stack(expected, 1), atol=1e-5)


@pytest.mark.parametrize("layer", [*LAYERS.values(), Backward(Recurrent(LSTM(8)))], ids=[*LAYERS, "backward"])
def test_padding_anywhere_and_packing_change_nothing(layer):
    params = drawn(layer, X, PLACES)
    run = applied(layer)
    one, two = (run(params, X[i : i + 1, :n], Places.all_of("text", 1, n)) for i, n in ((0, 6), (1, 4)))
    nothing = np.full((1, 2, 8), np.nan, np.float32)
    parts = [nothing, X[:1, :3], nothing, X[:1, 3:], X[1:, :4], nothing]
    real = [False] * 2 + [True] * 3 + [False] * 2 + [True] * 7 + [False] * 2
    segments = [0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 0, 0]
    x, places = spread(parts, segments, real)
    packed = run(params, x, places)[:, np.flatnonzero(real)]
    np.testing.assert_allclose(packed, jnp.concatenate([one, two], 1), atol=1e-6)

    def loss(params):
        return jnp.sum(jnp.where(places.valid[..., None], layer.apply(params, x, places), 0))

    gradient = jax.jit(jax.grad(loss))(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_backward_reads_from_the_end_and_cannot_decode():
    layer = Recurrent(LSTM(8))
    params = drawn(layer, X, PLACES)
    turned = applied(Backward(layer))({"params": {"layer": params["params"]}}, X, PLACES)
    np.testing.assert_allclose(turned, applied(layer)(params, X[:, ::-1], PLACES)[:, ::-1], atol=1e-6)
    live = Live(PLACES.valid, PLACES.block, PLACES.segment, PLACES.position, PLACES.modality, PLACES, jnp.array(0))
    with pytest.raises(UserError, match="reads the row backward cannot decode"):
        Backward(layer).apply({"params": {"layer": params["params"]}}, X, live)


@pytest.fixture(scope="module")
def decoder():
    blocks = (Block(Recurrent(LSTM(24)), norm=RMSNorm()), Block(Recurrent(GRU(32)), norm=RMSNorm()))
    model = Decoder.of("mu", VOCAB, stack=Stack(Chain(blocks), 2))
    return model, decoder_parameters(model, rows_of(PROMPTS))


def test_a_decoder_of_recurrent_blocks_generates_what_it_says_without_a_cache(decoder):
    model, params = decoder
    made = generate(model, params, rows_of(PROMPTS), steps=5)
    whole = scores(model, params, rows_of([[*p, *map(int, ids)] for p, ids in zip(PROMPTS, made.ids, strict=True)]))
    for row, prompt in enumerate(PROMPTS):
        said = whole[row, len(prompt) - 1 : len(prompt) + 4]
        np.testing.assert_array_equal(made.ids[row], said.argmax(-1))


def test_carries_go_on_by_several_ids_and_back(decoder):
    model, params = decoder
    prompt, ids = [3, 7, 1, 9], [13, 2, 27, 19, 6]
    whole = scores(model, params, rows_of([[*prompt, *ids]]))[0]
    first, state = jax.jit(lambda p: start(model, p, rows_of([prompt]), room=8, slack=2))(params)
    step = jax.jit(lambda p, state, ids: advance(model, p, state, ids))
    _, wrong = step(params, state, jnp.array([[5, 5, 5]]))
    some, state = step(params, wrong.back(jnp.array(3)), jnp.array([ids[:3]]))
    rest, _ = step(params, state, jnp.array([ids[3:]]))
    np.testing.assert_allclose(np.concatenate([first[:, None], some, rest], 1)[0], whole[3:], atol=1e-5)


def test_attend_tell_takes_the_steps_of_the_paper():
    """One place: equations 1-6 and 13, the gate of section 4.2.1, the start of section 3.1.2, equation 7."""
    layer = AttendTell(LSTM(4), scores=3)
    memory = Tokens(jnp.asarray(RNG.normal(size=(1, 5, 6)), jnp.float32), Places.all_of("image", 1, 5))
    x, places = X[:1, :1], Places.all_of("text", 1, 1)
    params = drawn(layer, x, places, memory)
    out, looks = jax.jit(lambda *inputs: layer.apply(*inputs, method="tell"))(params, x, places, memory)
    p, a, y = jax.tree.map(np.asarray, params["params"]), np.asarray(memory.x[0]), x[0, 0]
    h, c = np.tanh(np.einsum("d,dsD->sD", a.mean(0), p["start"]["kernel"]) + p["start"]["bias"])
    asks = h @ p["look"]["ask"]["kernel"] + p["look"]["ask"]["bias"]
    e = np.tanh(a @ p["keys"]["kernel"] + asks) @ p["look"]["score"]["kernel"][:, 0]
    alpha = np.exp(e) / np.exp(e).sum()
    z = sigmoid(h @ p["look"]["gate"]["kernel"] + p["look"]["gate"]["bias"]) * (alpha @ a)
    gates = np.einsum("d,dsD->sD", y, p["inputs"]["kernel"]) + p["inputs"]["bias"]
    gates = gates + np.einsum("d,dsD->sD", z, p["look"]["context"]["kernel"])
    i, f, o, g = gates + np.einsum("d,dsD->sD", h, p["look"]["cell"]["recurrent"])
    c = sigmoid(f + 1) * c + sigmoid(i) * np.tanh(g)
    h = sigmoid(o) * np.tanh(c)
    told = y + h @ p["tell_state"]["kernel"] + p["tell_state"]["bias"] + z @ p["tell_context"]["kernel"]
    np.testing.assert_allclose(looks[0, 0], alpha, atol=1e-6)
    np.testing.assert_allclose(out[0, 0], told, atol=1e-5)
    with pytest.raises(UserError, match="its fusion must be CrossFusion"):
        layer.apply(params, x, places)
