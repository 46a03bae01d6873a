"""Several dialogues about one picture stand in one row as each would stand in its own."""

import numpy as np
import pytest

from data_pipelines.apart import Apart
from data_pipelines.chat import ChatFeature
from data_pipelines.chunks import Chunk
from data_pipelines.emoji.dialogues import EmojiDialogues
from data_pipelines.emoji.questions import EmojiQuestions
from data_pipelines.features import ImageFeature
from data_pipelines.pipeline import Pipeline
from data_pipelines.templates import prefix_answer
from data_pipelines.tokenizers import Bytes
from mmjax.core.errors import UserError

CHAT = ChatFeature(Bytes(), prefix_answer(), 24, {"image": 0}, (ImageFeature("image", 4, 4),))
PICTURE = np.full((4, 4, 3), 7, np.uint8)


def built(feature, *records):
    fields = {field for record in records for field in record}
    columns = {field: [record.get(field) for record in records] for field in fields}
    chunk = Chunk(columns, np.zeros(len(records), np.uint64))
    return feature.build(chunk), chunk


def test_each_dialogue_is_laid_out_as_alone_and_the_picture_is_there_once():
    record = {"image": PICTURE, "question": ("who", "what is it"), "answer": ("me", "a cat")}
    parts, chunk = built(Apart(CHAT, 3), record)
    text, end = parts["text"], 0
    for number, (question, answer) in enumerate(zip(record["question"], record["answer"], strict=True), 1):
        alone = built(CHAT, {"image": PICTURE, "question": question, "answer": answer})[0]["text"]
        size = int((alone.segment[0] > 0).sum())
        for name in ("ids", "block", "position", "loss", "slot"):
            np.testing.assert_array_equal(getattr(text, name)[0, end : end + size], getattr(alone, name)[0, :size])
        assert (text.segment[0, end : end + size] == number).all()
        end += size
    assert not text.segment[0, end:].any() and not chunk.errors
    assert parts["image"].pixels.shape == (1, 1, 4, 4, 3) and parts["image"].segment[0, 0] == 1


def test_what_does_not_fit_is_left_out_and_shorter_ones_behind_it_stay():
    record = {"image": PICTURE, "question": ("12345678", "12345678901", "1"), "answer": ("x", "y", "z")}
    text = built(Apart(CHAT, 3), record)[0]["text"]
    assert text.segment.max() == 2
    assert Bytes().decode(text.ids[0, text.segment[0] == 2]) == "1z"


def test_a_record_whose_first_dialogue_cannot_be_used_is_null():
    _, chunk = built(Apart(CHAT, 2), {"image": PICTURE, "question": ("x" * 30, "a"), "answer": ("y", "b")})
    assert chunk.errors[0].fault == "too_large"
    _, chunk = built(Apart(CHAT, 2), {"image": PICTURE, "question": None, "answer": "b"})
    assert "'question' is missing" in chunk.errors[0].reason


def test_media_that_land_in_the_row_are_refused():
    chat = ChatFeature(Bytes(), prefix_answer(), 24, {"image": 2}, CHAT.media)
    with pytest.raises(UserError, match="image would land in the row of one: give per_item 0"):
        Apart(chat, 2)
    with pytest.raises(UserError, match="samples=0"):
        Apart(CHAT, 0)


def test_dialogues_begin_with_their_question_and_stay_with_its_picture():
    questions = EmojiQuestions("train", 16, ("tone", "name"), ("en", "de"))
    source, indices = EmojiDialogues(questions, 3), np.arange(0, len(questions), 997)
    found, single = source.gather(indices), questions.gather(indices)
    assert [row[0] for row in found["question"]] == single["question"]
    assert [row[0] for row in found["answer"]] == single["answer"]
    by_picture: dict[int, set] = {}
    for picture, *pair in zip(questions.shown, *questions.said(np.arange(len(questions))), strict=True):
        by_picture.setdefault(int(picture), set()).add(tuple(pair))
    for place, index in enumerate(indices):
        pairs = list(zip(found["question"][place], found["answer"][place], strict=True))
        assert 1 <= len(pairs) <= 3 and set(pairs) <= by_picture[int(questions.shown[index])]
    assert max(map(len, found["question"])) == 3
    assert source.gather(indices[::-1])["question"][::-1] == found["question"]


def test_they_run_through_a_pipeline():
    source = EmojiDialogues(EmojiQuestions("train", 16, ("tone",), ("en", "de")), 2)
    chat = ChatFeature(Bytes(), prefix_answer(), 160, {"image": 0}, (ImageFeature("image", 16, 16),))
    batch = next(Pipeline(source, (Apart(chat, 2),), 8).batches()).check()
    assert batch.text.segment.max() == 2 and batch.valid.all()


def test_prompts_are_those_of_one_dialogue():
    one, several = (feature.asking(["who"], {"image": [PICTURE]}) for feature in (CHAT, Apart(CHAT, 2)))
    np.testing.assert_array_equal(one.text.ids, several.text.ids)
    assert Apart(CHAT, 2).stops == CHAT.stops and Apart(CHAT, 2).answers([[99, 97]]) == CHAT.answers([[99, 97]])
