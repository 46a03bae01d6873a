"""Mixtures deal out exact shares, from any position, and keep each part's own order."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_sources import Counted, Gathered, Spoilt

from data_pipelines.features import LabelFeature
from data_pipelines.mixture import Mixture
from data_pipelines.pipeline import Pipeline
from mmjax.core.errors import UserError
from mmjax.core.protocols import Data


def part(size, kind=Gathered, **changes):
    return Pipeline(kind(size), (LabelFeature("number"),), **{"batch": 8, "shuffle": size} | changes)


def mixture(weights, **changes):
    return Mixture(tuple(part(20 + number) for number in range(len(weights))), tuple(weights), **changes)


@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=5), st.integers(0, 10**9))
@settings(max_examples=60, deadline=None)
def test_shares_are_exact_and_each_part_counts_up_by_one(weights, start):
    mixed = mixture(weights)
    owner, places = mixed.dealt(np.arange(2000))
    for number, weight in enumerate(weights):
        mine = owner == number
        assert np.array_equal(places[mine], np.arange(mine.sum()))
        dealt = np.cumsum(mine)
        expected = np.arange(1, 2001) * weight / sum(weights)
        assert np.abs(dealt - expected).max() < len(weights) + 0.01
    later = mixed.dealt(np.arange(start, start + 300))
    again = mixed.dealt(np.arange(start + 100, start + 200))
    assert all(np.array_equal(all_[100:200], some) for all_, some in zip(later, again, strict=True))


def test_the_stream_is_each_parts_own_examples_in_its_own_order():
    mixed = mixture((3, 1))
    batches = [batch for _, batch in zip(range(6), mixed.batches(), strict=False)]
    ids = np.concatenate([batch.check().id[:, 0] for batch in batches])
    numbers = np.concatenate([batch.labels["number"][:, 0] for batch in batches])
    assert (ids < 20).sum() == 36 and (ids >= 20).sum() == 12
    assert np.array_equal(numbers, np.where(ids < 20, ids, ids - 20))
    first = np.concatenate([b.id[:, 0] for _, b in zip(range(5), mixed.parts[0].batches(), strict=False)])
    assert np.array_equal(ids[ids < 20], first[:36])


def test_hosts_and_positions_agree():
    mixed = mixture((0.6, 0.4))
    whole = [batch for _, batch in zip(range(4), mixed.batches(16), strict=False)]
    for host in range(2):
        for batch, full in zip(mixed.batches(16, host, 2), whole, strict=False):
            share = jax.tree.map(lambda leaf, host=host: leaf[4 * host : 4 * host + 4], full)
            jax.tree.map(np.testing.assert_array_equal, batch, share)


def test_an_example_and_a_fault_are_found_in_their_part():
    bad = part(21, lambda size: Spoilt(size, (4, 5)))
    mixed = Mixture((part(20), bad), (1, 1))
    assert isinstance(mixed, Data)
    assert mixed.example(3)["number"] == 3 and mixed.example(20 + 7)["number"] == 7
    told = {}
    for _, batch in zip(range(6), mixed.batches(), strict=False):
        told |= {entry["id"]: entry for entry in mixed.faults(batch)}
    assert sorted(told) == [24, 25] and told[25]["where"] == "line 6"


def test_unfit_parts_are_refused_together():
    with pytest.raises(UserError, match=r"as many weights as parts.*; weights above 0.*; endless parts"):
        Mixture((part(20, epochs=1),), (1, -1))
    with pytest.raises(UserError, match=r"parts with one batch size; got \[8, 4\]"):
        Mixture((part(20), part(20, batch=4)), (1, 1))
    other = dataclasses.replace(part(20), features=(LabelFeature("number", "float32"),))
    with pytest.raises(UserError, match="parts 0 and 1 of a mixture differ in labels/number"):
        Mixture((part(20), other), (1, 1)).spec()


def test_the_fingerprint_follows_weights_and_parts():
    base = mixture((1, 3))
    assert base.fingerprint() == mixture((2, 6)).fingerprint()  # the same shares
    assert base.fingerprint() != mixture((1, 2)).fingerprint()
    assert base.fingerprint() != Mixture((part(20), part(21, Counted, shuffle=1)), (1, 3)).fingerprint()
