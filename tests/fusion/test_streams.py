"""Streams that look at each other: what each published layer lets through, and that absent modalities are nothing."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core.errors import UserError
from mmjax.core.tokens import Tokens
from mmjax.fusion.streams import Apart, Bottleneck, BottleneckLayer, CoAttention, Guided, Streams
from mmjax.nn.attention import Attention
from mmjax.nn.block import Block, Chain
from mmjax.nn.stack import KeepAll, Stack
from tests.fusion.fusion_toy import assert_same, items, parameters, real, run, spoiled, values_and_gradient

PICTURE, WORDS = items("image", [[1, 2, 0]], 2), items("text", [[1] * 4 + [2] * 3], 1, seed=1)
PAIR = {"image": PICTURE, "text": WORDS}
THREE = PAIR | {"audio": items("audio", [[2]], 3, seed=2)}  # the first sample has no sound

block = Block(Attention(2))
FUSIONS = {
    "ViLBERT": Streams(Stack(Chain((CoAttention(Attention(2)), Apart(block))), 2, KeepAll())),
    "MCAN": Guided("text", Stack(block, 2, KeepAll()), Stack(Block(Attention(2), cross=Attention(2)), 2, KeepAll())),
    "MBT": Bottleneck(Stack(BottleneckLayer(block), 2, KeepAll()), latents=3),
}


@pytest.fixture(scope="module", params=FUSIONS, ids=str)
def case(request):
    fusion = FUSIONS[request.param]
    params = parameters(fusion, THREE, 2)
    return fusion, params


def changed(tokens: Tokens, place: int) -> Tokens:
    return tokens.with_x(tokens.x.at[:, place].multiply(-1))


def differs(a, b) -> np.ndarray:
    """Which tokens of a stream changed."""
    return np.abs(np.asarray(a.clean().x - b.clean().x)).max(axis=(0, 2)) > 1e-6


def test_what_stands_at_absent_items_never_matters(case):
    fusion, params = case
    plain = values_and_gradient(fusion, params, THREE, 2)
    holed = values_and_gradient(fusion, params, {name: spoiled(tokens) for name, tokens in THREE.items()}, 2)
    assert_same(real(holed), real(plain))


def test_samples_of_a_row_are_as_if_alone(case):
    fusion, params = case
    whole = run(fusion, params, THREE, 2)
    for sample in (1, 2):
        alone = {
            name: Tokens(
                t.x, t.places.replace(valid=t.places.segment == sample, segment=(t.places.segment == sample) + 0)
            )
            for name, t in THREE.items()
        }
        for name, tokens in run(fusion, params, alone, 2).items():
            mine = np.asarray(tokens.valid[0])
            np.testing.assert_allclose(tokens.x[0, mine], whole[name].x[0, mine], atol=2e-5)


def test_an_absent_modality_changes_nothing_for_the_others(case):
    """The first sample has no sound: values of the second sample's are nothing to it."""
    fusion, params = case
    louder = THREE | {"audio": changed(THREE["audio"], 0)}
    before, after = run(fusion, params, THREE, 2), run(fusion, params, louder, 2)
    for name in ("image", "text"):
        moved = differs(after[name], before[name])
        assert not moved[np.asarray(THREE[name].places.segment[0]) != 2].any()
    assert differs(after["audio"], before["audio"]).any()


def test_co_attention_looks_only_at_the_other_modality():
    fusion = Streams(Stack(CoAttention(Attention(2)), 1))
    params = parameters(fusion, PAIR)
    before = run(fusion, params, PAIR)
    after = run(fusion, params, PAIR | {"text": changed(WORDS, 1)})
    np.testing.assert_array_equal(differs(after["text"], before["text"]), np.arange(7) == 1)
    np.testing.assert_array_equal(differs(after["image"], before["image"]), np.arange(6) < 2)  # the first sample's
    with pytest.raises(UserError, match="co-attention needs two modalities at least; got text"):
        run(fusion, params, {"text": WORDS})


def test_two_streams_may_have_different_widths():
    wide = items("image", [[1, 2, 0]], 2, width=24)
    fusion = Streams(Stack(CoAttention(Attention(2)), 2))
    streams = {"image": wide, "text": WORDS}
    out, _ = jax.eval_shape(lambda: fusion.init_with_output({"params": jax.random.key(0)}, streams))
    assert out["image"].x.shape == (1, 6, 24) and out["text"].x.shape == (1, 7, 16)


def test_a_guide_is_not_guided():
    fusion = FUSIONS["MCAN"]
    params = parameters(fusion, THREE, 2)
    before = run(fusion, params, THREE, 2)
    after = run(fusion, params, THREE | {"image": changed(PICTURE, 0)}, 2)
    assert not differs(after["text"], before["text"]).any() and differs(after["image"], before["image"])[:2].all()
    after = run(fusion, params, THREE | {"text": changed(WORDS, 0)}, 2)
    np.testing.assert_array_equal(differs(after["image"], before["image"]), np.arange(6) < 2)
    with pytest.raises(UserError, match="no stream is called 'words'"):
        Guided("words", fusion.encoder, fusion.decoder).apply(params, PAIR)


@pytest.mark.parametrize("depth", [1, 2])
def test_modalities_meet_only_in_the_bottleneck(depth):
    """What one layer writes there, the next one reads."""
    fusion = Bottleneck(Stack(BottleneckLayer(block), depth), latents=2)
    params = parameters(fusion, PAIR, 2)
    before, after = run(fusion, params, PAIR, 2), run(fusion, params, PAIR | {"text": changed(WORDS, 0)}, 2)
    np.testing.assert_array_equal(differs(after["image"], before["image"]), (np.arange(6) < 2) & (depth > 1))


def test_a_causal_stream_does_not_leak_through_another_modality(case):
    """Words one after the other: a later word must not reach an earlier one by way of the picture."""
    fusion, params = case
    causal = Tokens(WORDS.x, WORDS.places.replace(block=jnp.arange(7)[None] + 1))
    before = run(fusion, params, THREE | {"text": causal}, 2)
    after = run(fusion, params, THREE | {"text": changed(causal, 2)}, 2)
    np.testing.assert_array_equal(differs(after["text"], before["text"]), [False, False, True, True] + [False] * 3)
