"""Cross fusion: who sees which picture, a language model that begins as it was, absent pictures."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.core.batch import MODALITIES, Text
from mmjax.core.errors import UserError
from mmjax.core.parameters import slot, unbox
from mmjax.core.tokens import Tokens, visible
from mmjax.fusion.cross import CrossFusion, GatedCross, LastItem, Scoped
from mmjax.fusion.early import StandIn
from mmjax.nn.attention import Attention
from mmjax.nn.block import Block, Chain
from mmjax.nn.stack import Stack
from tests.fusion.fusion_toy import assert_same, items, parameters, real, row_of, run, spoiled, values_and_gradient

#          a  [image 0]  b  c  [image 1]  d | [image 2, absent] e  f  padding
SEGMENT = [1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 0]
SLOT = [-1, 0, 1, -1, -1, 2, 3, -1, 4, 5, -1, -1, -1]
ROW = row_of([SEGMENT])
PICTURES = items("image", [[1, 1, 0]], 4)  # the encoder gives four tokens of each; the row keeps two places


def text_of(row: Tokens, slot, **per_item: int) -> Text:
    slot, places = jnp.asarray(slot, jnp.int32), row.places
    zeros = jnp.zeros_like(slot)
    laid = tuple(per_item.items())
    return Text(zeros, slot, places.segment, places.block, places.position, zeros * 0.0, per_item=laid)


TEXT = text_of(ROW, [SLOT], image=2)


def sees(places, memory) -> np.ndarray:
    """[place, item]: whether a place sees (all of) an item of four tokens."""
    seen = np.asarray(visible(places, memory)[0]).reshape(-1, 3, 4)
    assert (seen.all(-1) == seen.any(-1)).all()
    return seen.all(-1)


def test_text_sees_the_pictures_of_its_sample_from_where_they_stand():
    fused = CrossFusion().apply({}, ROW, TEXT, {"image": PICTURES})
    expected = np.zeros((13, 3), bool)
    expected[[3, 4, 7], 0] = True  # not `a`, which stands before; the pictures' own places are empty
    expected[7, 1] = True
    np.testing.assert_array_equal(sees(fused.row.places, fused.memory.places), expected)
    assert_same(fused.memory.x, PICTURES.clean().x)
    np.testing.assert_array_equal(fused.row.valid[0], (np.array(SEGMENT) > 0) & (np.array(SLOT) < 0))


def test_a_picture_without_a_place_is_seen_by_its_whole_sample():
    fused = CrossFusion().apply({}, ROW, text_of(ROW, [[-1] * 13]), {"image": PICTURES})
    expected = np.zeros((13, 3), bool)
    expected[:8, :2] = True
    np.testing.assert_array_equal(sees(fused.row.places, fused.memory.places), expected)


def test_last_item_sees_one_picture_at_a_time():
    fused = CrossFusion().apply({}, ROW, TEXT, {"image": PICTURES})
    expected = np.zeros((13, 3), bool)
    expected[[3, 4], 0] = expected[7, 1] = True
    np.testing.assert_array_equal(sees(*LastItem()(fused.row.places, fused.memory.places)), expected)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_last_item_agrees_with_its_definition(data):
    def draw(values, count):
        return data.draw(st.lists(values, min_size=count, max_size=count))

    query = row_of([sorted(draw(st.integers(1, 2), 6))]).places
    key = items("image", [draw(st.integers(0, 2), 4)], 1).places
    key = key.replace(position=jnp.asarray([draw(st.integers(0, 5), 4)]))
    seen = np.asarray(visible(*LastItem()(query, key)))[0]
    segment, position = np.asarray(key.segment[0]), np.asarray(key.position[0])
    for place in range(6):
        mine = (segment == query.segment[0, place]) & (position <= query.position[0, place])
        last = position[mine].max(initial=-1)
        np.testing.assert_array_equal(seen[place], mine & (position == last))


def test_media_of_several_kinds_are_one_memory_and_their_places_learn_markers():
    audio = items("audio", [[1, 2]], 3, seed=5)
    slot = [-1, 0, 1, -1, -1, 2, 3, -1, 6, 7, -1, -1, -1]  # 0..5 are the pictures', 6 and 7 one place per sound
    fusion, text = CrossFusion(StandIn()), text_of(ROW, [slot], image=2, audio=1)
    params = parameters(fusion, ROW, text, {"audio": audio, "image": PICTURES})
    fused = fusion.apply(params, ROW, text, {"audio": audio, "image": PICTURES})
    assert fused.memory.x.shape[1] == 12 + 6 and bool(fused.row.valid[0, :12].all())
    kinds = np.asarray(fused.row.places.modality[0])
    assert (kinds[[1, 2, 5, 6]] == MODALITIES.index("image")).all() and (kinds[8:10] == MODALITIES.index("audio")).all()
    np.testing.assert_array_equal(fused.memory.places.block[0, 12:], [0, 0, 0, 1, 1, 1])
    np.testing.assert_allclose(fused.row.x[0, 1], fused.row.x[0, 6])
    assert not np.allclose(fused.row.x[0, 1], fused.row.x[0, 8])


class Model(nn.Module):
    """A fusion and what reads its memory."""

    stack: nn.Module
    fusion: nn.Module = slot(CrossFusion)

    def __call__(self, row, text, media):
        fused = self.fusion(row, text, media)
        return fused.row.with_x(self.stack(fused.row.x, fused.row.places, fused.memory))


def flamingo(cross) -> Model:
    """A gated look at the memory before every block."""
    return Model(Stack(Chain((GatedCross(cross), Block(Attention(2)))), 2))


@pytest.mark.parametrize("cross", [Attention(2), Scoped(Attention(2), LastItem())], ids=["all before", "last before"])
def test_absent_pictures_and_other_samples_never_matter(cross):
    model = flamingo(cross)
    params = parameters(model, ROW, TEXT, {"image": PICTURES})
    plain = values_and_gradient(model, params, ROW, TEXT, {"image": PICTURES})
    holed = values_and_gradient(model, params, ROW, TEXT, {"image": spoiled(PICTURES)})
    assert_same(real(holed), real(plain))
    first = jax.tree.map(lambda x: x[:, :8], (ROW, TEXT))
    short = run(model, params, *first, {"image": PICTURES})
    np.testing.assert_allclose(short.clean().x, plain[0].clean().x[:, :8], atol=2e-5)


def test_samples_of_a_row_may_stand_in_any_order():
    order = np.array([8, 9, 10, 11, 0, 1, 2, 3, 4, 5, 6, 7, 12])
    model = flamingo(Scoped(Attention(2), LastItem()))
    pictures = items("image", [[1, 1, 2]], 4)
    params = parameters(model, ROW, TEXT, {"image": pictures})
    plain, moved = (
        run(model, params, *inputs, {"image": pictures})
        for inputs in ((ROW, TEXT), jax.tree.map(lambda x: x[:, order], (ROW, TEXT)))
    )
    np.testing.assert_allclose(moved.clean().x, plain.clean().x[:, order], atol=2e-5)


def test_a_language_model_begins_as_it_was():
    """Gates start at 0, and the first gradient opens them."""
    block = GatedCross(Attention(2))
    inputs = ROW.x, ROW.places, PICTURES.clean()
    params = unbox(jax.jit(block.init)({"params": jax.random.key(0)}, *inputs))

    def loss(params):
        out = block.apply(params, *inputs)
        return jnp.sum(jnp.sin(out)), out

    gradient, out = jax.jit(jax.grad(loss, has_aux=True))(params)
    np.testing.assert_array_equal(out, ROW.x)
    gradient = gradient["params"]
    assert gradient["attention_gate"] != 0 and gradient["feedforward_gate"] != 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: GatedCross(Attention(2)).apply({}, ROW.x, ROW.places), "needs a memory.*must be CrossFusion"),
        (lambda: CrossFusion().apply({}, ROW, TEXT, {}), "the row keeps places for image tokens, but there are none"),
        (lambda: CrossFusion().apply({}, ROW, TEXT, {"sound": PICTURES}), "no kind of media is called 'sound'"),
    ],
)
def test_a_memory_that_is_not_there_is_refused(call, message):
    with pytest.raises(UserError, match=message):
        call()
