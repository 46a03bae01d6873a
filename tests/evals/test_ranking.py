"""Ranks against hand-worked numbers, chance against simulation."""

from __future__ import annotations

import numpy as np
import pytest

from mmjax.evals import ranking
from mmjax.evals.ranking import Relation, chance_median_rank, chance_precision, chance_recall, rank


def relation(*positives):
    pairs = [(q, g) for q, items in enumerate(positives) for g in items]
    keys, items = np.array(pairs).T
    return Relation.between(np.arange(len(positives)), keys, items, len(positives))


# Four gallery items on the axes; a query's coordinates are its similarities to them.
GALLERY = np.eye(4, dtype=np.float32)


def test_hand_worked_ranks():
    queries = np.array([[0.9, 0.5, 0.3, 0.1], [0.9, 0.5, 0.3, 0.1], [0.1, 0.2, 0.3, 0.4]], np.float32)
    found = rank(queries, GALLERY, relation([0], [1, 3], [0, 2]))
    assert found.rank.tolist() == [1, 2, 2]
    # Positives at places 1 | 2 and 4 | 2 and 4: average precision 1 | (1/2 + 2/4) / 2 | (1/2 + 2/4) / 2.
    np.testing.assert_allclose(found.precision, [1, 0.5, 0.5])
    assert found.recall(1).tolist() == [1, 0, 0]
    assert found.recall(2).tolist() == [1, 1, 1]
    assert found.positives.tolist() == [1, 2, 2]


def test_ties_count_against_the_model():
    collapsed = np.ones((2, 4), np.float32)
    found = rank(collapsed, GALLERY, relation([2], [0, 1]))
    assert found.rank.tolist() == [4, 3]
    np.testing.assert_allclose(found.precision, [1 / 4, 2 / 4])


def test_chunks_do_not_change_the_answer(monkeypatch):
    rng = np.random.default_rng(0)
    queries, gallery = rng.normal(size=(37, 5)).astype(np.float32), rng.normal(size=(23, 5)).astype(np.float32)
    right = relation(*[rng.choice(23, rng.integers(1, 6), replace=False) for _ in range(37)])
    whole = rank(queries, gallery, right)
    monkeypatch.setattr(ranking, "_CHUNK", 23 * 4)
    parts = rank(queries, gallery, right)
    assert whole.rank.tolist() == parts.rank.tolist()
    np.testing.assert_allclose(whole.precision, parts.precision)


def test_against_sorting():
    rng = np.random.default_rng(1)
    queries, gallery = rng.normal(size=(20, 6)), rng.normal(size=(15, 6))
    positives = [set(rng.choice(15, rng.integers(1, 5), replace=False).tolist()) for _ in range(20)]
    found = rank(queries.astype(np.float32), gallery.astype(np.float32), relation(*map(sorted, positives)))
    for q, right in enumerate(positives):
        order = np.argsort(-(gallery @ queries[q]))
        places = [i + 1 for i, item in enumerate(order) if item in right]
        assert found.rank[q] == places[0]
        assert found.precision[q] == pytest.approx(np.mean([(i + 1) / place for i, place in enumerate(places)]))


@pytest.mark.parametrize(("pool", "positives"), [(10, 1), (10, 3), (30, 14), (5, 5)])
def test_chance_is_what_random_orders_give(pool, positives):
    rng = np.random.default_rng(2)
    trials = 20_000
    places = np.sort(rng.permuted(np.tile(np.arange(1, pool + 1), (trials, 1)), axis=1)[:, :positives], axis=1)
    for k in (1, 3, 5):
        assert chance_recall(pool, positives, k) == pytest.approx((places[:, 0] <= k).mean(), abs=0.015)
    precision = (np.arange(1, positives + 1) / places).mean()
    assert chance_precision(np.array([pool]), np.array([positives]))[0] == pytest.approx(precision, abs=0.01)
    median = chance_median_rank(np.array([pool]), np.array([positives]))
    assert (places[:, 0] <= median).mean() >= 0.49
    assert (places[:, 0] <= median - 1).mean() <= 0.51


def test_chance_of_all_of_it_is_one():
    assert chance_recall(10, 1, 1) == pytest.approx(0.1)
    assert chance_recall(10, 1, 10) == 1.0
    assert chance_recall(3, 1, 10) == 1.0
    np.testing.assert_allclose(chance_recall([4, 8], [2, 1], 2), [1 - 1 / 6, 0.25])
