"""Texts and labels as rows of a batch."""

from __future__ import annotations

import numpy as np
import pytest
from toy_sources import Captions, Counted

from data_pipelines.chunks import Chunk
from data_pipelines.features import Causal, LabelFeature, TextFeature
from data_pipelines.pipeline import Pipeline
from data_pipelines.tokenizers import Bytes
from mmjax.core.errors import UserError


def built(feature, values, field="caption", **names):
    chunk = Chunk({field: values}, np.arange(len(values), dtype=np.uint64), names)
    return feature.build(chunk), chunk


def test_a_bidirectional_text_is_one_block_without_loss():
    text = built(TextFeature(Bytes(), length=6), ["abc"])[0]["text"]
    assert text.ids.tolist() == [[101, 102, 103, 0, 0, 0]]
    assert text.segment.tolist() == [[1, 1, 1, 0, 0, 0]]
    assert text.position.tolist() == [[0, 1, 2, 0, 0, 0]]
    assert not text.block.any() and not text.loss.any() and (text.slot == -1).all()


def test_a_causal_text_predicts_all_but_its_first_id():
    feature = TextFeature(Bytes(), length=6, reading=Causal(), begin=(2,), end=(3,))
    text = built(feature, ["abc"])[0]["text"]
    assert text.ids.tolist() == [[2, 101, 102, 103, 3, 0]]
    assert text.block.tolist() == [[0, 1, 2, 3, 4, 0]]
    assert text.loss.tolist() == [[0, 1, 1, 1, 1, 0]]


def test_a_text_that_is_too_long_keeps_its_marks_and_the_loss_is_counted():
    feature = TextFeature(Bytes(), length=4, begin=(2,), end=(3,))
    parts, chunk = built(feature, ["abcdef", "ab", None])
    assert parts["text"].ids.tolist() == [[2, 101, 102, 3], [2, 101, 102, 3], [0, 0, 0, 0]]
    assert feature.lost(chunk).tolist() == [[4], [0], [0]]
    with pytest.raises(UserError, match="2 slots hold no text"):
        TextFeature(Bytes(), length=2, begin=(2,), end=(3,))


def test_several_texts_of_a_row_are_samples_in_places_of_their_own():
    feature = TextFeature(Bytes(), length=3, samples=3)
    text = built(feature, [("ab", "c", "d"), ("e", None), "f"])[0]["text"]
    assert text.segment.tolist() == [[1, 1, 0, 2, 0, 0, 3, 0, 0], [1, 0, 0, 0, 0, 0, 0, 0, 0], [1, 0, 0] + [0] * 6]
    assert text.position.reshape(3, 3, 3)[0].tolist() == [[0, 1, 0], [0, 0, 0], [0, 0, 0]]
    assert text.ids.reshape(3, 3, 3)[:, 0, 0].tolist() == [101, 105, 106]


def test_packed_captions_make_a_valid_batch_whose_samples_are_told_apart():
    source = Captions(("ab", None, "cd"), (True, True, False))
    data = Pipeline(source, (TextFeature(Bytes(), length=3, samples=2), LabelFeature("number")), 3, epochs=1)
    (batch,) = data.batches()
    batch.check()
    assert batch.present("text").tolist() == [[True, False], [False, False], [True, False]]
    assert batch.labels["number"].tolist() == [[0, 0], [1, 1], [2, 2]] and batch.id.shape == (3, 2)


@pytest.mark.parametrize("value", [7, b"bytes", ("a", 3), ("a", "b", "c")])
def test_what_is_not_text_makes_its_row_null(value):
    parts, chunk = built(TextFeature(Bytes(), length=4, samples=2), ["fine", value])
    assert list(chunk.errors) == [1] and chunk.errors[1].fault == "bad_schema"
    assert parts["text"].ids.shape == (2, 8)


def test_labels_take_numbers_names_arrays_and_nothing():
    kinds = LabelFeature("kind")
    parts, chunk = built(kinds, [2, "green", None, "purple", "x"], "kind", kind=("red", "green", "blue"))
    assert parts["labels"]["kind"][:, 0].tolist()[:3] == [2, 1, -1]
    assert list(chunk.errors) == [3, 4] and chunk.errors[3].fault == "bad_value"
    boxes = LabelFeature("box", "float32", (2,))
    parts, chunk = built(boxes, [(1, 2), None, np.array([3.0, 4.0]), (1, 2, 3)], "box")
    assert parts["labels"]["box"][0, 0].tolist() == [1, 2] and np.isnan(parts["labels"]["box"][1]).all()
    assert list(chunk.errors) == [3] and "'box' must hold float32 [2]" in chunk.errors[3].reason


def test_a_label_may_differ_between_the_samples_of_a_row():
    parts, _ = built(LabelFeature("language", samples=2), np.array([[1, 2], [3, 4]]), "language")
    assert parts["labels"]["language"].tolist() == [[1, 2], [3, 4]]
    parts, _ = built(LabelFeature("language", samples=2), [(5, 6), None], "language")
    assert parts["labels"]["language"].tolist() == [[5, 6], [-1, -1]]


def test_names_are_those_of_labels_that_are_there():
    assert Pipeline(Counted(4), (LabelFeature("number"),), 2).names() == {}
