"""What a pipeline promises beyond its order: null examples, budget, padding, early refusals, a stable JSON form."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from toy_sources import Captions, Counted, Gathered, Spoilt

from data_pipelines import chunks
from data_pipelines.budget import Budget
from data_pipelines.features import ImageFeature, LabelFeature, TextFeature
from data_pipelines.pipeline import Pipeline
from data_pipelines.tokenizers import Bytes
from mmjax.core.batch import FAULTS
from mmjax.core.config import from_json, override, to_json
from mmjax.core.errors import DataError, ExitCode, UserError
from mmjax.core.protocols import Data

BAD = (3, 10, 11, 40, 57, 62)
LABELS = (LabelFeature("number"), LabelFeature("kind"))


def test_bad_records_become_null_examples_and_move_nobody():
    good = Pipeline(Counted(64), LABELS, 16, shuffle=1, epochs=1)
    spoilt = Pipeline(Spoilt(64, BAD), LABELS, 16, shuffle=1, epochs=1)
    counts, told = {}, []
    for left, right in zip(good.batches(), spoilt.batches(), strict=True):
        right.check()
        real = right.valid[:, 0]
        assert np.array_equal(left.id, right.id)
        assert np.array_equal(left.labels["number"][real], right.labels["number"][real])
        assert (right.labels["number"][~real] == -1).all() and (right.labels["kind"][~real] == -1).all()
        for code in right.fault[~real, 0]:
            counts[FAULTS[code]] = counts.get(FAULTS[code], 0) + 1
        told += spoilt.faults(right)
    assert counts == {"unreadable": 3, "bad_schema": 3}
    assert sorted(entry["id"] for entry in told) == sorted(BAD)
    torn = next(entry for entry in told if entry["id"] == 11)
    assert torn == {"id": 11, "fault": "unreadable", "reason": "record 11 is torn", "where": "line 12"}
    assert json.loads(json.dumps(told)) == told


def test_the_budget_stops_the_run_and_says_why():
    bad = tuple(range(0, 2000, 3))
    data = Pipeline(Spoilt(2000, bad), LABELS, 50, budget=Budget(ratio=0.05, least=20))
    seen = 0
    with pytest.raises(DataError, match=r"too many bad records: \d+ of \d+ examples seen \(.*bad_schema") as caught:
        for batch in data.batches():
            seen += batch.rows
    assert caught.value.code == ExitCode.DATA
    assert seen < 200
    assert "line 1: bad_schema: 'number' must hold int32" in str(caught.value)


def test_a_few_bad_records_are_within_the_budget_of_an_endless_run():
    batches = Pipeline(Spoilt(64, BAD[:2]), LABELS, 16, shuffle=0).batches()
    assert sum(int((~next(batches).valid).sum()) for _ in range(40)) == 20


def test_too_many_different_bad_records_stop_it_whatever_the_ratio():
    data = Pipeline(Spoilt(100, tuple(range(12))), LABELS, 10, budget=Budget(ratio=1.0, most=11))
    with pytest.raises(DataError, match="12 different ones"):
        list(zip(range(20), data.batches(), strict=False))


def test_a_finite_pass_pads_its_last_batch():
    data = Pipeline(Gathered(10), LABELS, 4, epochs=1)
    batches = [batch.check() for batch in data.batches()]
    assert [batch.rows for batch in batches] == [4, 4, 4]
    assert batches[-1].fault[:, 0].tolist() == [0, 0, FAULTS.index("padding"), FAULTS.index("padding")]
    assert batches[-1].id[:, 0].tolist() == [8, 9, -1, -1]
    assert batches[-1].labels["number"][:, 0].tolist() == [8, 9, -1, -1]
    assert data.faults(batches[-1]) == []
    assert list(data.batches(position=12)) == []


def test_a_host_whose_share_is_all_padding_still_gets_a_batch():
    share = list(Pipeline(Gathered(5), LABELS, 4, epochs=1).batches(4, 1, 2))
    assert len(share) == 1 and not share[0].valid.any()


@pytest.mark.parametrize("source", [Counted(0), Gathered(0)])
def test_an_empty_data_set_is_refused_before_anything_runs(source):
    data = Pipeline(source, LABELS, 4)
    for start in (data.spec, data.batches):
        with pytest.raises(DataError, match="the data set is empty"):
            start()


def test_a_batch_larger_than_the_data_is_refused_for_training_and_padded_for_evaluation():
    with pytest.raises(DataError, match="a batch of 40 is larger than the data set .10 records.: choose batch=10"):
        Pipeline(Counted(10), LABELS, 40).spec()
    (only,) = Pipeline(Counted(10), LABELS, 40, epochs=1).batches()
    assert int(only.valid.sum()) == 10


def test_wrong_settings_are_told_at_once():
    with pytest.raises(UserError, match="batch must be at least 1; got 0"):
        Pipeline(Counted(10), LABELS, 0)
    with pytest.raises(UserError, match="two features make 'image'"):
        Pipeline(Counted(10), (ImageFeature(), ImageFeature("other")), 4).spec()
    with pytest.raises(UserError, match="at least one feature"):
        Pipeline(Counted(10), (), 4).spec()


def test_storage_that_recovers_is_asked_again_and_other_storage_stops_the_run(monkeypatch):
    monkeypatch.setattr(chunks, "_PATIENCE_S", (0.0, 0.0))
    asked = []

    @dataclasses.dataclass(frozen=True)
    class Flaky(Counted):
        failures: int = 2

        def __getitem__(self, index):
            asked.append(index)
            if index == 1 and asked.count(1) <= self.failures:
                raise OSError(116, "Stale file handle")
            return super().__getitem__(index)

    (batch,) = Pipeline(Flaky(4), LABELS, 4, epochs=1, threads=1).batches()
    assert batch.valid.all() and asked.count(1) == 3
    asked.clear()
    with pytest.raises(UserError, match="reading data failed 3 times: .*Stale file handle") as caught:
        list(Pipeline(Flaky(4, failures=99), LABELS, 4, epochs=1, threads=1).batches())
    assert caught.value.code == ExitCode.RETRY


def test_a_missing_modality_is_absent_not_bad():
    source = Captions(("a cat", None, "", None), (True, True, False, False))
    features = (ImageFeature(height=4, width=4), TextFeature(Bytes(), length=8), LabelFeature("number"))
    (batch,) = Pipeline(source, features, 4, epochs=1).batches()
    batch.check()
    assert batch.valid.all()
    assert batch.present("image")[:, 0].tolist() == [True, True, False, False]
    assert batch.present("text")[:, 0].tolist() == [True, False, False, False]
    assert (batch.text.loss == 0).all() and (batch.text.ids[1] == Bytes().pad).all()


def test_a_pipeline_is_data_and_its_own_configuration():
    data = Pipeline(Counted(10), (*LABELS, TextFeature(Bytes(), "text", 8)), 4, shuffle=7, epochs=2)
    assert isinstance(data, Data)
    rebuilt_type = dataclasses.replace(data, source=data.features[2].tokenizer)  # only trusted modules are rebuilt
    assert from_json(json.loads(json.dumps(to_json(rebuilt_type)))) == rebuilt_type
    assert override(data, {"batch": "6", "shuffle": "none", "budget.ratio": "0.5"}) == dataclasses.replace(
        data, batch=6, shuffle=None, budget=Budget(0.5)
    )


def test_the_fingerprint_follows_content_and_order_but_not_how_it_is_read():
    base = Pipeline(Counted(10), LABELS, 4, shuffle=7)
    same = (
        dataclasses.replace(base, batch=5),
        dataclasses.replace(base, threads=3),
        dataclasses.replace(base, epochs=2),
    )
    other = (
        dataclasses.replace(base, shuffle=8),
        dataclasses.replace(base, shuffle=None),
        dataclasses.replace(base, source=Counted(11)),
        dataclasses.replace(base, features=LABELS[:1]),
    )
    assert all(data.fingerprint() == base.fingerprint() for data in same)
    assert len({json.dumps(data.fingerprint()) for data in (base, *other)}) == 5


def test_an_example_is_shown_with_words_and_its_batch_matches_the_spec():
    data = Pipeline(Counted(10), LABELS, 4)
    assert data.example(4) == {"number": 4, "kind": "green"}
    assert data.names() == {"kind": ("red", "green", "blue")}
    batch, spec = next(data.batches()), data.spec()
    assert {name: (leaf.shape, leaf.dtype) for name, leaf in batch.labels.items()} == {
        name: (leaf.shape, leaf.dtype) for name, leaf in spec.labels.items()
    }
