"""`Writer`: every row its own text, in order; prompts that are alike are continued once."""

from __future__ import annotations

import contextlib
import dataclasses
import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.core.batch import Batch, Text
from mmjax.decoding.samplers import Greedy, Sampling
from mmjax.evals import writing
from mmjax.evals.writing import Writer

CONTEXT = types.SimpleNamespace(model=None, params=None, poll=lambda: None)


@dataclasses.dataclass(frozen=True, eq=False)
class Asked:
    """Row i of batch k asks the number numbers[k][i], in a prompt of lengths[k] places."""

    numbers: list
    lengths: list

    def batches(self, position=0, process=0, processes=1):
        for number, (asked, length) in enumerate(zip(self.numbers, self.lengths, strict=True)):
            rows = len(asked)
            ids = np.tile(np.array(asked, np.int32)[:, None], (1, length))
            zero, place = np.zeros_like(ids), np.tile(np.arange(length, dtype=np.int32), (rows, 1))
            text = Text(ids, zero - 1, zero + 1, zero, place, zero.astype(np.float32))
            labels = {"batch": np.full((rows, 1), number, np.int32)}
            fault = np.zeros((rows, 1), np.uint8)
            yield Batch(text=text, labels=labels, id=np.arange(rows, dtype=np.int32)[:, None], fault=fault)


class Echo:
    """Says the ids back."""

    stops = ()

    def answers(self, ids):
        return [" ".join(map(str, row)) for row in ids]


@contextlib.contextmanager
def recorded():
    """The numbers of each call to `generate`, whose answer is what was asked, and in how many places."""
    calls = []

    def generate(model, params, batch, sampler, steps, *, end, rng):
        ids = np.asarray(batch.text.ids)
        calls.append(ids[:, 0].tolist())
        told = np.stack([ids[:, 0], np.full(len(ids), ids.shape[1])], axis=1)
        return types.SimpleNamespace(ids=told, lengths=np.full(len(ids), 2))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writing, "generate", generate)
        yield calls


def said(data, sampler=Greedy()):
    stream = Writer(Echo(), 2, sampler)(CONTEXT, data)
    return [(list(texts), int(batch.labels["batch"][0, 0])) for texts, batch in stream]


ROWS = st.lists(st.integers(0, 5), min_size=4, max_size=4)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(ROWS, st.sampled_from((2, 3))), min_size=1, max_size=40))
def test_every_row_gets_its_own_text_in_order_and_no_prompt_is_continued_twice(asked):
    data = Asked([rows for rows, _ in asked], [length for _, length in asked])
    with recorded() as calls:
        assert said(data) == [([f"{row} {length}" for row in rows], k) for k, (rows, length) in enumerate(asked)]
    distinct = {(row, length) for rows, length in asked for row in rows}
    assert sum(len(set(call)) for call in calls) == len(distinct)


def test_few_prompts_in_many_batches_take_few_calls():
    with recorded() as calls:
        said(Asked([[0, 1, 2, 3], *[[k % 4] * 4 for k in range(30)]], [2] * 31))
    assert len(calls) == 1


def test_what_is_drawn_is_drawn_for_each_row():
    with recorded() as calls:
        said(Asked([[0, 0, 1, 1], [1, 0, 0, 0]], [2, 2]), Sampling())
    assert calls == [[0, 0, 1, 1], [1, 0, 0, 0]]
