"""Dialogues of text and media: what stands where, what is learnt, what is dropped, what is refused."""

from __future__ import annotations

import dataclasses
import json
import re

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.chat import ChatFeature
from data_pipelines.chunks import Chunk
from data_pipelines.features import Bidirectional, ImageFeature
from data_pipelines.images import RandomCrop
from data_pipelines.pieces import Field, Mark, Media, Words
from data_pipelines.pipeline import Pipeline
from data_pipelines.protocols import Feature
from data_pipelines.several import Several
from data_pipelines.templates import (
    CHAT_MARKS,
    Conversation,
    Role,
    Template,
    Turn,
    document,
    marked_chat,
    prefix_answer,
    vicuna,
)
from data_pipelines.tokenizers import MAX_BYTES, Bytes, Marked
from data_pipelines.truncation import DropLast, Refuse
from mmjax.core.batch import Batch
from mmjax.core.config import from_json, to_json
from mmjax.core.errors import UserError

ONE = ImageFeature(height=2, width=2)
WORDS = Marked(Bytes(), CHAT_MARKS)
QA = {"question": "q", "answer": "a"}


def picture(level):
    return np.full((2, 2, 3), level, np.uint8)


def chat(template, length=32, images=2, tokenizer=WORDS, **changes):
    return ChatFeature(tokenizer, template, length, {"image": 2}, (Several(ONE, images),), **changes)


def built(feature, *records):
    fields = dict.fromkeys(field for record in records for field in record)
    columns = {field: [record.get(field) for record in records] for field in fields}
    chunk = Chunk(columns, np.arange(len(records), dtype=np.uint64))
    return feature.build(chunk), chunk


def batch_of(feature, *records):
    parts, chunk = built(feature, *records)
    assert not chunk.errors, chunk.errors
    ids = np.arange(len(records), dtype=np.int32)[:, None]
    return Batch(**parts, id=ids, fault=chunk.fault[:, None]).check()


def read(text, row=0):
    """The row as a string: a letter per byte, <mark>, # for a media token; the same where it is learnt, else blanks."""
    names = {2: "(", 3: ")"} | {260 + number: mark[1].upper() for number, mark in enumerate(CHAT_MARKS)}
    real = text.segment[row] > 0
    letters = [
        "#" if slot >= 0 else names.get(number) or chr(number - 4)
        for number, slot in zip(text.ids[row][real].tolist(), text.slot[row][real].tolist(), strict=True)
    ]
    learnt = [letter if weight else " " for letter, weight in zip(letters, text.loss[row][real], strict=True)]
    return "".join(letters), "".join(learnt)


def told(feature, record):
    """(fault, reason) of a record that cannot be built."""
    (error,) = built(feature, record)[1].errors.values()
    return error.fault, error.reason


# ------------------------------------------------------------------------------------------------------- templates


def test_prefix_and_answer_stand_as_in_paligemma():
    feature = chat(prefix_answer(), tokenizer=Bytes())
    batch = batch_of(feature, {"image": (picture(1), picture(2)), "question": "hue?", "answer": "red"})
    assert read(batch.text) == ("####(hue?red)", "         red)")
    assert batch.text.block[0, :13].tolist() == [0] * 9 + [1, 2, 3, 4]
    assert batch.text.slot[0, :5].tolist() == [0, 1, 2, 3, -1]


CONVERSATION = {
    "image": picture(7),
    "conversations": [
        {"from": "human", "value": "<image>hi"},
        {"from": "gpt", "value": "yo"},
        {"from": "human", "value": "hm"},
        {"from": "gpt", "value": "ok"},
    ],
}


def test_a_conversation_in_the_form_of_llava_is_causal_and_answers_are_learnt():
    batch = batch_of(chat(vicuna(system="S"), 64, tokenizer=Bytes()), CONVERSATION)
    letters, learnt = read(batch.text)
    assert letters == "(SUSER:##hiASSISTANT:yo)USER:hmASSISTANT:ok)"
    assert learnt.split() == ["yo)", "ok)"] and learnt.endswith("ok)")
    assert batch.text.block[0, : len(letters)].tolist() == list(range(1, len(letters) + 1))


def test_a_marked_chat_has_bidirectional_pictures_and_marks_that_nobody_can_type():
    messages = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "<user>"}, {"type": "image"}]},
        {"role": "assistant", "content": "a"},
    ]
    batch = batch_of(chat(marked_chat()), {"messages": messages, "image": [picture(1), picture(2)]})
    letters, learnt = read(batch.text)
    assert letters == "(SSTU##<user>##TAaT" and learnt.strip() == "aT"
    assert batch.text.block[0, :20].tolist() == [1, 2, 3, 4, 5, 6, 6, *range(7, 13), 13, 13, 14, 15, 16, 17, 0]
    assert WORDS.size == 264 and set(WORDS.encode("<user>")) == set(Bytes().encode("<user>"))
    assert WORDS.decode([*WORDS.encode("hi"), WORDS.mark("<user>"), 3]) == "hi"


