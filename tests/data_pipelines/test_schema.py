"""A schema reads every form it writes, and a record that does not fit is told precisely."""

from __future__ import annotations

import json

import pytest
from record_samples import png

from data_pipelines.protocols import BadRecord
from data_pipelines.schema import Chat, Class, Field, Media, Number, Schema, Text
from data_pipelines.sources import JsonLines, open_source
from data_pipelines.tokenizers import texts_of
from mmjax.core.errors import DataError, UserError

SCHEMA = Schema.parse("image:image, caption:text, label:class[cat|dog]?, age:int[0..120]?")


def test_text_and_json_forms_are_the_same_schema(tmp_path):
    text = "image:image=jpg|png, caption:text=title, label:class[a cat|dog, big]?, score:number[0..1], age:int[0..]?"
    schema = Schema.parse(text)
    assert str(schema) == text
    assert Schema.parse(str(schema)) == schema
    assert schema.fields[0] == Field("image", Media("image"), columns=("jpg", "png"))
    assert schema.fields[2] == Field("label", Class(("a cat", "dog, big")), optional=True)
    assert schema.fields[4] == Field("age", Number(whole=True, low=0), optional=True)
    tree = {"image": "image=jpg|png", "caption": "text=title", "label": "class[a cat|dog, big]?"}
    tree |= {"score": "number[0..1]", "age": "int[0..]?"}
    assert Schema.parse(json.dumps(tree)) == schema
    (tmp_path / "schema.json").write_text(json.dumps(tree))
    assert Schema.parse(str(tmp_path / "schema.json")) == schema


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("image:imge", "no kind is called 'imge'; did you mean image"),
        ("image", "cannot read 'image:'; write name:kind"),
        ("a:text, a:text", "a is declared twice"),
        ("", "the schema is empty; write for example: image:image"),
        ("label:class[a", "cannot read"),
        ("caption:text[3..4]", "brackets hold class names (a|b) or a range (0..1)"),
        ("{broken", "the schema is not JSON"),
        ("nowhere.json", "cannot be read: No such file"),
    ],
)
def test_a_wrong_schema_is_told(text, told):
    with pytest.raises(UserError) as caught:
        Schema.parse(text)
    assert told in str(caught.value)


CHAT = [
    {"from": "human", "value": "<image> what is it?"},
    {"from": "gpt", "value": [{"type": "text", "text": "a cat"}]},
]


def test_conversations_are_a_kind_of_field(tmp_path):
    (tmp_path / "a.png").write_bytes(png((1, 2, 3)))
    rows = [{"id": "0", "image": "a.png", "conversations": CHAT}, {"id": "1", "conversations": CHAT[1:]}]
    (tmp_path / "chats.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = open_source(str(tmp_path / "chats.jsonl"))
    assert str(source.declared) == "image:image?, conversations:chat"
    assert source[0]["conversations"] == CHAT and "image" not in source[1]
    assert list(texts_of(source, "conversations")) == ["<image> what is it?", "a cat", "a cat"]
    assert Schema((Field("talk", Chat()),)).read({"talk": json.dumps(CHAT)}) == {"talk": CHAT}


@pytest.mark.parametrize(
    ("value", "fault", "told"),
    [
        ("hello", "bad_value", "not the JSON of a list of messages"),
        ({"from": "human"}, "bad_schema", "expected a list of messages, found dict"),
        (["hello"], "bad_schema", "expected a list of messages, found list"),
        ([], "empty", "the conversation has no message"),
    ],
)
def test_what_is_no_conversation_is_told(value, fault, told):
    with pytest.raises(BadRecord, match=told) as caught:
        Schema.parse("talk:chat").read({"talk": value})
    assert caught.value.fault == fault


def test_all_faults_of_a_schema_are_told_at_once():
    with pytest.raises(UserError) as caught:
        Schema.parse("image:imge, caption:txt")
    assert "imge" in str(caught.value)
    assert "txt" in str(caught.value)


GOOD = {"image": b"\x89PNG", "caption": "a cat"}

MISMATCHES = {
    "misspelt": ({"image": b"x", "captoin": "a"}, "bad_schema", "caption: expected a text", "did you mean 'captoin'"),
    "media is a number": ({**GOOD, "image": 3}, "bad_schema", "image: expected bytes of an image, found int 3", ""),
    "text is a list": ({**GOOD, "caption": ["a", "b"]}, "bad_schema", "caption: expected text, found list ['a',", ""),
    "text is not UTF-8": ({**GOOD, "caption": b"\xff\xfe"}, "bad_value", "caption: not UTF-8 text", "at byte 0"),
    "text is blank": ({**GOOD, "caption": " \n"}, "empty", "caption: the text is empty", ""),
    "value is null": ({**GOOD, "image": None}, "empty", "image: the value is null", ""),
    "unknown class": ({**GOOD, "label": "dgo"}, "bad_value", "label: no class is called 'dgo'; did you mean dog", ""),
    "out of range": ({**GOOD, "age": 121}, "bad_value", "age: 121 lies outside [0..120]", ""),
    "not whole": ({**GOOD, "age": 1.5}, "bad_schema", "age: expected a whole number, found float 1.5", ""),
    "not finite": ({**GOOD, "age": float("nan")}, "bad_schema", "age: expected a whole number, found float nan", ""),
    "a truth value": ({**GOOD, "age": True}, "bad_schema", "age: expected a whole number, found bool True", ""),
    "no bytes": ({**GOOD, "image": b""}, "empty", "image: the image has no bytes", ""),
}  # fmt: skip


@pytest.mark.parametrize("case", MISMATCHES)
def test_a_mismatch_says_what_was_expected_and_found(case):
    row, fault, told, also = MISMATCHES[case]
    with pytest.raises(BadRecord) as caught:
        SCHEMA.read(row)
    assert caught.value.fault == fault
    assert told in caught.value.reason
    assert also in caught.value.reason


def test_all_faults_of_a_record_are_told_at_once():
    with pytest.raises(BadRecord) as caught:
        SCHEMA.read({"image": 1, "caption": 2, "age": -1})
    assert [part.split(":")[0] for part in caught.value.reason.split("; ")] == ["image", "caption", "age"]


def test_what_an_optional_field_lacks_is_left_out():
    assert SCHEMA.read({**GOOD, "label": None}) == GOOD
    assert SCHEMA.read({**GOOD, "age": "7", "label": "dog"}) == {**GOOD, "age": 7, "label": 1}
    captions = Schema.parse("caption:text?")
    assert captions.read({"caption": ""}) == {}


def test_stored_forms_of_media():
    schema = Schema.parse("image:image")
    for stored in (b"x", bytearray(b"x"), memoryview(b"x"), {"bytes": b"x", "path": "a.png"}):
        assert schema.read({"image": stored}) == {"image": b"x"}
    assert schema.read({"image": {"bytes": None, "path": "a.png"}}, lambda name: name.encode()) == {"image": b"a.png"}
    with pytest.raises(BadRecord, match="expected bytes of an image, found str"):
        schema.read({"image": "a.png"})  # a container that holds no other files


def test_a_wrong_column_stops_before_training_with_the_nearest_name(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "p.jsonl").write_text('{"image": "a.png", "Caption": "x"}\n' * 3)
    source = JsonLines(str(tmp_path / "p.jsonl"), Schema((Field("image", Media()), Field("caption", Text()))))
    with pytest.raises(DataError) as caught:
        source[0]
    told = "expected a text under 'caption', found only Caption, image; did you mean 'Caption'? (caption:text=Caption)"
    assert told in str(caught.value)
    assert caught.value.code == 65
