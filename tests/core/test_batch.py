"""The batch contract: what `fake` makes passes `check`, and each broken promise is named."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.core.batch import FAULTS, MEDIA, MODALITIES, Batch
from mmjax.core.errors import DataError
from mmjax.core.pytrees import flatten_names

small = st.integers(1, 3)
specs = st.builds(
    Batch.spec,
    small,
    samples=small,
    text=st.none() | st.integers(1, 12),
    image=st.none() | st.tuples(small, small, small),
    audio=st.none() | st.tuples(small, st.integers(1, 9), st.just(16_000)),
    video=st.none() | st.tuples(small, small, small, small),
    sensor=st.none() | st.tuples(small, st.integers(1, 9), small, st.just(50.0)),
    labels=st.just(
        {"kind": ((), np.int32), "box": ((4,), np.float32), "seen": ((), np.bool_), "code": ((2,), np.uint8)}
    ),
)


def shapes(batch: Batch) -> dict:
    return {name: (leaf.shape, np.dtype(leaf.dtype)) for name, leaf in flatten_names(batch).items()}


def everything(rows: int = 4, samples: int = 2, seed: int = 0) -> Batch:
    spec = Batch.spec(
        rows,
        samples=samples,
        text=12,
        image=(2, 4, 4),
        audio=(2, 8, 16_000),
        video=(2, 3, 4, 4),
        sensor=(2, 8, 3, 50.0),
        labels={"kind": ((), np.int32)},
    )
    return Batch.fake(spec, seed)


@settings(max_examples=150, deadline=None)
@given(specs, st.integers(0, 2**32 - 1))
def test_a_fake_batch_keeps_the_contract_for_any_mix_and_packing(spec, seed):
    batch = Batch.fake(spec, seed, vocabulary=7).check()
    assert shapes(batch) == shapes(spec)
    assert jax.tree.structure(batch) == jax.tree.structure(spec)
    assert all(batch.present(name)[:, 0].all() for name in batch.modalities())
    assert batch.text is None or batch.text.ids.max() < 7


def test_a_fake_batch_is_a_function_of_its_seed():
    same, other = everything(seed=3), everything(seed=4)
    again = zip(jax.tree.leaves(same), jax.tree.leaves(everything(seed=3)), strict=True)
    assert all(np.array_equal(a, b) for a, b in again)
    assert not np.array_equal(same.text.ids, other.text.ids)


def test_fake_batches_lack_modalities_in_some_samples():
    batch = everything(rows=32, samples=2)
    for name in MEDIA:
        assert 0 < batch.present(name)[:, 1].mean() < 1, name


@given(st.sets(st.sampled_from(MODALITIES), min_size=1))
def test_an_unused_modality_is_none(used):
    sizes = {"text": 4, "image": (1, 2, 2), "audio": (1, 4, 8000), "video": (1, 2, 2, 2), "sensor": (1, 4, 2, 1.0)}
    batch = Batch.fake(Batch.spec(2, **{name: sizes[name] for name in used})).check()
    assert set(batch.modalities()) == used
    assert batch.rows == 2


def change(batch: Batch, name: str, **fields) -> Batch:
    return batch.replace(**{name: dataclasses.replace(getattr(batch, name), **fields)})


def filled(array, value):
    return np.full_like(array, value)


def other_rows(b: Batch) -> Batch:
    return b.replace(video=jax.tree.map(lambda x: x[:2], b.video))


def padded_with_loss(b: Batch) -> Batch:
    return change(b, "text", segment=filled(b.text.segment, 0), loss=filled(b.text.loss, 1))


def wrong(part: str, field: str, value: int):
    return lambda b: change(b, part, **{field: filled(getattr(getattr(b, part), field), value)})


BROKEN = {
    "a code is above": lambda b: b.replace(fault=filled(b.fault, len(FAULTS))),
    "needs `id` and `fault`": lambda b: b.replace(fault=None),
    "image: a null sample has a valid slot in row 0": lambda b: b.replace(fault=filled(b.fault, 2)),
    "image.segment: values must lie in 0..2; found 3..3": wrong("image", "segment", 3),
    "audio: a valid slot has segment 0": wrong("audio", "segment", 0),
    "video: 2 rows where the batch has 4": other_rows,
    "sensor.length must be 1..8": wrong("sensor", "length", 0),
    "video.length must be 1..3": wrong("video", "length", 4),
    "padding carries a loss": padded_with_loss,
    "text.segment: samples of row . are not in order": lambda b: change(b, "text", segment=b.text.segment[:, ::-1]),
    "sample 1 of row . does not count up by one": lambda b: change(b, "text", position=b.text.position * 2),
    r"labels\['kind'\] has shape \(4,\)": lambda b: b.replace(labels={"kind": np.zeros((4,), np.int32)}),
}
"""What `check` says, and what was done to the batch."""


@pytest.mark.parametrize("message", BROKEN)
def test_a_broken_promise_is_named(message):
    with pytest.raises(DataError, match=message) as caught:
        BROKEN[message](everything()).check()
    assert caught.value.code == 65


def test_all_broken_promises_are_told_at_once():
    batch = change(everything(), "sensor", length=filled(everything().sensor.length, 0))
    batch = change(batch, "video", length=filled(batch.video.length, 9))
    with pytest.raises(DataError) as caught:
        batch.check()
    assert "sensor.length" in str(caught.value) and "video.length" in str(caught.value)


def test_present_follows_segments_and_null_samples():
    batch = everything(rows=1)
    batch = change(batch, "image", valid=np.array([[True, True]]), segment=np.array([[2, 2]], np.int32))
    assert batch.present("image").tolist() == [[False, True]]
    assert batch.replace(fault=np.array([[0, 3]], np.uint8)).present("image").tolist() == [[False, False]]


def test_present_is_the_same_inside_jit():
    batch = everything()
    inside = jax.jit(lambda b: {name: b.present(name) for name in b.modalities()})(batch)
    assert all(np.array_equal(batch.present(name), inside[name]) for name in MODALITIES)


def test_describe_tells_shapes_and_how_much_is_real():
    batch = everything()
    assert "samples: 8 real of 8 slots" in batch.describe()
    assert "4x2x4x4x3" in batch.describe() and "uint8" in batch.describe()
    spec = Batch.spec(2, text=5)
    assert "text/ids" in spec.describe() and "real" not in spec.describe()