def test_an_interleaved_document_lands_its_pictures_where_it_names_them():
    parts = ["ab", {"type": "image", "item": 1}, "c", {"type": "image"}, "d"]
    batch = batch_of(chat(document()), {"document": parts, "image": [picture(5), picture(9)]})
    assert read(batch.text) == ("(ab##c##d)", " ab  c  d)")
    assert batch.image.pixels[0, :, 0, 0, 0].tolist() == [9, 5]
    assert batch.text.slot[0, :9].tolist() == [-1, -1, -1, 0, 1, -1, 2, 3, -1]


def test_media_that_do_not_land_in_the_row_come_with_it():
    feature = ChatFeature(Bytes(), prefix_answer(), 12, {"image": 0}, (ONE,))
    batch = batch_of(feature, {"image": picture(3), "question": "q", "answer": "a"})
    assert read(batch.text)[0] == "(qa)" and batch.image.valid.all() and batch.text.per_item == ()


def test_a_picture_that_is_absent_leaves_its_place_out():
    batch = batch_of(chat(prefix_answer()), QA, QA | {"image": ()})
    assert read(batch.text, 0) == read(batch.text, 1) == ("(qa)", "  a)") and not batch.image.valid.any()


def test_a_stacked_column_of_pictures_is_taken_as_it_is():
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3)
    chunk = Chunk({"image": pixels, "question": ["q", "r"], "answer": ["a", "b"]}, np.zeros(2, np.uint64))
    parts = ChatFeature(Bytes(), prefix_answer(), 12, {"image": 2}, (ONE,)).build(chunk)
    assert np.shares_memory(parts["image"].pixels, pixels)


# ------------------------------------------------------------------------------------------------------- truncation


def exchanges(count):
    """Messages of which number i has picture i and says its number."""
    said = [
        [{"role": "user", "content": [{"type": "image"}, str(i)]}, {"role": "assistant", "content": "y"}]
        for i in range(count)
    ]
    return {
        "messages": [{"role": "system", "content": "S"}, *(message for pair in said for message in pair)],
        "image": tuple(picture(i) for i in range(count)),
    }


@pytest.mark.parametrize(("length", "images"), [(21, 9), (99, 2)])
def test_the_oldest_exchanges_go_with_their_pictures(length, images):
    """An exchange takes 8 slots and a picture, what is before them 4."""
    feature = chat(marked_chat(), length, images)
    batch = batch_of(feature, exchanges(4))
    assert read(batch.text)[0] == "(SSTU##2TAyTU##3TAyT"
    assert batch.image.pixels[0, :2, 0, 0, 0].tolist() == [2, 3] and batch.image.valid[0].sum() == 2
    _, chunk = built(feature, exchanges(4), exchanges(1))
    assert feature.lost(chunk).tolist() == [[16], [0]]
    assert feature.sizes(chunk)[:, :2].tolist() == [[20, 2], [12, 1]]


def test_an_exchange_that_does_not_fit_makes_a_null_example():
    feature = chat(marked_chat(), 11)
    assert told(feature, exchanges(3)) == (
        "too_large",
        "28 slots, 3 images: this feature has room for 11 slots, 2 images, and cuts no span",
    )
    _, chunk = built(feature, exchanges(3))
    assert feature.lost(chunk).tolist() == [[28]] and feature.sizes(chunk)[0].tolist() == [0] * 5
    assert told(chat(marked_chat(), 99, 2, truncation=Refuse()), exchanges(3))[0] == "too_large"


def test_a_document_loses_its_last_spans():
    parts = ["ab", {"type": "image"}, "cd", {"type": "image"}, "ef"]
    feature = chat(document(), 9, truncation=DropLast())
    batch = batch_of(feature, {"document": parts, "image": [picture(1), picture(2)]})
    assert read(batch.text)[0] == "(ab##cd##" and batch.image.valid.sum() == 2
    feature = dataclasses.replace(feature, length=8)
    batch = batch_of(feature, {"document": parts, "image": [picture(1), picture(2)]})
    assert read(batch.text)[0] == "(ab##cd" and batch.image.valid.tolist() == [[True, False]]


texts = st.text("abc", max_size=6)
contents = st.lists(texts | st.just({"type": "image"}), max_size=4)


