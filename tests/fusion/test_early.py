"""Early fusion: each media token lands where the row keeps its place, and nothing absent is seen."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.core.batch import MODALITIES, Text
from mmjax.core.errors import UserError
from mmjax.core.tokens import Tokens
from mmjax.fusion.early import Concatenate, Interleave, LeftOut, ModalityTypes, NoTypes, StandIn, TextOnly
from mmjax.ops.masks import as_laid_out
from tests.fusion.fusion_toy import assert_same, items, parameters, row_of, spoiled, values_and_gradient

IMAGE = MODALITIES.index("image")


def text_of(row: Tokens, slot, **per_item: int) -> Text:
    slot = jnp.asarray(slot, jnp.int32)
    zeros = jnp.zeros_like(slot)
    places = row.places
    return Text(
        zeros, slot, places.segment, places.block, places.position, zeros * 0.0, per_item=tuple(per_item.items())
    )


KINDS = [{"image": (3, 2)}, {"image": (2, 3), "audio": (3, 1)}, {"image": (1, 1), "video": (2, 2), "sensor": (1, 3)}]
LENGTH = 24  # of a row: room for all media and 12 words
interleave = jax.jit(lambda *inputs: Interleave().apply({}, *inputs))


@st.composite
def layouts(draw):
    """One row: kinds with N items of n tokens, each item of a sample or absent, and a random order of spans."""
    kinds = draw(st.sampled_from(KINDS))
    spans, number = [], 0
    owners: dict[str, list[int]] = {}
    for kind, (count, size) in kinds.items():
        owners[kind] = [draw(st.integers(0, 2)) for _ in range(count)]
        for item in range(count):
            if owners[kind][item] or draw(st.booleans()):  # an absent item may still have places
                spans.append((owners[kind][item] or 1, list(range(number, number + size))))
            number += size
    spans += [(draw(st.integers(1, 2)), [-1] * draw(st.integers(1, 4))) for _ in range(3)]
    spans = draw(st.permutations(spans))
    spans = sorted(spans, key=lambda span: span[0])
    segment = [owner for owner, slots in spans for _ in slots]
    slot = [number for _, slots in spans for number in slots]
    padding = LENGTH - len(slot)
    return kinds, owners, segment + [0] * padding, slot + [-1] * padding


@settings(max_examples=40, deadline=None)
@given(layouts())
def test_every_media_token_lands_where_its_slot_says(layout):
    kinds, owners, segment, slot = layout
    row = row_of([segment], width=4)
    media = {kind: items(kind, [owners[kind]], kinds[kind][1], 4, seed=i) for i, kind in enumerate(kinds)}
    text = text_of(row, [slot], **{kind: size for kind, (_, size) in kinds.items()})
    fused = jax.tree.map(np.asarray, interleave(row, text, media))
    table = [(kind, token) for kind in kinds for token in range(media[kind].x.shape[1])]
    assert fused.memory is None
    x, clean = np.asarray(row.x), {kind: np.asarray(tokens.clean().x) for kind, tokens in media.items()}
    for place, number in enumerate(slot):
        found = fused.row.x[0, place], bool(fused.row.valid[0, place]), int(fused.row.places.modality[0, place])
        if number < 0:
            expected = x[0, place], segment[place] > 0, 0
        else:
            kind, token = table[number]
            there = owners[kind][token // kinds[kind][1]] > 0
            expected = clean[kind][0, token], there, MODALITIES.index(kind)
        np.testing.assert_array_equal(found[0], expected[0])
        assert found[1:] == expected[1:]
    for name in ("segment", "block", "position"):
        np.testing.assert_array_equal(getattr(fused.row.places, name), getattr(row.places, name))


ROW = row_of([[1, 1, 1, 1, 1, 2, 2, 2, 2, 0]])
PICTURES = items("image", [[1, 0]], 2)  # the second sample's picture is absent
TEXT = text_of(ROW, [[-1, 0, 1, -1, -1, 2, 3, -1, -1, -1]], image=2)


def test_an_absent_picture_is_left_out_or_stood_in_for_and_its_values_never_matter():
    for empty in (LeftOut(), StandIn()):
        fusion = Interleave(empty, ModalityTypes())
        params = parameters(fusion, ROW, TEXT, {"image": PICTURES})
        plain = values_and_gradient(fusion, params, ROW, TEXT, {"image": PICTURES})
        holed = values_and_gradient(fusion, params, ROW, TEXT, {"image": spoiled(PICTURES)})
        assert_same(holed, plain)
        seen = np.asarray(plain[0].row.valid[0])
        assert seen[[0, 1, 2, 3, 4, 7, 8]].all() and not seen[9]
        assert seen[[5, 6]].all() == isinstance(empty, StandIn)
    np.testing.assert_allclose(plain[0].row.x[0, 5], plain[0].row.x[0, 6])
    assert not np.allclose(plain[0].row.x[0, 5], plain[0].row.x[0, 1])


def test_gradients_reach_present_pictures_and_no_others():
    import jax

    def loss(x):
        return jnp.sum(Interleave().apply({}, ROW, TEXT, {"image": PICTURES.with_x(x)}).row.x ** 2)

    gradient = np.asarray(jax.grad(loss)(spoiled(PICTURES).x))[0]
    assert np.isfinite(gradient).all() and (gradient[:2] != 0).all() and (gradient[2:] == 0).all()


@pytest.mark.parametrize(
    ("per_item", "media", "message"),
    [
        (
            {"image": 3},
            {"image": PICTURES},
            "each image was laid out with 3 places, but 4 tokens are no multiple of it",
        ),
        ({"image": 2}, {}, "each image was laid out with 2 places, but there are no image tokens"),
        ({}, {"image": PICTURES}, "there are image tokens, but the row keeps no places for any"),
        ({"image": 2}, {"image": items("image", [[1, 1]], 2, width=8)}, "the row is 16 wide, the media tokens 8"),
        ({"image": 2}, {"picture": PICTURES}, "no kind of media is called 'picture'"),
    ],
    ids=["size", "no media", "no places", "width", "name"],
)
def test_a_row_and_media_that_disagree_are_refused(per_item, media, message):
    with pytest.raises(UserError, match=message):
        Interleave().apply({}, ROW, text_of(ROW, TEXT.slot, **per_item), media)


def test_all_disagreements_are_told_at_once():
    with pytest.raises(UserError, match="each image was laid out with 3.*there are audio tokens"):
        Interleave().apply({}, ROW, text_of(ROW, TEXT.slot, image=3), {"image": PICTURES, "audio": PICTURES})


def test_text_alone_is_the_row_without_the_places_of_media():
    plain = text_of(ROW, np.full((1, 10), -1))
    assert_same(TextOnly().apply({}, ROW, plain, {"image": PICTURES}).row, ROW)
    fused = TextOnly().apply({}, ROW, TEXT, {"image": PICTURES})
    assert fused.memory is None
    np.testing.assert_array_equal(fused.row.valid, (ROW.valid & (TEXT.slot < 0)))


def test_one_stream_is_media_then_text_and_keeps_samples_apart():
    plain = text_of(ROW, np.full((1, 10), -1))
    audio = items("audio", [[1]], 3, seed=3)
    fused = Concatenate(types=NoTypes()).apply({}, ROW, plain, {"audio": audio, "image": spoiled(PICTURES)}).row
    assert_same(fused.x, jnp.concatenate([PICTURES.clean().x, audio.x, ROW.x], axis=1))
    real = np.flatnonzero(np.asarray(fused.valid[0]))
    seen = np.asarray(fused.mask()[0])[np.ix_(real, real)]
    owner = np.asarray(fused.places.segment[0])[real]
    np.testing.assert_array_equal(seen, owner[:, None] == owner[None, :])


def test_one_stream_as_laid_out_is_a_prefix_of_media_before_causal_text():
    row, picture = row_of([[1] * 4]), items("image", [[1]], 2)
    fused = Concatenate(as_laid_out, types=NoTypes()).apply({}, row, text_of(row, [[-1] * 4]), {"image": picture}).row
    expected = [[key < 2 or (key == 2 if place < 2 else key <= place) for key in range(6)] for place in range(6)]
    np.testing.assert_array_equal(fused.mask()[0], expected)


def test_types_add_one_vector_per_modality():
    types, joint = ModalityTypes(), Tokens.concat([PICTURES, ROW])
    params = parameters(types, joint)
    added = types.apply(params, joint).x - joint.x
    table = params["params"]["table"]
    np.testing.assert_allclose(added, jnp.take(table, joint.places.modality, axis=0), atol=1e-6)
    assert table.shape == (len(MODALITIES), 16)
