"""Where an example stands depends on seed and position alone."""

from __future__ import annotations

import collections

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_sources import Counted, Gathered

from data_pipelines.features import LabelFeature
from data_pipelines.order import Clustered, EachOnce, InOrder, OneOfEach, permuted
from data_pipelines.pipeline import Pipeline
from data_pipelines.randomness import fold, uniform
from mmjax.core.errors import UserError


def numbers(batches, count):
    return [batch.labels["number"][:, 0].tolist() for _, batch in zip(range(count), batches, strict=False)]


def flat(batches):
    return [number for batch in batches for number in batch]


def pipeline(size, batch, **changes):
    return Pipeline(Counted(size), (LabelFeature("number"),), batch, **{"shuffle": 3, "threads": 1} | changes)


@given(st.integers(1, 3000), st.integers(0, 2**63 - 1), st.integers(0, 100))
@settings(max_examples=100, deadline=None)
def test_a_permutation_reaches_every_place_once(size, seed, epoch):
    found = permuted(np.arange(size), size, fold(seed, epoch))
    assert np.array_equal(np.sort(found), np.arange(size))


def test_permutations_are_spread_evenly_and_differ_by_epoch():
    keys = fold(np.arange(4800), 0)
    counts = collections.Counter(map(tuple, permuted(np.arange(4), 4, keys[:, None]).tolist()))
    assert len(counts) == 24
    assert min(counts.values()) > 130 and max(counts.values()) < 280  # 200 each; five standard deviations are 70
    places = EachOnce().plan(Counted(1000), 5).indices(np.arange(2000)).reshape(2, 1000)
    assert (places[0] == places[1]).sum() < 10


def test_a_huge_source_costs_no_table():
    plan = EachOnce().plan(range(10**12), 0)
    found = plan.indices(np.arange(10**15, 10**15 + 1000))
    assert len(set(found.tolist())) == 1000
    assert found.min() >= 0 and found.max() < 10**12


@given(st.integers(1, 60), st.integers(1, 4), st.integers(1, 3), st.integers(0, 200), st.sampled_from([None, 0, 9]))
@settings(max_examples=25, deadline=None)
def test_one_two_and_four_hosts_see_the_same_batches_from_any_position(size, quarter, epochs, position, seed):
    batch = 4 * quarter
    data = pipeline(size, batch, shuffle=seed, epochs=epochs)
    position %= size * epochs
    whole = numbers(data.batches(position), 99)
    for hosts in (2, 4):
        shares = [numbers(data.batches(position, host, hosts), 99) for host in range(hosts)]
        assert [flat(parts) for parts in zip(*shares, strict=True)] == whole
    order = InOrder() if seed is None else EachOnce()
    expected = order.plan(Counted(size), seed or 0).indices(np.arange(position, size * epochs)).tolist()
    assert flat(whole)[: len(expected)] == expected
    assert set(flat(whole)[len(expected) :]) <= {-1}


def test_each_example_comes_exactly_once_per_epoch_across_a_restart_with_another_batch_size():
    size, first = 50, numbers(pipeline(50, 8).batches(), 3)
    rest = numbers(pipeline(size, 13).batches(position=24), 10)
    seen = flat(first + rest)
    assert sorted(seen[:size]) == sorted(seen[size : 2 * size]) == list(range(size))


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_and_gathering_change_nothing(threads):
    plain = pipeline(40, 12, epochs=2)
    other = Pipeline(Gathered(40), plain.features, 12, shuffle=3, epochs=2, threads=threads)
    for left, right in zip(plain.batches(), other.batches(), strict=True):
        jax.tree.map(np.testing.assert_array_equal, left, right)


@pytest.mark.slow
def test_worker_processes_change_nothing():
    data = pipeline(40, 8, epochs=1)
    for left, right in zip(data.batches(8), pipeline(40, 8, epochs=1, workers=2).batches(8), strict=True):
        jax.tree.map(np.testing.assert_array_equal, left, right)


def test_one_of_each_group_per_pass_and_every_member_once_in_as_many_passes():
    source = Counted(9)  # kinds 0 1 2, three members each
    plan = OneOfEach("kind").plan(source, 1)
    found = plan.indices(np.arange(9)).reshape(3, 3)
    assert plan.epoch == 3
    assert all(sorted(kinds) == [0, 1, 2] for kinds in (found % 3).tolist())
    assert sorted(found.ravel().tolist()) == list(range(9))


def test_clusters_share_a_label_and_differ_in_another():
    plan = Clustered("kind", "number", size=4).plan(Counted(30), 2)
    runs = plan.indices(np.arange(4000)).reshape(-1, 4)
    assert all(len(set((run % 3).tolist())) == 1 and len(set(run.tolist())) == 4 for run in runs)
    assert set(runs.ravel().tolist()) == set(range(30))
    assert np.array_equal(plan.indices(np.arange(2, 9)), runs.ravel()[2:9])


def test_a_batch_that_hosts_cannot_share_is_refused():
    with pytest.raises(UserError, match="a batch of 10 cannot be shared by 4 processes"):
        next(pipeline(40, 10).batches(0, 0, 4))


def test_random_numbers_are_uniform_and_independent_by_name():
    draws = uniform(fold(7, np.arange(100_000)))
    assert abs(draws.mean() - 0.5) < 0.005 and abs(draws.var() - 1 / 12) < 0.002
    assert abs(np.corrcoef(draws, uniform(fold(8, np.arange(100_000))))[0, 1]) < 0.02