@st.composite
def conversations(draw):
    messages, images = [], 0
    for _ in range(draw(st.integers(1, 6))):
        content = draw(contents)
        images += sum(isinstance(part, dict) for part in content)
        messages.append({"role": draw(st.sampled_from(["system", "user", "assistant"])), "content": content})
    return {"messages": messages, "image": tuple(picture(number) for number in range(images))}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(conversations(), min_size=1, max_size=4),
    st.integers(1, 40),
    st.integers(1, 4),
    st.sampled_from([DropLast(), Refuse(), None]),
)
def test_no_conversation_length_or_policy_breaks_the_contract(records, length, images, policy):
    feature = chat(marked_chat(), length, images, **({"truncation": policy} if policy else {}))

    class Records(tuple):
        def fingerprint(self):
            return {}

        def names(self):
            return {}

    batch = Pipeline(Records(records), (feature,), len(records)).rows(np.arange(len(records))).check()
    _, chunk = built(feature, *records)
    sizes, lost = feature.sizes(chunk), feature.lost(chunk)[:, 0]
    assert np.array_equal(sizes[:, 0], (batch.text.segment > 0).sum(1))
    assert np.array_equal(sizes[:, 1], batch.image.valid.sum(1))
    wide = chat(marked_chat(), 500, 30)
    whole = wide.sizes(built(wide, *records)[1])[:, 0]
    assert np.array_equal(sizes[:, 0] + lost, whole)
    levels = [batch.image.pixels[row, :count, 0, 0, 0] for row, count in enumerate(sizes[:, 1])]
    assert all((np.diff(row.astype(int)) > 0).all() for row in levels)


# ---------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("template", "record", "fault", "reason"),
    [
        (prefix_answer(), {"question": "q"}, "empty", "'answer' is missing"),
        (prefix_answer(), QA | {"answer": 7}, "bad_schema", "'answer' must hold text or a list .* it holds 7"),
        (prefix_answer(), QA | {"image": [picture(1), None]}, "bad_schema", "image 1 of the 2 in 'image' is missing"),
        (prefix_answer(), QA | {"image": [picture(1)] * 3}, "too_large", "10 slots, 3 images: .* 32 slots, 2 images"),
        (prefix_answer(), QA | {"answer": "a" * (MAX_BYTES + 1)}, "too_large", "a text of 16385 characters: split"),
        (document("question"), QA | {"image": picture(1)}, "bad_schema", "1 images of the record have no place"),
        (document("question"), QA | {"question": [{"type": "image"}]}, "bad_schema", "'question' speaks of image that"),
        (marked_chat(), QA, "bad_schema", "'messages' must hold a list of messages; it holds None"),
        (marked_chat(), {"messages": ["hi"]}, "bad_schema", "message 0 of 'messages' must hold 'role' and 'content'"),
        (
            marked_chat(),
            {"messages": [{"role": "asistant", "content": "x"}]},
            "bad_value",
            "message 0 of 'messages': no role is called 'asistant'; did you mean assistant",
        ),
    ],
)
def test_a_record_that_makes_no_dialogue_is_told(template, record, fault, reason):
    found = told(chat(template), record)
    assert found[0] == fault and re.search(reason, found[1]), found


def test_an_item_named_twice_is_refused_and_an_unreadable_one_makes_the_row_null():
    twice = [{"type": "image", "item": 0}, {"type": "image", "item": 0}]
    assert "or names one twice" in told(chat(document()), {"document": twice, "image": picture(1)})[1]
    assert told(chat(prefix_answer()), QA | {"image": b"no picture"})[0] == "unreadable"


def test_settings_that_do_not_fit_are_told_together():
    with pytest.raises(UserError) as caught:
        ChatFeature(Bytes(), marked_chat(), 0, {"audio": 4}, (ONE,))
    said = str(caught.value)
    assert "no mark of the tokenizer is called '<user>'" in said
    assert "per_item must say how many slots an item of image takes" in said and "length and per_item" in said
    with pytest.raises(UserError, match="marks must differ"):
        Marked(Bytes(), ("a", "a"))


# --------------------------------------------------------------------------------------------------------- inference


@pytest.mark.parametrize(
    ("template", "record", "answer"),
    [
        (prefix_answer(), QA | {"image": picture(1)}, "a"),
        (marked_chat(), exchanges(2), "y"),
        (vicuna("conversations", "S"), CONVERSATION, "ok"),
        (document("question"), QA, "q"),
    ],
)
def test_a_prompt_is_its_training_row_up_to_the_last_answer(template, record, answer):
    feature = chat(template, 64)
    row, prompt = batch_of(feature, record).text, feature.prompts([record]).check().text
    asked = int((prompt.segment[0] > 0).sum())
    for name in ("ids", "slot", "block", "position"):
        assert np.array_equal(getattr(row, name)[0, :asked], getattr(prompt, name)[0, :asked]), name
    assert row.loss[0, asked] > 0 and (row.ids[0, asked:][row.segment[0, asked:] > 0]).size
    rest = row.ids[0, asked:][row.loss[0, asked:] > 0]
    assert (row.loss[0, asked : asked + rest.size] > 0).all() and not prompt.segment[0, asked:].any()
    assert feature.answers([rest]) == [answer]


