"""Samples of like length in batches of their own: nobody is lost, cut or doubled, whoever reads from wherever."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import json

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.bucketed import Bucket, Bucketed, buckets_of
from data_pipelines.budget import PADDING, Budget
from data_pipelines.chat import ChatFeature
from data_pipelines.mixture import Mixture
from data_pipelines.pipeline import Pipeline
from data_pipelines.templates import prefix_answer
from data_pipelines.tokenizers import Bytes
from mmjax.core.batch import Batch
from mmjax.core.config import from_json, to_json
from mmjax.core.errors import DataError, UserError
from mmjax.core.layout import Layout
from mmjax.core.protocols import Data, Shapes, specs_of
from mmjax.evals.absent import Without
from mmjax.heads.language import Language
from mmjax.models.decoder import Decoder
from mmjax.nn.embeddings import TokenEmbedding
from mmjax.nn.norms import Identity
from mmjax.nn.stack import Stack
from mmjax.objectives.language import Language as PredictNext
from mmjax.training import loop
from mmjax.training.check import check
from mmjax.training.checkpoints import Checkpoints
from mmjax.training.experiment import Experiment, weighted
from mmjax.training.hooks import Hook
from mmjax.training.optim import adamw
from mmjax.training.writers import Jsonl, Writers, read_metrics
from tests.data_pipelines.toy_talks import LONGEST, Talks, same, talks

BUCKETS = (Bucket(10, 8), Bucket(16, 4), Bucket(LONGEST, 2))


def bucketed(data=None, **changes):
    return Bucketed(data or talks(), **{"buckets": BUCKETS, "window": 24, "threads": 1} | changes)


def shapes(batch):
    return [leaf.shape for leaf in jax.tree.leaves(batch)]


def starts(data):
    """Where each batch begins, and the end."""
    return [0, *itertools.accumulate(batch.rows for batch in data.batches())]


@st.composite
def all_buckets(draw):
    lengths = [*sorted(draw(st.sets(st.integers(1, LONGEST - 1), max_size=4))), LONGEST]
    return tuple(Bucket(length, draw(st.integers(1, 9))) for length in lengths)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 60), all_buckets(), st.integers(1, 70), st.integers(1, 3), st.sampled_from([None, 0, 5]))
def test_every_sample_comes_once_as_it_stands_alone_in_a_row_that_holds_it(size, buckets, window, epochs, shuffle):
    data = talks(Talks(size), epochs=epochs)
    whole = bucketed(data, buckets=buckets, window=window, shuffle=shuffle)
    found, known = list(whole.batches()), [shapes(spec) for spec in whole.specs()]
    alone = talks(Talks(size), shuffle=None).rows(np.arange(size))
    seen = collections.Counter()
    for batch in found:
        batch.check()
        assert shapes(batch) in known
        real = batch.id[:, 0] >= 0
        assert real.all() or (batch is found[-1] and (batch.fault[~real] == PADDING).all())
        seen.update(batch.id[real, 0].tolist())
        theirs = jax.tree.map(lambda leaf, ids=batch.id[real, 0]: leaf[ids], alone)
        length = batch.text.ids.shape[1]
        assert not theirs.text.valid[:, length:].any()
        cut = theirs.replace(text=jax.tree.map(lambda leaf, length=length: leaf[:, :length], theirs.text))
        assert same(cut, jax.tree.map(lambda leaf, real=real: leaf[real], batch))
    assert seen == dict.fromkeys(range(size), epochs)
    used = sum(batch.text.valid.sum() for batch in found) / sum(batch.text.ids.size for batch in found)
    assert whole.useful() == pytest.approx(used)


def test_a_stream_goes_on_after_any_batch_to_the_last_bit():
    data = bucketed(talks(epochs=2))
    whole, begins = list(data.batches()), starts(data)
    assert len({batch.rows for batch in whole}) == 3
    for number, position in enumerate(begins):
        late = list(bucketed(talks(epochs=2), threads=3).batches(position))
        assert len(late) == len(whole) - number
        assert all(map(same, whole[number:], late))


def test_a_position_inside_a_batch_starts_with_that_batch():
    data = bucketed()
    for position in range(starts(data)[-1]):
        number = np.searchsorted(starts(data), position, side="right") - 1
        assert same(next(data.batches(position)), next(data.batches(starts(data)[number])))


def test_an_endless_stream_neither_loses_nor_doubles_a_sample_in_a_pass():
    """Fewer samples than the last bucket has rows are ever late for the next pass."""
    seen, lengths = collections.Counter(), set()
    for batch in itertools.islice(bucketed(talks(epochs=None)).batches(), 90):
        seen.update(batch.id[:, 0].tolist())
        lengths.add(batch.text.ids.shape[1])
        passes = seen.total() // 40
        late = sum(max(0, passes - seen[number]) for number in range(40))
        assert late < BUCKETS[-1].rows and max(seen.values()) <= passes + 1
    assert passes >= 5 and len(lengths) == 3


def test_passes_differ_and_so_do_seeds():
    order = [batch.id[:, 0].tolist() for batch in bucketed(talks(epochs=2), window=40).batches()]
    assert order[: len(order) // 2] != order[len(order) // 2 :]
    assert [b.id[:, 0].tolist() for b in bucketed(talks(epochs=2), window=40, shuffle=1).batches()] != order
    lengths = [batch.text.ids.shape[1] for batch in bucketed(shuffle=None, window=40).batches()]
    assert lengths == sorted(lengths)


@pytest.mark.parametrize("processes", [2])
def test_any_number_of_processes_sees_the_same_rows(processes):
    position = starts(bucketed())[2]
    whole = list(bucketed().batches(position))
    shares = [list(bucketed(threads=2).batches(position, process, processes)) for process in range(processes)]
    for batch, parts in zip(whole, zip(*shares, strict=True), strict=True):
        assert same(batch, jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts))


def test_worker_processes_read_the_same_batches():
    assert all(map(same, bucketed().batches(), bucketed(workers=1).batches()))


def test_a_damaged_sample_is_null_in_its_place_and_moves_nobody():
    torn = (4, 7, 11, 13)
    good, bad = bucketed(), bucketed(talks(Talks(torn=torn)), budget=Budget(least=99))
    told = []
    for one, other in zip(good.batches(), bad.batches(), strict=True):
        other.check()
        assert np.array_equal(one.id, other.id)
        assert np.array_equal(other.fault > PADDING, np.isin(other.id, torn))
        told += bad.faults(other)
    assert sorted(entry["id"] for entry in told) == sorted(torn)
    with pytest.raises(DataError, match="too many bad records: 4 of"):
        list(bucketed(talks(Talks(torn=torn)), budget=Budget(0.0, 3)).batches())


def test_a_mixture_is_dealt_too():
    parts = (talks(Talks(30), epochs=None), talks(Talks(20), epochs=None, shuffle=9))
    data = bucketed(Mixture(parts, (2.0, 1.0)), window=30)
    batches = list(itertools.islice(data.batches(), 20))
    drawn = collections.Counter(np.concatenate([batch.id[:, 0] for batch in batches]).tolist())
    stream = data.data.rows(np.arange(drawn.total())).id[:, 0]
    late = collections.Counter(stream.tolist()) - drawn
    assert late.total() < 30 + BUCKETS[-1].rows and max(drawn) >= 30
    assert {batch.text.ids.shape[1] for batch in batches} == {10, 16, LONGEST}


def test_less_is_padded_than_in_rows_of_one_length():
    one = bucketed(talks(Talks(400)), buckets=(Bucket(LONGEST, 8),), window=400)
    many = bucketed(talks(Talks(400)), buckets=buckets_of(208, (8, 12, 16, 20, LONGEST)), window=400)
    assert many.useful() > 1.3 * one.useful()


def test_buckets_of_as_many_tokens():
    assert buckets_of(1_024, (64, 128, 256)) == (Bucket(64, 16), Bucket(128, 8), Bucket(256, 4))
    assert buckets_of(1_000, (64, 100), multiple=4) == (Bucket(64, 12), Bucket(100, 8))
    with pytest.raises(UserError, match="tokens=1000 hold no 4 rows of 256 slots; give at least 1024"):
        buckets_of(1_000, (64, 256), multiple=4)


# ------------------------------------------------------------------------------------------------------------ training


def experiment(steps, **changes):
    """A decoder of no depth that reads dialogues of three lengths."""
    chat = ChatFeature(Bytes(), prefix_answer(), LONGEST)
    data = bucketed(Pipeline(Wordy(), (chat,), 1, shuffle=3, threads=1))
    decoder = Decoder(TokenEmbedding(Bytes().size, 8), Stack(Identity(), 0), Language(Bytes().size))
    settings = {"layout": Layout(data=2), "accumulate": 1, "log_every": 1, "checkpoints": Checkpoints(every=3)}
    return Experiment(
        decoder, data, {"language": weighted(1.0, PredictNext())}, adamw(1e-2), steps, **settings | changes
    )


@dataclasses.dataclass(frozen=True)
class Wordy(Talks):
    """Without pictures."""

    def __getitem__(self, index):
        return {name: value for name, value in super().__getitem__(index).items() if name != "image"}


def fit(folder, trained):
    writers = Writers((Jsonl(folder / "metrics.jsonl"),))
    state = loop.train(trained, folder, writers=writers, devices=jax.devices()[: trained.layout.data])
    records = [record for record in read_metrics(folder / "metrics.jsonl") if record["kind"] == "train"]
    return jax.device_get(state.params), records


def test_a_run_compiles_its_step_once_per_bucket_and_goes_on_bit_for_bit(tmp_path, monkeypatch):
    compiled, traced, at_step = [], [], []

    def executable(lowered, platform):
        compiled.append(lowered)
        return lowered.compile()

    @dataclasses.dataclass(frozen=True)
    class Watch(Hook):
        def after(self, folder, step, state, metrics):
            at_step.append(len(traced))

    monkeypatch.setattr(loop, "executable", executable)
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, _, **__: traced.append(event) if event == "/jax/core/compile/jaxpr_trace_duration" else None
    )
    try:
        whole, records = fit(tmp_path / "whole", experiment(12, hooks=(Watch(),), checkpoints=Checkpoints(every=100)))
    finally:
        jax.monitoring.clear_event_listeners()
    sizes = [batch.rows for batch in itertools.islice(experiment(1).data.batches(), 12)]
    assert set(sizes) == {8, 4, 2} and len(compiled) == 3
    assert len(at_step) == 12 and set(at_step) == {at_step[0]}
    assert [record["examples"] for record in records] == list(itertools.accumulate(sizes))
    fit(tmp_path / "parts", experiment(5))
    again, later = fit(tmp_path / "parts", experiment(12))
    jax.tree.map(np.testing.assert_array_equal, whole, again)
    assert [record["loss"].hex() for record in later] == [record["loss"].hex() for record in records]


def test_accumulation_and_devices_must_divide_the_rows_of_every_bucket():
    check(experiment(1), 2)
    with pytest.raises(UserError, match=r"accumulate=4 does not divide a batch of 2 rows"):
        check(experiment(1, accumulate=4), 2)
    with pytest.raises(UserError, match=r"a batch of 2 rows cannot be split over .*data=4"):
        check(experiment(1, layout=Layout(data=4)), 4)


# ----------------------------------------------------------------------------------------------------------- refusals


def test_buckets_that_do_not_fit_are_told_before_anything_is_read():
    with pytest.raises(UserError, match=r"as long as the rows of data \(26 slots\); got 16"):
        bucketed(buckets=BUCKETS[:2]).spec()
    with pytest.raises(UserError, match=r"at most as many rows as a pass of the data \(5\)"):
        bucketed(talks(Talks(5), epochs=None), buckets=(Bucket(LONGEST, 6),)).batches()
    with pytest.raises(UserError, match=r"become longer from one to the next; got lengths \[16, 10\]"):
        bucketed(buckets=(Bucket(16, 1), Bucket(10, 1)))
    with pytest.raises(UserError, match=r"must be there.*got lengths \[\]"):
        bucketed(buckets=())
    with pytest.raises(UserError, match="length and rows of at least 1; got 3 and 0"):
        Bucket(3, 0)
    with pytest.raises(UserError, match="window must be at least 1; got 0"):
        bucketed(window=0)
    with pytest.raises(UserError, match=r"batches of 8, 4, 2 rows cannot be shared by 4 processes \(this is 1\)"):
        bucketed().batches(process=1, processes=4)
    with pytest.raises(UserError, match="one feature that can tell sizes, such as ChatFeature; got 2"):
        bucketed(dataclasses.replace(talks(), features=(*talks().features, talks().features[0]))).useful()


def test_records_that_grew_since_they_were_measured_are_told():
    assert bucketed(talks(Talks(12))).useful()
    with pytest.raises(DataError, match=r"example \d+ has more text than when .* Delete lengths-\*.npy"):
        list(bucketed(talks(Talks(12, grown=8))).batches())


def test_bucketed_data_are_data_their_own_configuration_and_tell_what_changes_them():
    data = bucketed()
    assert isinstance(data, Data) and isinstance(data, Shapes)
    assert [shapes(spec) for spec in specs_of(talks())] == [shapes(talks().spec())]
    assert [spec.text.ids.shape for spec in specs_of(data)] == [(8, 10), (4, 16), (2, LONGEST)]
    assert [shapes(spec) for spec in specs_of(Without(data))] == [shapes(spec) for spec in data.specs()]
    assert shapes(data.spec()) == shapes(data.specs()[-1])
    chosen = dataclasses.replace(data, data=dataclasses.replace(data.data, source=Bytes()))  # of trusted modules
    assert from_json(json.loads(json.dumps(to_json(chosen)))) == chosen
    others = [bucketed(buckets=BUCKETS[1:]), bucketed(window=17), bucketed(shuffle=None), bucketed(talks(shuffle=4))]
    assert bucketed(threads=3).fingerprint() == data.fingerprint()
    assert len({json.dumps(other.fingerprint()) for other in [data, *others]}) == 5
    assert data.names() == {} and data.example(2)["question"] == "ccc"
    for spec in data.specs():
        Batch.fake(spec, 1).check()
