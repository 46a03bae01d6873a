"""Rows that several samples share: nothing is lost, doubled or changed, and any row is found from its number."""

from __future__ import annotations

import dataclasses
import itertools
import json

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.budget import Budget
from data_pipelines.chat import ChatFeature
from data_pipelines.mixture import Mixture
from data_pipelines.packed import Packed
from data_pipelines.packing import BestFit, FirstFit, Windows
from data_pipelines.pipeline import Pipeline
from data_pipelines.templates import prefix_answer
from data_pipelines.tokenizers import Bytes
from mmjax.core.batch import FAULTS, Batch
from mmjax.core.config import from_json, to_json
from mmjax.core.errors import DataError, UserError
from mmjax.core.protocols import Data
from tests.data_pipelines.toy_talks import Talks, same, talks

# ------------------------------------------------------------------------------------------------------------- bins

packers = st.sampled_from([BestFit(), FirstFit()])
needs_of = st.lists(st.tuples(st.integers(0, 20), st.just(1), st.integers(0, 3)), max_size=40)


@settings(max_examples=300, deadline=None)
@given(needs_of, st.integers(20, 50), st.integers(1, 6), st.integers(3, 8), packers)
def test_bins_hold_every_sample_once_within_every_limit_and_no_two_could_be_one(needs, length, samples, items, packer):
    needs = np.array(needs, np.int64).reshape(-1, 3)
    room = np.array([length, samples, items])
    bins = packer.bins(needs, room)
    assert sorted(itertools.chain(*(found.tolist() for found in bins))) == list(range(len(needs)))
    taken = np.array([needs[found].sum(0) for found in bins]).reshape(-1, 3)
    assert (taken <= room).all() and all((np.diff(found) > 0).all() for found in bins)
    for one, other in itertools.combinations(taken, 2):
        assert (one + other > room).any()


def test_best_fit_finds_the_perfect_packing_that_first_fit_misses():
    needs, room = np.array([[3], [4], [7], [6]]), np.array([10])
    assert [found.tolist() for found in BestFit().bins(needs, room)] == [[0, 2], [1, 3]]
    assert [found.tolist() for found in FirstFit().bins(needs, room)] == [[0, 1], [2], [3]]


def test_rows_of_8192_are_98_percent_full_on_a_mix_of_pictures_and_texts():
    """94 % of samples with 576 tokens of a picture, log-normal texts, at most 2048 places: as a visual-instruction mix
    has them."""
    rng = np.random.default_rng(0)
    image = rng.random(4_096) < 0.94
    text = np.maximum(8, rng.lognormal(5.1, 1.0, 4_096).astype(int))
    places = np.minimum(2_048, 576 * image + text)
    assert 760 < places.mean() < 860
    needs = np.stack([places, np.ones_like(places), image], axis=1)
    bins = BestFit().bins(needs, np.array([8_192, 64, 14]))
    assert places.sum() / (len(bins) * 8_192) > 0.98


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=30), st.data())
def test_any_bin_is_found_whatever_was_asked_before(counts, data):
    def pack(window):
        return [np.array([window, number]) for number in range(counts[window])]

    windows, total = Windows(pack, len(counts)), sum(counts)
    expected = [(window, [window, number]) for window, count in enumerate(counts) for number in range(count)]
    for _ in range(3):
        positions = np.array(data.draw(st.lists(st.integers(0, max(0, total - 1)), max_size=5 if total else 0)), int)
        found = windows.bins(positions)
        assert [(window, samples.tolist()) for window, samples in found] == [expected[p] for p in positions]
    assert windows.total() == total


# ------------------------------------------------------------------------------------------------------------- rows


def packed(data=None, **changes):
    settings = {"batch": 4, "length": 64, "samples": 6, "items": {"image": 7}, "window": 16, "threads": 1} | changes
    return Packed(data or talks(), **settings)


def rows(data):
    return [jax.tree.map(lambda leaf, row=row: leaf[row], b) for b in data.batches() for row in range(b.rows)]


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 60), st.integers(26, 90), st.integers(1, 7), st.integers(2, 8), st.integers(1, 70),
    st.sampled_from([None, 0, 5]), packers,
)  # fmt: skip
def test_every_sample_stands_in_one_row_as_it_stands_alone(size, length, samples, items, window, shuffle, packer):
    data = talks(Talks(size))
    whole = packed(
        data, length=length, samples=samples, items={"image": items}, window=window, shuffle=shuffle, packer=packer
    )
    batch = whole.rows(np.arange(whole.total)).check()
    assert jax.tree.structure(batch) == jax.tree.structure(whole.spec())
    assert sorted(batch.id[batch.id >= 0].tolist()) == list(range(size))
    alone = data.rows(np.arange(size))
    place = {number: row for row, number in enumerate(alone.id[:, 0].tolist())}
    for row, number in np.argwhere(batch.id >= 0):
        one = place[int(batch.id[row, number])]
        mine, theirs = batch.text.segment[row] == number + 1, alone.text.segment[one] > 0
        for name in ("ids", "block", "position", "loss"):
            assert np.array_equal(getattr(batch.text, name)[row][mine], getattr(alone.text, name)[one][theirs]), name
        assert np.array_equal(batch.text.slot[row][mine] >= 0, alone.text.slot[one][theirs] >= 0)
        held, was = batch.image.segment[row] == number + 1, alone.image.valid[one]
        assert np.array_equal(batch.image.pixels[row][held], alone.image.pixels[one][was])
        assert batch.labels["number"][row, number] == batch.id[row, number]
    assert (batch.labels["number"][batch.id < 0] == -1).all()
    assert whole.useful() == pytest.approx((batch.text.segment > 0).mean())


