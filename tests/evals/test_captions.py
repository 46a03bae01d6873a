"""Caption metrics: the numbers of the COCO evaluation, hand-worked ones, and what must not matter."""

from __future__ import annotations

import json
import math
import os
import pathlib
import random
import sys

import numpy as np
import pytest

from mmjax.core.errors import DataError, UserError
from mmjax.evals import coco_java
from mmjax.evals.meteor import EXACT, Meteor, Snowball, Stage, align
from mmjax.evals.ngrams import Bleu, CiderD
from mmjax.evals.rouge import RougeL, common_length
from mmjax.evals.tokenise import words

GOLDEN = json.loads((pathlib.Path(__file__).parent / "golden" / "captions.json").read_text())
SAID = [image["candidate"] for image in GOLDEN["images"]]
TRUTHS = [image["references"] for image in GOLDEN["images"]]
METRICS = (Bleu(), RougeL(), CiderD(), Meteor(stages=(EXACT,)))


def scores(said, truths, metrics=METRICS):
    return {name: tally for metric in metrics for name, tally in metric(said, truths).items()}


def test_words_are_those_of_the_published_tokenizer():
    pairs = [(text, cut) for text, cut in GOLDEN["tokenised"]]
    for image in GOLDEN["images"]:
        texts, cuts = ((part["candidate"], *part["references"]) for part in (image, image["words"]))
        pairs += zip(texts, cuts, strict=True)
    assert {text: " ".join(words(text)) for text, _ in pairs} == dict(pairs)


def test_scripts_without_spaces_are_cut_into_characters():
    assert words("一只狗。2只 cats") == ("一", "只", "狗", "2", "只", "cats")
    assert words("犬が走る！") == ("犬", "が", "走", "る")
    assert words("วิ่ง") == ("วิ่", "ง")  # vowel and tone stay with their letter
    assert words("एक कुत्ता दौड़ रहा है।") == ("एक", "कुत्ता", "दौड़", "रहा", "है")
    assert words("رجل يركب دراجة، هنا؟") == ("رجل", "يركب", "دراجة", "هنا")


@pytest.mark.parametrize("name", ["bleu1", "bleu2", "bleu3", "bleu4", "rouge_l", "cider_d", "meteor_exact"])
def test_scores_are_the_published_ones(name):
    ours, golden = scores(SAID, TRUTHS)[name], GOLDEN["scores"][name]
    assert ours.value == pytest.approx(golden["corpus"], abs=1e-5)
    np.testing.assert_allclose(ours.each, golden["each"], atol=1e-5)


def test_meteor_with_stems_is_the_published_one():
    pytest.importorskip("snowballstemmer")
    ours, golden = Meteor()(SAID, TRUTHS)["meteor_exact_stem"], GOLDEN["scores"]["meteor_exact_stem"]
    assert ours.value == pytest.approx(golden["corpus"], abs=1e-5)
    np.testing.assert_allclose(ours.each, golden["each"], atol=1e-5)
    missing = GOLDEN["scores"]["meteor"]["corpus"] - ours.value  # synonyms and paraphrases
    assert 0 < missing < 0.015


def test_order_of_references_and_of_examples_does_not_matter():
    shuffled = random.Random(0)
    order = shuffled.sample(range(len(SAID)), len(SAID))
    truths = [shuffled.sample(TRUTHS[i], len(TRUTHS[i])) for i in order]
    first, second = scores(SAID, TRUTHS), scores([SAID[i] for i in order], truths)
    for name in first:
        assert second[name].value == pytest.approx(first[name].value, rel=1e-12)
        np.testing.assert_allclose(second[name].each, first[name].each[order], rtol=1e-9, atol=1e-12)


def test_case_and_punctuation_do_not_matter():
    loud = [text.upper().replace(".", "") + " !" for text in SAID]
    for name, tally in scores(loud, TRUTHS).items():
        assert tally.value == pytest.approx(scores(SAID, TRUTHS)[name].value)


