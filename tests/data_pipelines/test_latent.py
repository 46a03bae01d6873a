"""Word vectors from captions: translations start close, and only the captions decide."""

import dataclasses

import numpy as np
import pytest

from data_pipelines.latent import LatentSemantics
from data_pipelines.tokenizers import SentencePiece
from mmjax.core.errors import UserError

THINGS = [("red apple", "roter apfel"), ("red car", "rotes auto"), ("green apple", "gruener apfel"), ("house", "haus")]


@dataclasses.dataclass(frozen=True)
class Named:
    """Things with names in two languages, each `copies` times."""

    copies: int = 3

    def __len__(self):
        return len(THINGS) * self.copies

    def __getitem__(self, index):
        return {"caption": THINGS[index % len(THINGS)], "thing": index % len(THINGS)}

    def texts(self, field):
        return [text for pair in THINGS for text in pair]

    def fingerprint(self):
        return {"named": str(self.copies)}

    def names(self):
        return {}


@pytest.fixture
def start(tmp_path, monkeypatch):
    monkeypatch.setenv("MMJAX_CACHE", str(tmp_path))
    words = SentencePiece(Named(), vocabulary=310)
    return LatentSemantics(words, Named(), share="thing", noise=0.0)


def vector(start, table, text):
    return table[start.tokenizer.encode(text)].mean(0)


def test_translations_start_closer_than_other_words(start):
    table = start(None, (start.tokenizer.size, 4), np.float32)
    english, german = (np.stack([vector(start, table, pair[i]) for pair in THINGS]) for i in (0, 1))
    cosine = (english @ german.T) / np.linalg.norm(english, axis=1)[:, None] / np.linalg.norm(german, axis=1)
    assert (cosine.argmax(1) == np.arange(len(THINGS))).all()


def test_the_table_has_the_size_asked_for_and_is_the_same_each_time(start):
    shape = (start.tokenizer.size + 5, 4)
    table = start(None, shape, np.float32)
    assert table.shape == shape and table.dtype == np.float32
    assert np.sqrt(np.mean(table[: start.tokenizer.size] ** 2)) == pytest.approx(start.deviation, rel=0.1)
    np.testing.assert_array_equal(table, dataclasses.replace(start)(None, shape, np.float32))


def test_copies_of_a_thing_share_its_weight(start):
    shape = (start.tokenizer.size, 3)
    once, often = (dataclasses.replace(start, source=Named(copies))._information(shape[0]) for copies in (3, 9))
    np.testing.assert_allclose(once.T @ once, often.T @ often, atol=1e-3)


def test_a_table_that_cannot_be_filled_is_refused(start):
    with pytest.raises(UserError, match="12 documents and .* cannot fill a table of 10 x 4"):
        start(None, (10, 4), np.float32)
    with pytest.raises(UserError, match="a document for each column"):
        start(None, (start.tokenizer.size, 64), np.float32)
