"""Text comes back from its ids, whatever it is made of; the same texts always give the same tokenizer."""

from __future__ import annotations

import os
import subprocess
import sys
import unicodedata

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from toy_sources import Captions, Counted

from data_pipelines.tokenizers import MAX_BYTES, Bytes, SentencePiece, Subwords, Tokenizer, clean
from mmjax.core.config import from_json, to_json
from mmjax.core.errors import DataError, UserError

WORDS = [
    "red",
    "green",
    "blue",
    "small",
    "large",
    "cat",
    "dog",
    "horse",
    "rote",
    "Katze",
    "gato",
    "verde",
    "赤い",
    "猫",
    "كلب",
    "קטן",
]
TEXTS = tuple(f"{a} {b} {c}" for a in WORDS for b in WORDS[3:12] for c in WORDS[7:])
ODD = [
    "a\0b",
    "👩🏽‍🚀",
    "x\ud800y",
    "\ufeffbom",
    "ｆｕｌｌ ﬁ",
    "e\u0301",
    " two  spaces ",
    "\u2028",
    "▁",
    "ا\u200dب",
    "\x7f",
    "",
]


def odd(test):
    """Tries every odd text besides the generated ones."""
    for text in ODD:
        test = example(text)(test)
    return test


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    os.environ["MMJAX_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield SentencePiece(Captions(TEXTS), vocabulary=500)
    del os.environ["MMJAX_CACHE"]


@odd
@given(st.text())
@settings(max_examples=300, deadline=None)
def test_sentencepiece_gives_back_the_normalised_text(words, text):
    ids = words.encode(text)
    assert all(words.end < number < words.size for number in ids)
    assert words.decode(ids) == words.normalise(text)
    spoken = "".join(ch for ch in text if ch.isalnum() and not 0xD800 <= ord(ch) < 0xE000)
    assert [c for c in unicodedata.normalize("NFKC", spoken) if c.isascii() and c != " "] == [
        c for c in words.decode(words.encode(spoken)) if c.isascii() and c != " "
    ]


@odd
@given(st.text())
@settings(max_examples=300, deadline=None)
def test_bytes_lose_nothing(text):
    tokenizer = Bytes()
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(tokenizer.end < number < tokenizer.size for number in ids)


def test_marks_and_padding_vanish_and_both_are_tokenizers(words):
    ids = [words.begin, *words.encode("red cat"), words.end, words.pad, words.pad]
    assert words.decode(ids) == "red cat"
    assert isinstance(words, Tokenizer) and isinstance(Bytes(), Tokenizer)


def test_a_huge_caption_is_cut_between_characters(words):
    assert len(clean("é" * 10**6).encode()) == MAX_BYTES
    assert clean("a" + "é" * 10**6).endswith("é") and len(clean("a" + "é" * 10**6).encode()) == MAX_BYTES - 1
    assert 0 < len(words.encode("cat " * 2_500_000)) <= MAX_BYTES


def test_the_same_texts_give_the_same_model_in_another_process_and_cache(words, tmp_path):
    made = "SentencePiece(Captions(TEXTS), vocabulary=500)"
    script = f"from test_tokenizers import *; t = {made}; print(t.size, t.encode(TEXTS[7]))"
    here = os.path.dirname(__file__)
    root = os.path.dirname(os.path.dirname(here))
    env = os.environ | {"MMJAX_CACHE": str(tmp_path), "PYTHONPATH": f"{root}:{here}"}
    run = subprocess.run(
        [sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True, timeout=120
    )
    assert run.stdout.strip() == f"{words.size} {words.encode(TEXTS[7])}"


def test_the_fingerprint_follows_texts_and_settings(words):
    same = SentencePiece(Captions(TEXTS), vocabulary=500)
    assert same.fingerprint() == words.fingerprint()
    others = (SentencePiece(Captions(TEXTS), vocabulary=501), SentencePiece(Captions(TEXTS[1:]), vocabulary=500))
    assert len({other.fingerprint()["tokenizer"] for other in (words, *others)}) == 3


def test_few_texts_give_a_smaller_vocabulary(tmp_path, monkeypatch):
    monkeypatch.setenv("MMJAX_CACHE", str(tmp_path))
    few = SentencePiece(Captions(("a red cat", "a blue dog", "a green cat")), vocabulary=8000)
    assert 260 < few.size < 400
    assert few.decode(few.encode("a blue cat, 猫")) == "a blue cat, 猫"


def test_nothing_to_train_on_is_one_clear_error(tmp_path, monkeypatch):
    monkeypatch.setenv("MMJAX_CACHE", str(tmp_path))
    with pytest.raises(DataError, match="no text to train a tokenizer on: no record has anything under 'caption'"):
        SentencePiece(Counted(5)).encode("x")
    with pytest.raises(UserError, match=r"sentencepiece cannot be trained \(.*normalisation=nfxx"):
        SentencePiece(Captions(TEXTS), normalisation="nfxx").encode("x")


def test_subwords_are_ways_to_write_the_same_text_with_chances_that_follow_alpha(words):
    text = "small horse"
    ways, limits = Subwords(best=8, alpha=0.3).ways(words, text)
    assert 1 < len(ways) <= 8 and len({tuple(way) for way in ways}) == len(ways)
    assert all(words.decode(way) == text for way in ways) and ways[0] == words.encode(text)
    assert limits[-1] == pytest.approx(1) and (np.diff(limits) > 0).all()
    scores = np.array([score for score, _ in words.best(text, 8)])
    expected = np.exp(0.3 * scores) / np.exp(0.3 * scores).sum()
    np.testing.assert_allclose(np.diff([0, *limits]), expected, rtol=1e-6)


def test_a_tokenizer_is_plain_configuration():
    assert from_json(to_json(Bytes())) == Bytes()
    assert from_json(to_json(Subwords(4, 0.1))) == Subwords(4, 0.1)