def test_a_reference_itself_is_perfect():
    perfect = scores([truths[-1] for truths in TRUTHS], TRUTHS)
    assert all(perfect[name].value == pytest.approx(1) for name in ("bleu1", "bleu4", "rouge_l"))
    assert min(perfect["meteor_exact"].each) == pytest.approx(1)
    alone = CiderD()([truths[0] for truths in TRUTHS], [truths[:1] for truths in TRUTHS])["cider_d"].each
    assert max(alone) == pytest.approx(10) and np.median(alone) == pytest.approx(10)


def test_bleu_by_hand():
    tallies = Bleu(n=2)(["the the cat"], [["the cat sat on it", "a cat"]])
    assert tallies["bleu1"].value == pytest.approx(2 / 3)  # "the" counts once; the nearest reference has 2 words
    assert tallies["bleu2"].value == pytest.approx(math.sqrt(2 / 3 * 1 / 2))
    short = Bleu(n=1)(["a cat"], [["a cat on a mat"]])["bleu1"]
    assert short.value == pytest.approx(math.exp(1 - 5 / 2))
    pooled = Bleu(n=1)(["a cat", "dogs"], [["a cat"], ["birds"]])["bleu1"]
    assert pooled.value == pytest.approx(2 / 3) and pooled.each.tolist() == pytest.approx([1, 0])


def test_rouge_by_hand():
    assert common_length("abcbdab", "bdcaba") == 4
    precision, recall, beta = 2 / 3, 2 / 4, 1.2
    expected = (1 + beta**2) * precision * recall / (recall + beta**2 * precision)
    assert RougeL()(["red cat sat"], [["cat sat right here"]])["rouge_l"].value == pytest.approx(expected)


def test_cider_by_hand():
    """Three pictures, one word each: the weight of a word seen in one of three is log 3, in two log 3/2."""
    found = CiderD(n=1)(["cat dog", "dog", "x"], [["cat"], ["dog"], ["dog"]])["cider_d"].each
    rare, common = math.log(3), math.log(1.5)
    assert found[0] == pytest.approx(10 * rare / math.hypot(rare, common) * math.exp(-1 / 72))  # one word longer
    assert found[1:].tolist() == pytest.approx([10, 0])


def test_meteor_by_hand():
    """cat sat . mat: two chunks; content words weigh 3/4, function words 1/4."""
    found = Meteor(stages=(EXACT,))(["the cat sat near mat"], [["the cat sat on mat"]])["meteor_exact"].value
    precision, recall = 2.5 / 3.25, 2.5 / 2.75
    mean = precision * recall / (0.85 * precision + 0.15 * recall)
    assert found == pytest.approx(mean * (1 - 0.6 * (2 / 4) ** 0.2))


def test_meteor_aligns_in_few_chunks_and_by_any_key():
    assert align(tuple("abcab"), tuple("ab")) == [(0, 0, 0), (1, 1, 0)]
    assert align(tuple("xacab"), tuple("cab")) == [(2, 0, 0), (3, 1, 0), (4, 2, 0)]
    synonym = Stage("synonym", 0.8, {"sofa": frozenset("s"), "couch": frozenset("s")}.get)
    keys = Stage("synonym", 0.8, lambda word: synonym.keys(word) or frozenset())
    assert align(("red", "sofa"), ("red", "couch"), (EXACT, keys)) == [(0, 0, 0), (1, 1, 1)]
    found = Meteor(stages=(EXACT, keys))(["red sofa"], [["red couch"]])["meteor_exact_synonym"].value
    assert found == pytest.approx(0.9)  # (1 + 0.8) / 2 of precision and recall, in one piece


def test_nothing_said_scores_nothing():
    empty = scores(["", "a cat"], [["a dog", "a cat"], ["a dog"]])
    assert all(tally.each[0] == pytest.approx(0, abs=1e-6) for tally in empty.values())
    assert all(math.isfinite(tally.value) for tally in empty.values())


