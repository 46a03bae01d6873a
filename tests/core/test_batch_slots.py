"""Media that land in the token row: fakes keep the contract of slots, and each way to break it is named."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.core.batch import Batch
from mmjax.core.batch_check import misplaced
from mmjax.core.errors import DataError, UserError

small = st.integers(1, 3)


@st.composite
def specs(draw):
    """Rows with room for an item of every kind, mostly not for all of them."""
    per_item = draw(st.dictionaries(st.sampled_from(["image", "audio", "sensor"]), st.integers(1, 4), min_size=1))
    length = sum(per_item.values()) * 3 + draw(st.integers(1, 12))
    samples, items = draw(small), draw(small)
    sizes = {"image": (items, 2, 2), "audio": (draw(small), 5, 8_000), "sensor": (draw(small), 4, 2, 50.0)}
    return Batch.spec(draw(small), samples=samples, text=(length, per_item), **sizes)


@settings(max_examples=150, deadline=None)
@given(specs(), st.integers(0, 2**32 - 1))
def test_a_fake_batch_lands_its_media_as_promised(spec, seed):
    batch = Batch.fake(spec, seed, vocabulary=7).check()
    assert jax.tree.structure(batch) == jax.tree.structure(spec)
    for kind, (first, items, size) in batch.landing().items():
        owner = np.repeat(getattr(batch, kind).segment, size, axis=1)
        for row in range(batch.rows):
            slot = batch.text.slot[row]
            landed = (slot >= first) & (slot < first + items * size)
            assert sorted(slot[landed] - first) == np.flatnonzero(owner[row]).tolist()
            assert np.array_equal(batch.text.segment[row][landed], owner[row][slot[landed] - first])


def test_a_fake_batch_drops_items_that_find_no_room_but_not_those_of_the_first_sample():
    batch = Batch.fake(Batch.spec(8, samples=4, text=(9, {"image": 4}), image=(8, 2, 2)), 3).check()
    assert batch.present("image")[:, 0].all() and not batch.present("image")[:, 3].any()
    with pytest.raises(UserError, match="a row of 7 slots holds no 8 tokens of image beside the rest"):
        Batch.fake(Batch.spec(2, text=(7, {"image": 8}), image=(1, 2, 2)))


def test_tokens_are_numbered_in_the_order_of_media_whatever_order_they_are_given_in():
    sizes = {"audio": 2, "image": 3}
    spec = Batch.spec(1, text=(20, sizes), image=(2, 2, 2), audio=(3, 4, 8_000), sensor=(1, 4, 2, 50.0))
    assert spec.text.per_item == (("image", 3), ("audio", 2))
    assert spec.landing() == {"image": (0, 2, 3), "audio": (6, 3, 2)}
    assert Batch.spec(1, image=(1, 2, 2)).landing() == {} == Batch.spec(1, text=4).landing()


def test_what_lands_must_have_slots():
    with pytest.raises(UserError, match="audio cannot land in the row: the batch has no slots for it"):
        Batch.spec(1, text=(8, {"audio": 2}), image=(1, 2, 2))


def two_samples() -> Batch:
    """Sample 1 of the row has images 0 and 1, sample 2 has image 2; image 3 is absent. Two tokens each."""
    spec = Batch.spec(1, samples=2, text=(12, {"image": 2}), image=(4, 2, 2))
    slot = np.array([[0, 1, -1, 2, 3, -1, -1, 4, 5, -1, -1, -1]], np.int32)
    segment = np.array([[1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 0, 0]], np.int32)
    position = np.array([[0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 0, 0]], np.int32)
    fake = Batch.fake(spec)
    zeros = np.zeros_like(slot)
    text = dataclasses.replace(
        fake.text, slot=slot, segment=segment, position=position, block=zeros, loss=zeros.astype(np.float32)
    )
    own = np.array([[1, 1, 2, 0]], np.int32)
    return fake.replace(text=text, image=dataclasses.replace(fake.image, segment=own, valid=own > 0)).check()


def with_slots(*slots: int, **fields) -> Batch:
    batch = two_samples()
    return batch.replace(text=dataclasses.replace(batch.text, slot=np.array([slots], np.int32), **fields))


@pytest.mark.parametrize(
    ("slots", "message"),
    [
        ((0, 1, -1, 2, 3, -1, -1, 4, -1, -1, -1, -1), "image 2 of row 0, segment 2: its token 1 does not land"),
        ((0, 1, -1, 2, 3, -1, -1, 4, -1, -1, 5, -1), "image 2 of row 0, segment 2: its token 1 does not land"),
        ((0, 1, 1, 2, 3, -1, -1, 4, 5, -1, -1, -1), "image 0 of row 0, segment 1: its token 1 lands 2 times"),
        ((0, 1, -1, 4, 5, -1, -1, 2, 3, -1, -1, -1), "image 1 of row 0, segment 1: its token 0 lands in segment 2"),
        ((0, 1, -1, 3, 2, -1, -1, 4, 5, -1, -1, -1), "image 1 of row 0, segment 1: its token 0 lands behind a later"),
        ((2, 3, -1, 0, 1, -1, -1, 4, 5, -1, -1, -1), "image 0 of row 0, segment 1: its token 0 lands behind a later"),
        ((0, 1, 9, 2, 3, -1, -1, 4, 5, -1, -1, -1), r"values must lie in -1\.\.7; found -1\.\.9"),
        ((0, 1, -2, 2, 3, -1, -1, 4, 5, -1, -1, -1), r"values must lie in -1\.\.7; found -2\.\.5"),
    ],
)
def test_a_media_token_that_does_not_stand_where_it_must_is_named(slots, message):
    with pytest.raises(DataError, match=message):
        with_slots(*slots).check()


def test_an_absent_item_may_stand_in_the_row_once():
    assert misplaced(with_slots(0, 1, 6, 2, 3, -1, -1, 4, 5, -1, -1, -1)) == []
    assert misplaced(with_slots(0, 1, 6, 2, 3, 6, -1, 4, 5, -1, -1, -1))[0].what == "its token 0 lands 2 times"


def test_media_are_not_predicted_and_sizes_fit_the_batch():
    batch = two_samples()
    text = batch.text
    for fields, message in (
        ({"loss": np.ones_like(text.loss)}, "a place where media lands carries a loss weight"),
        ({"position": np.zeros_like(text.position)}, "sample 1 of row 0 does not count up by one"),
        ({"per_item": (("audio", 2),)}, "the batch has no slots for audio"),
        ({"per_item": (("image", 0),)}, "an item of image lands with less than one token"),
        ({"per_item": (("audio", 1), ("image", 2))}, "in the order image, audio, video, sensor"),
    ):
        with pytest.raises(DataError, match=message):
            batch.replace(text=dataclasses.replace(text, **fields)).check()


def test_only_so_many_faults_are_told():
    batch = Batch.fake(Batch.spec(16, text=(20, {"image": 4}), image=(2, 2, 2)))
    text = dataclasses.replace(batch.text, slot=np.full_like(batch.text.slot, -1))
    assert len(misplaced(batch.replace(text=text))) == 8
