"""Intervals: they hold the value, they are repeatable, they know what is clustered, and they weigh groups alike."""

from __future__ import annotations

import numpy as np
import pytest

from mmjax.evals.gaps import gap
from mmjax.evals.results import Bootstrap, Cases, codes, is_number, number


def test_interval_holds_the_value_and_repeats():
    rng = np.random.default_rng(0)
    values = rng.random(200)
    first, again = (Cases.of(np.arange(200)).mean(values).record() for _ in range(2))
    assert first == again
    assert first["low"] < first["value"] < first["high"]
    other = Cases.of(np.arange(200), bootstrap=Bootstrap(seed=1)).mean(values).record()
    assert other["value"] == first["value"] and other["low"] != first["low"]


def test_interval_has_the_width_theory_gives():
    values = (np.arange(400) % 4 == 0).astype(float)  # a quarter right: standard error sqrt(.25 * .75 / 400)
    found = Cases.of(np.arange(400), bootstrap=Bootstrap(draws=4000)).mean(values).record()
    assert found["value"] == 0.25
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * np.sqrt(0.25 * 0.75 / 400), rel=0.08)


def test_repeats_of_one_picture_are_not_new_evidence():
    values = np.random.default_rng(0).random(100)
    once = Cases.of(np.arange(100)).mean(values).record()
    copied = Cases.of(np.tile(np.arange(100), 14)).mean(np.tile(values, 14)).record()
    naive = Cases.of(np.arange(1400)).mean(np.tile(values, 14)).record()
    assert copied["low"] == pytest.approx(once["low"], rel=1e-3)
    assert naive["high"] - naive["low"] < 0.4 * (copied["high"] - copied["low"])


def test_groups_count_alike_whatever_their_size():
    group = np.array([0] * 90 + [1] * 10)
    values = (group == 1).astype(float)
    assert Cases.of(np.arange(100), group).mean(values, chance=values).record()["value"] == 0.5
    assert Cases.of(np.arange(100), group).mean(values, chance=values).chance == 0.5
    assert Cases.of(np.arange(100)).mean(values).value == pytest.approx(0.1)


def test_median():
    cases = Cases.of(np.arange(7), np.array([0, 0, 0, 0, 0, 1, 1]))
    found = cases.median(np.array([9.0, 1, 5, 3, 7, 100, 200])).record()
    assert found["value"] == (5 + 100) / 2  # lower median of each group
    assert found["low"] <= found["value"] <= found["high"]


def test_medians_of_many_values_are_exact():
    """Against a plain bootstrap, value by value: the window that is searched must not change a draw."""
    rng = np.random.default_rng(0)
    values, cluster = rng.permutation(3000).astype(float) ** 2, rng.integers(0, 12, 3000)
    cases = Cases.of(cluster, bootstrap=Bootstrap(draws=40))
    plain = []
    for weights in cases.bootstrap.weights(12):
        repeated = np.sort(np.repeat(values, weights[cluster].astype(int)))
        plain.append(repeated[(len(repeated) + 1) // 2 - 1])
    assert cases.median(values).draws.tolist() == plain


def test_where_selects_and_an_empty_selection_is_unknown():
    cases = Cases.of(np.arange(4))
    values = np.array([1.0, 0, 0, 0])
    assert cases.mean(values, np.array([True, True, False, False])).value == 0.5
    empty = cases.mean(values, np.zeros(4, bool)).record()
    assert empty["n"] == 0 and empty["value"] is None and empty["low"] is None


def test_gap_names_the_ends_and_leaves_out_the_small():
    group = np.repeat([0, 1, 2], [50, 50, 3])
    values = np.where(group == 0, np.arange(103) % 10 < 8, np.arange(103) % 10 < 4).astype(float)
    cases = Cases.of(np.arange(103))
    found = gap({name: cases.mean(values, group == i) for i, name in enumerate(("en", "tr", "xx"))})
    assert (found["best"], found["worst"], found["left_out"]) == ("en", "tr", ["xx"])
    assert found["gap"]["value"] == pytest.approx(0.4)
    assert found["ratio"]["value"] == pytest.approx(0.5)
    assert 0 < found["gap"]["low"] < 0.4 < found["gap"]["high"]
    assert gap({"en": cases.mean(values, group == 0)}) is None


def test_equal_values_have_a_gap_that_holds_zero():
    rng = np.random.default_rng(3)
    values, group = (rng.random(400) < 0.5).astype(float), np.arange(400) % 2
    cases = Cases.of(np.arange(400))
    found = gap({str(i): cases.mean(values, group == i) for i in (0, 1)})
    assert found["gap"]["low"] <= 0 <= found["gap"]["high"]


def test_codes_and_numbers():
    assert codes(np.array([7, 3, 7])).tolist() == [1, 0, 1]
    assert codes(np.array([0, 0, 1]), np.array([5, 6, 5])).tolist() == [0, 1, 2]
    short = {"value": 0.33333, "low": None, "high": None, "chance": 0.0, "n": 3}
    assert number(1 / 3, float("nan"), None, 0, 3) == short
    assert is_number(number(1, 1, 1, None, 1)) and not is_number({"value": 1})