@pytest.mark.parametrize("batch", [1, 3])
def test_a_stream_goes_on_at_any_row_with_any_batch(batch):
    whole = rows(packed())
    for position in range(packed().total):
        late = next(packed(batch=batch).batches(position))
        for number, row in enumerate(whole[position : position + batch]):
            assert same(row, jax.tree.map(lambda leaf, number=number: leaf[number], late))


def test_an_endless_stream_starts_far_out_and_no_epoch_loses_or_doubles_a_sample():
    data = packed(talks(epochs=None), window=20)
    stream, seen = data.batches(), []
    while len(seen) < 120:
        batch = next(stream)
        seen += batch.id[batch.id >= 0].tolist()
    stream.close()
    assert sorted(seen[:40]) == sorted(seen[40:80]) == sorted(seen[80:120]) == list(range(40))
    assert seen[:40] != seen[40:80]
    far = packed(talks(epochs=None), window=20).rows(np.arange(900, 902))
    assert same(far, dataclasses.replace(data, batch=2).rows(np.arange(900, 902)))


@pytest.mark.parametrize("processes", [2, 4])
def test_any_number_of_processes_sees_the_same_rows(processes):
    whole = list(packed().batches(position=4))
    shares = [list(packed(threads=2).batches(4, process, processes)) for process in range(processes)]
    for batch, parts in zip(whole, zip(*shares, strict=True), strict=True):
        assert same(batch, jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts))


def test_a_damaged_sample_is_null_in_its_place_and_moves_nobody():
    torn = (4, 7, 11, 13)
    good, bad = packed(), packed(talks(Talks(torn=torn)), budget=Budget(least=99))
    told = []
    for one, other in zip(good.batches(), bad.batches(), strict=True):
        other.check()
        assert np.array_equal(one.id, other.id)
        null = np.isin(other.id, torn)
        assert np.array_equal(other.fault > FAULTS.index("padding"), null)
        assert (other.labels["number"][null] == -1).all() and not other.present("text")[null].any()
        assert np.array_equal(one.present("text")[~null], other.present("text")[~null])
        told += bad.faults(other)
    assert sorted(entry["id"] for entry in told) == sorted(torn)
    assert {entry["where"] for entry in told} == {f"talk {index}" for index in torn}
    with pytest.raises(DataError, match=r"too many bad records: 4 of 32 examples seen .4 unreadable., 4 different"):
        list(packed(talks(Talks(torn=torn)), budget=Budget(0.0, 2)).batches())


def test_a_mixture_is_packed_too():
    parts = (talks(Talks(30), epochs=None), talks(Talks(20), epochs=None, shuffle=9))
    data = packed(Mixture(parts, (2.0, 1.0)), window=30)
    batch = data.rows(np.arange(24)).check()
    found = batch.id[batch.id >= 0]
    assert found.max() >= 30 and data.total is None
    first = data.data.rows(np.arange(30)).id[:, 0]
    assert np.array_equal(np.sort(found[:30]), np.sort(first))


def test_text_alone_is_packed_and_a_last_batch_is_padded():
    chat = ChatFeature(Bytes(), prefix_answer(), 20)
    source = Talks(9)

    @dataclasses.dataclass(frozen=True)
    class Mute(Talks):
        def __getitem__(self, index):
            return {name: value for name, value in source[index].items() if name != "image"}

    data = packed(Pipeline(Mute(9), (chat,), 1, epochs=1), items={}, batch=8)
    (batch,) = data.batches()
    batch.check()
    assert batch.image is None and sorted(batch.id[batch.id >= 0].tolist()) == list(range(9))
    assert 0 < data.total < 8 and (batch.fault[data.total :] == FAULTS.index("padding")).all()
    assert list(data.batches(position=8)) == []


# --------------------------------------------------------------------------------------------------------- refusals


def test_what_cannot_share_a_row_is_told_before_anything_is_read():
    with pytest.raises(UserError, match="samples of 1 to length=20 slots; those of data have 26.*it may have 2.* = 1"):
        packed(length=20, items={"image": 1}).spec()
    with pytest.raises(UserError, match=r"items of audio: it may have 0, a row has items\['audio'\] = 3"):
        packed(items={"image": 7, "audio": 3}).batches()
    with pytest.raises(UserError, match="window must be at least 1; got 0"):
        packed(window=0)
    with pytest.raises(UserError, match="one feature that can tell sizes, such as ChatFeature; got 2"):
        packed(dataclasses.replace(talks(), features=(*talks().features, talks().features[0]))).useful()


def test_records_that_grew_since_they_were_measured_are_told():
    """Their source says that it is the same."""
    assert packed(talks(Talks(12))).total
    with pytest.raises(DataError, match=r"example \d+ has more text than when .* Delete lengths-\*.npy"):
        packed(talks(Talks(12, grown=8)), length=30).rows(np.arange(3))


def test_packed_data_are_data_their_own_configuration_and_tell_what_changes_them():
    data = packed()
    assert isinstance(data, Data)
    chosen = dataclasses.replace(data, data=dataclasses.replace(data.data, source=Bytes()))  # of trusted modules
    assert from_json(json.loads(json.dumps(to_json(chosen)))) == chosen
    same_rows = [packed(batch=2), packed(threads=3)]
    others = [packed(length=65), packed(window=17), packed(packer=FirstFit()), packed(shuffle=None)]
    others += [packed(talks(shuffle=4))]
    assert all(other.fingerprint() == data.fingerprint() for other in same_rows)
    assert len({json.dumps(other.fingerprint()) for other in [data, *others]}) == 6
    assert data.names() == {} and data.example(2)["question"] == "ccc"
    Batch.fake(data.spec(), 1).check()
