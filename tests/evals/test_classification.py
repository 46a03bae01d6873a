"""Zero-shot, neighbours and probes: right on what is separable, at chance on what is not."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from mmjax.core.batch import Batch
from mmjax.core.errors import UserError
from mmjax.evals.classification import Judge
from mmjax.evals.embeddings import Embedded
from mmjax.evals.neighbours import Neighbours, vote
from mmjax.evals.probe import Probe, ridge
from mmjax.evals.prompts import Prompts, reader_of
from mmjax.evals.zeroshot import ZeroShot, spoken

NAMES = ("animals", "food-drink", "flags", "people_body")
SIZE = 160


def clouds(table, seed, noise=0.3):
    """Four classes around four directions in 8 dimensions, each picture twice."""
    rng = np.random.default_rng(seed)
    picture = np.arange(SIZE) // 2
    labels = {"group": picture % 4, "picture": picture}
    axes = np.eye(8)[:4] * 2
    vectors = (axes[picture % 4] + noise * rng.normal(size=(SIZE // 2, 8))[picture]).astype(np.float32)
    return table(SIZE, labels, {"group": NAMES}, rows=32), vectors


@dataclasses.dataclass(frozen=True, eq=False)
class TwoSets:
    """An EvalContext that has a vector table for each data set."""

    tables: tuple  # (data, answers)
    model = params = None
    step = 0

    def outputs(self, data, *names):
        for known, context in self.tables:
            if known is getattr(data, "data", data):
                return context.outputs(data, *names)
        raise AssertionError("unexpected data")


@pytest.mark.parametrize("kind", [Neighbours, Probe])
def test_separable_classes_are_told_apart(table, answers, kind):
    (train, x), (test, y) = clouds(table, 0), clouds(table, 1)
    context = TwoSets(((train, answers({"image": x})), (test, answers({"image": y}))))
    found = kind(train, test, Judge("group"), same="picture").evaluate(context)
    assert found["all"]["accuracy"]["value"] == 1.0
    assert found["all"]["balanced"]["value"] == 1.0
    assert found["all"]["accuracy"]["n"] == SIZE // 2  # each picture once
    assert found["all"]["accuracy"]["chance"] == 0.25
    assert found["confusions"] == []
    assert set(found["recall"]) == set(NAMES)


@pytest.mark.parametrize("kind", [Neighbours, Probe])
def test_random_labels_stay_at_chance(table, answers, kind):
    (train, x), (test, y) = clouds(table, 0), clouds(table, 1)
    shuffled = {"group": np.random.default_rng(2).integers(0, 4, SIZE), "picture": np.arange(SIZE)}
    train = dataclasses.replace(train, labels=shuffled)
    context = TwoSets(((train, answers({"image": x})), (test, answers({"image": y}))))
    accuracy = kind(train, test, Judge("group"), same="picture").evaluate(context)["all"]["accuracy"]
    assert accuracy["value"] < 0.45
    assert accuracy["low"] < 0.3


def test_ridge_solves_its_equations():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 5)), rng.normal(size=(30, 2))
    for penalty, found in zip((0.1, 3.0), ridge(x, y, (0.1, 3.0)), strict=True):
        np.testing.assert_allclose(found, np.linalg.solve(x.T @ x / 30 + penalty * np.eye(5), x.T @ y / 30), atol=1e-10)


def test_votes_of_nearest_only():
    known = np.array([[1, 0], [0.8, 0.6], [0, 1]], np.float32)
    scores = vote(known, np.array([0, 1, 2]), np.array([[1, 0]], np.float32), classes=3, k=2, temperature=0.1)
    np.testing.assert_allclose(scores, [[1, np.exp(-2), 0]], rtol=1e-5)


def test_equal_scores_earn_nothing():
    truth = np.array([0, 1, 1, 1])
    found = Embedded({}, {"group": truth}, np.arange(4), {"group": NAMES})
    results = Judge("group").results("x", found, np.ones((4, 4)))
    assert results["all"]["accuracy"]["value"] == 0.0
    assert results["all"]["accuracy"]["chance"] == 0.75  # always the most frequent class
    assert results["all"]["balanced"]["chance"] == 0.5


def test_balanced_accuracy_weighs_classes_alike():
    truth = np.array([0] * 9 + [1])
    found = Embedded({}, {"group": truth}, np.arange(10), {"group": NAMES})
    results = Judge("group").results("x", found, np.tile([1.0, 0, 0, 0], (10, 1)))
    assert (results["all"]["accuracy"]["value"], results["all"]["balanced"]["value"]) == (0.9, 0.5)
    assert results["confusions"] == [{"true": "food-drink", "said": "animals", "n": 1}]


@dataclasses.dataclass(frozen=True)
class Reader:
    """Hides which class a text names in its first id."""

    def texts(self, texts):
        full = Batch.fake(Batch.spec(len(texts), text=4))
        ids = np.array([[next(i for i, name in enumerate(NAMES) if spoken(name) in text)] for text in texts])
        one, places = np.ones((len(texts), 4), np.int32), np.tile(np.arange(4, dtype=np.int32), (len(texts), 1))
        ids = np.repeat(ids, 4, 1).astype(np.int32)
        text = dataclasses.replace(full.text, ids=ids, segment=one, position=places, slot=-one)
        return full.replace(text=text)


def test_zero_shot(table, answers, reads):
    def axis(batch):  # a prompt about class i lies on axis i
        return np.eye(8, dtype=np.float32)[batch.text.ids[:, 0]]

    data, vectors = clouds(table, 0)
    task = ZeroShot(data, Judge("group", slices=("picture",)), Reader(), ("{}", "a drawing of {}"), same="picture")
    found = task.evaluate(reads(data, answers({"image": vectors}), axis))
    assert found["all"]["accuracy"]["value"] == 1.0
    assert found["prompts"] == ["animals", "a drawing of animals"]
    renamed = dataclasses.replace(task, words={"animals": "flags"})  # said wrongly: its class cannot be found
    found = renamed.evaluate(reads(data, answers({"image": vectors}), axis))
    assert found["recall"]["animals"]["value"] == 0.0


def test_prompts_are_data_with_padding():
    prompts = Prompts(Reader(), ("animals", "flags", "a flags"), rows=2)
    first, last = prompts.batches()
    assert [batch.check().rows for batch in (first, last)] == [2, 2]
    assert last.id[:, 0].tolist() == [2, -1] and np.asarray(last.valid)[:, 0].tolist() == [True, False]
    assert prompts.spec().text.ids.shape == (2, 4)
    assert [batch.id[0, 0] for batch in prompts.batches(position=2)] == [2]


def test_wrong_templates_and_missing_reader(table):
    data, _ = clouds(table, 0)
    with pytest.raises(UserError, match=r"holds \{\} once"):
        ZeroShot(data, Judge("group"), Reader(), ("a picture",))
    with pytest.raises(UserError, match="no part that turns texts into batches"):
        reader_of(data)