@pytest.mark.parametrize("metric", METRICS)
def test_bad_input_is_refused(metric):
    with pytest.raises(DataError, match="2 texts cannot be compared with the references of 1 examples"):
        metric(["a", "b"], [["a"]])
    with pytest.raises(DataError, match=r"example 1 has \(\) to compare with; expected a sequence of one or more"):
        metric(["a", "b"], [["a"], ()])
    with pytest.raises(DataError, match="example 0 has 'a cat' to compare with"):
        metric(["a"], ["a cat"])
    with pytest.raises(DataError, match="no text was given"):
        metric([], [])


def test_a_language_without_stems_is_refused():
    pytest.importorskip("snowballstemmer")
    with pytest.raises(UserError, match="there are no stems for 'klingon'; snowballstemmer knows: .*english"):
        Snowball("klingon")("word")


@pytest.mark.parametrize("metric", [coco_java.MeteorJar(), coco_java.Spice()])
def test_java_metrics_say_what_is_missing(metric, monkeypatch):
    monkeypatch.setattr(coco_java.shutil, "which", lambda name: None)
    monkeypatch.setattr(coco_java.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs java .* and pycocoevalcap .pip install pycocoevalcap.; leave it out"):
        metric(["a cat"], [["a cat"]])


JAVA = """
import json, pathlib, sys
asked, told = (pathlib.Path(sys.argv[sys.argv.index("spice-1.0.jar") + step]) for step in (1, 3))
pairs = json.loads(asked.read_text())
if not all(pair["test"] for pair in pairs):
    sys.exit("nothing to parse")
shared = [(pair["image_id"], set(pair["test"].split()) & set(pair["refs"][0].split())) for pair in reversed(pairs)]
told.write_text(json.dumps([{"image_id": i, "scores": {"All": {"f": len(s) / 2 or None}}} for i, s in shared]))
"""


@pytest.fixture
def spice(tmp_path, monkeypatch):
    """A package with the parts of SPICE; its `java` counts words that are in the first reference, too."""
    (tmp_path / "spice" / "lib").mkdir(parents=True)
    (tmp_path / "java").write_text(f"#!{sys.executable}\n{JAVA}")
    (tmp_path / "java").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(coco_java, "_package", lambda metric: tmp_path)
    return tmp_path / "spice" / "lib"


def test_spice_tells_which_parser_it_lacks_and_where_that_comes_from(spice):
    (spice / "stanford-corenlp-3.6.0.jar").touch()
    with pytest.raises(UserError, match=r"needs Stanford CoreNLP .*-models.jar missing.*400 MB from nlp.stanford.edu"):
        coco_java.Spice()(["a cat"], [["a cat"]])


def test_spice_is_what_its_program_says_of_each_text(spice):
    for part in ("", "-models"):
        (spice / f"stanford-corenlp-3.6.0{part}.jar").touch()
    found = coco_java.Spice()(["a cat.", "Dogs", "dogs run"], [["one cat", "a cat"], ["cats"], ["dogs run"]])["spice"]
    assert found.each.tolist() == [0.5, 0.0, 1.0] and found.value == 0.5
    with pytest.raises(UserError, match="SPICE's Java program failed .java -Xmx8G .*: nothing to parse"):
        coco_java.Spice()([""], [["a cat"]])


def test_meteor_of_the_published_program():
    pytest.importorskip("pycocoevalcap")
    if coco_java.shutil.which("java") is None:
        pytest.skip("there is no Java here")
    ours, golden = coco_java.MeteorJar()(SAID, TRUTHS)["meteor"], GOLDEN["scores"]["meteor"]
    assert ours.value == pytest.approx(golden["corpus"], abs=1e-5)
    np.testing.assert_allclose(ours.each, golden["each"], atol=1e-5)
