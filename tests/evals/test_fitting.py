"""Judgements of pairs are counted by what is true of them."""

import types

import numpy as np
import pytest

from mmjax.core.batch import Batch
from mmjax.core.errors import UserError
from mmjax.evals.fitting import Fitting
from mmjax.evals.judging import Grouping


class Pairs:
    """Six examples in batches of four; the last two rows are padding."""

    def spec(self):
        return Batch.spec(4, labels={"tone": ((), np.int32)})

    def batches(self, *_):
        for start in (0, 4):
            number = start + np.arange(4)[:, None]
            fault = (number >= 6).astype(np.uint8)
            labels = {"tone": np.where(fault, -1, number % 2).astype(np.int32)}
            yield Batch(labels=labels, id=np.where(fault, -1, number).astype(np.int32), fault=fault)

    def fingerprint(self):
        return {}

    def names(self):
        return {"tone": ("light", "dark")}


def context(logit, valid, rows=4):
    def outputs(data, *names):
        for batch in data.batches():
            take = np.maximum(batch.id[:rows, 0], 0)
            yield {"matching": {"logit": logit[take], "valid": valid[take]}}, batch

    return types.SimpleNamespace(outputs=outputs)


# Columns: the true pair, two false ones.
LOGIT = np.array([[1, -1, -1], [1, -1, 1], [-1, -1, 2], [2, -3, -1], [-1, 1, 1], [1, 1, -1]], float)
VALID = np.array([[1, 1, 1], [1, 1, 1], [1, 0, 1], [1, 1, 0], [1, 1, 1], [0, 0, 1]], bool)


def test_rates_are_those_of_a_count_by_hand():
    found = Fitting(Pairs(), Grouping(slices=("tone",))).evaluate(context(LOGIT, VALID))
    true, false = 3 / 5, 5 / 9
    values = {name: score["value"] for name, score in found["all"].items()}
    assert values == pytest.approx({"balanced": (true + false) / 2, "true": true, "false": false}, abs=1e-4)
    assert {score["chance"] for score in found["all"].values()} == {0.5}
    assert found["slices"]["tone"]["light"]["true"]["value"] == pytest.approx(1 / 3, abs=1e-4)


def test_a_model_that_judges_nothing_or_not_all_is_refused():
    def others(data, *names):
        return (({"nll": 0}, batch) for batch in data.batches())

    with pytest.raises(UserError, match="no output of the model is called 'matching'"):
        Fitting(Pairs()).evaluate(types.SimpleNamespace(outputs=others))
    with pytest.raises(UserError, match="the model judges 3 of 4 rows; in evaluation it must judge them all"):
        Fitting(Pairs()).evaluate(context(LOGIT, VALID, rows=3))