def test_prompts_need_no_answer_and_are_padded_on_the_right():
    prompts = chat(prefix_answer(), 16).prompts([{"question": "hello", "image": picture(2)}, {"question": "x"}]).check()
    assert [read(prompts.text, row)[0] for row in (0, 1)] == ["##(hello", "(x"]
    assert not prompts.text.loss.any() and prompts.image.valid.tolist() == [[True, False], [False, False]]
    open_ended = {"messages": [{"role": "user", "content": "hi"}]}
    assert read(chat(marked_chat()).prompts([open_ended]).text)[0] == "(UhiTA"


def test_prompts_that_cannot_be_made_are_told_by_number():
    feature = chat(prefix_answer(), 8)
    with pytest.raises(UserError, match="prompt 1: 'question' is missing\nprompt 2: 12 slots: .* room for 8 slots"):
        feature.prompts([{"question": "x"}, {}, {"question": "hello world"}])
    mute = Template((Turn(Role(), (Words("x"), Media())),))
    with pytest.raises(UserError, match="no role of the template has a loss"):
        chat(mute).prompts([{}])


def test_an_answer_ends_where_the_model_closes_its_turn():
    feature = chat(marked_chat())
    closing = WORDS.mark("<turn ends>")
    assert feature.stops == (closing,)
    ids = [[*WORDS.encode("blue"), closing, *WORDS.encode("junk")], WORDS.encode("no end"), [closing], []]
    assert feature.answers(ids) == ["blue", "no end", "", ""]


# --------------------------------------------------------------------------------------------------------- as a part


def test_a_chat_is_a_feature_its_own_configuration_and_fits_its_spec():
    feature = chat(marked_chat())
    assert isinstance(feature, Feature)
    assert from_json(json.loads(json.dumps(to_json(feature)))) == feature
    spec = Batch.spec(1, **feature.spec())
    batch = batch_of(feature, exchanges(2))
    assert jax.tree.structure(batch) == jax.tree.structure(spec)
    assert [leaf.shape for leaf in jax.tree.leaves(batch)] == [leaf.shape for leaf in jax.tree.leaves(spec)]
    Batch.fake(spec).check()
    assert "marks" in feature.fingerprint() and "pixels by" in feature.fingerprint()


def test_a_dialogue_is_shown_with_its_pictures_in_place():
    feature = chat(marked_chat())
    shown = feature.show(built(feature, exchanges(2))[0], 0)
    assert shown["dialogue"] == "S <media> 0y <media> 1y" and shown["image"].shape == (2, 2, 3)


def test_short_texts_that_come_again_are_cut_up_once():
    asked = []

    class Listening(Bytes):
        def encode(self, text):
            asked.append(text)
            return super().encode(text)

    feature, long = ChatFeature(Listening(), document(), 2_000), "long " * 60
    records = [{"document": text} for text in ("short", long, "short", "other", long)]
    batch = batch_of(feature, *records)
    assert asked == ["short", long, "other", long]
    assert [read(batch.text, row) for row in range(3)] == [read(batch_of(feature, one).text) for one in records[:3]]


def test_roles_of_ones_own():
    """A question read in both directions, an answer that weighs half, and a remark nobody learns."""
    roles = {"asks": Role(Bidirectional()), "says": Role(loss=0.5, closes=(Mark("end"),))}
    talk = Conversation(roles, "talk", "who", "what")
    template = Template((talk, Turn(Role(), (Field("remark"),))))
    record = {"talk": ({"who": "asks", "what": "ab"}, {"who": "says", "what": "c"}), "remark": "d"}
    text = batch_of(ChatFeature(Bytes(), template, 8), record).text
    assert text.loss[0].tolist() == [0, 0, 0.5, 0.5, 0, 0, 0, 0]
    assert text.block[0].tolist() == [0, 0, 1, 2, 3, 0, 0, 0]


def test_several_items_meet_chances_of_their_own():
    noise = np.random.default_rng(0).integers(0, 255, (40, 40, 3)).astype(np.uint8)
    one = ImageFeature(height=8, width=8, fit=RandomCrop())
    chunk = Chunk({"image": [(noise, noise)]}, np.array([5], np.uint64))
    pixels = Several(one, 3).build(chunk)["image"].pixels[0]
    alone = one.build(Chunk({"image": [noise]}, np.array([5], np.uint64)))["image"].pixels[0, 0]
    assert np.array_equal(pixels[0], alone) and not np.array_equal(pixels[0], pixels[1]) and not pixels[2].any()


def test_more_items_than_slots_make_the_row_null():
    _, chunk = built(Several(ONE, 2), {"image": [picture(1)] * 3}, {"image": None})
    assert list(chunk.errors) == [0] and "holds 3 items; this feature has room for 2" in chunk.errors[0].reason
