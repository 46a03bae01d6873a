"""Composed scenes: what is asked of them is true of their pixels and boxes, and held-out pairings stay held out."""

from __future__ import annotations

import collections
import re

import numpy as np
import pytest

from data_pipelines.emoji import LANGUAGES, SceneQuestions, splits
from data_pipelines.emoji.catalogue import STYLES, catalogue
from data_pipelines.emoji.inventory import COUNTS, OPPOSITE, PROPERTIES, RELATIONS, held_out, pool, things
from data_pipelines.emoji.plans import COMPARE, COUNT, EXIST, KINDS, LARGER, LOCATE, MANY, RELATION, SPLITS
from data_pipelines.emoji.scene_questions import PHRASES
from data_pipelines.emoji.scenes import GROUNDS
from data_pipelines.features import ImageFeature, TextFeature, labels
from data_pipelines.pipeline import Pipeline
from data_pipelines.protocols import Gathers, Locates, Source
from data_pipelines.tokenizers import Bytes
from mmjax.core.config import from_json, to_json
from mmjax.core.errors import UserError

SCENES = 1400


@pytest.fixture(scope="module")
def rows():
    """split -> (source, English records by column)."""
    sources = {split: SceneQuestions(split, languages=("en",), scenes=SCENES) for split in SPLITS}
    return {split: (source, source.gather(np.arange(SCENES))) for split, source in sources.items()}


def scenes(rows, *kinds):
    """(split, kind, question, answer, {name: boxes}) of every record of these kinds, from what the record itself
    holds; names in the question as they stand there."""
    for split, (source, found) in rows.items():
        called = source.names()["thing"]
        for row in np.flatnonzero(np.isin(found["kind"], kinds)):
            seen = collections.defaultdict(list)
            for thing, box in zip(found["things"][row], found["boxes"][row], strict=True):
                if thing >= 0:
                    seen[called[thing]].append(box)
            yield split, found["kind"][row], found["question"][row], found["answer"][row], seen


def named_in(question):
    """The things a question names, in order, by the wordings written out once more."""
    for pattern in (
        r"Is the (.+) in this picture\?", r"Do you see the (.+) anywhere\?", r"(.+): is it here\?",
        r"How many times is the (.+) in this picture\?", r"How often do you see the (.+)\?", r"(.+): how many\?",
        r"Which is there more of, the (.+) or the (.+)\?", r"Which is here more often, the (.+) or the (.+)\?",
        r"Which is drawn larger, the (.+) or the (.+)\?",
        r"Which takes up more of the picture, the (.+) or the (.+)\?",
        r"Where is the (.+)\?", r"Give the box around the (.+)\.", r"Locate the (.+)\.",
    ):  # fmt: skip
        match = re.fullmatch(pattern, question)
        if match:
            return match.groups()
    raise AssertionError(question)


def sides(question):
    """(subject, relation or None, other) of a question about sides."""
    for pattern in (r"On which side of the (.+) is the (.+)\?", r"Seen from the (.+), where is the (.+)\?"):
        if match := re.fullmatch(pattern, question):
            return match[2], None, match[1]
    for relation, phrase in zip(RELATIONS, PHRASES, strict=True):
        for pattern in (rf"Is the (.+) {phrase} the (.+)\?", rf"(.+) {phrase} (.+): yes or no\?"):
            if match := re.fullmatch(pattern, question):
                return match[1], relation, match[2]
    raise AssertionError(question)


def centre(box):
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def side_of(one, other):
    """Where box `one` lies seen from `other`, when they do not overlap along one axis and do along the other."""
    found = [("left", one[2] <= other[0]), ("right", one[0] >= other[2])]
    found += [("above", one[3] <= other[1]), ("below", one[1] >= other[3])]
    return {name for name, true in found if true}


def test_what_is_sought_and_counted_is_there_so_often(rows):
    answers = collections.Counter()
    for split, kind, question, answer, seen in scenes(rows, EXIST, COUNT):
        (name,) = named_in(question)
        there = len(seen[name])
        assert answer == (str(there) if kind == COUNT else "yes" if there else "no"), question
        answers[split, KINDS[kind], answer] += 1
    assert {int(answer) for split, kind, answer in answers if (split, kind) == ("unseen_counts", "count")} == set(MANY)
    assert {int(answer) for split, kind, answer in answers if (split, kind) == ("train", "count")} == {0, *COUNTS}


def test_of_two_the_answer_is_more_or_larger(rows):
    for _, kind, question, answer, seen in scenes(rows, COMPARE, LARGER):
        names = named_in(question)
        if kind == COMPARE:
            size = {name: len(seen[name]) for name in names}
        else:
            size = {name: max(box[2] - box[0], box[3] - box[1]) for name in names for box in seen[name]}
            area = {name: (box[2] - box[0]) * (box[3] - box[1]) for name in names for box in seen[name]}
            assert max(area, key=area.get) == answer and all(len(seen[name]) == 1 for name in names)
        assert answer == max(size, key=size.get) and len(set(size.values())) == 2, question


def test_sides_are_those_of_the_boxes_and_clear(rows):
    asked = collections.Counter()
    for _, kind, question, answer, seen in scenes(rows, RELATION, KINDS.index("beside")):
        subject, relation, other = sides(question)
        (one,), (two,) = seen[subject], seen[other]
        found = side_of(one, two)
        if kind == RELATION:
            assert found == {answer}
        else:
            assert answer == ("yes" if relation in found else "no") and len(found) == 1
            assert relation in found or RELATIONS[OPPOSITE[RELATIONS.index(relation)]] in found
        asked[KINDS[kind], answer] += 1
    assert len(asked) == 6


def test_boxes_answer_where(rows):
    for split, (_, found) in rows.items():
        where = np.flatnonzero(found["kind"] == LOCATE)
        assert len(where) or split in ("unseen_compositions", "unseen_counts")
        for row in where:
            spoken = [float(number) for number in found["answer"][row].split()]
            assert np.allclose(spoken, found["box"][row], atol=0.0051)
            assert (found["things"][row] == found["thing"][row]).sum() == 1
            assert np.array_equal(found["box"][row], found["boxes"][row, 0])
        assert np.isnan(found["box"][found["kind"] != LOCATE]).all()


def test_boxes_lie_tightly_around_what_is_drawn_and_never_overlap(rows):
    for split in ("train", "unseen_style"):
        _, found = rows[split]
        for row in range(0, SCENES, 7):
            image = found["image"][row].astype(int)
            ground = next(g for g in GROUNDS.astype(int) if (image == g).all(-1).mean() > 0.2)
            drawn = np.abs(image - ground).max(-1) > 3
            clear = np.abs(image - ground).max(-1) > 50
            inside = np.zeros_like(drawn)
            boxes = np.rint(found["boxes"][row][found["things"][row] >= 0] * 96).astype(int)
            for left, top, right, bottom in boxes:
                assert 0 <= left < right <= 96 and 0 <= top < bottom <= 96
                assert not inside[top:bottom, left:right].any()
                inside[top:bottom, left:right] = True
                assert drawn[top:bottom, left:right].mean() > 0.05
            assert clear.sum() and (clear & ~inside).sum() <= 0.02 * clear.sum()
            assert np.isnan(found["boxes"][row][found["things"][row] < 0]).all()


def test_answers_are_balanced_by_kind(rows):
    for source, _ in rows.values():
        big = SceneQuestions(source.split, languages=("en",), scenes=20_000)
        for kind, chance in big.chances().items():
            options = {"count": len(big.choices("count", "en")), "relation": 4}.get(kind, 2)
            assert chance == 0 if kind == "locate" else abs(chance - 1 / options) < 0.03, (source.split, kind, chance)


def test_held_out_pairings_are_asked_in_their_split_only(rows):
    called, found = list(rows["train"][0].names()["thing"]), collections.defaultdict(set)
    for split, kind, question, answer, _ in scenes(rows, COUNT, RELATION, KINDS.index("beside")):
        if kind == COUNT:
            (name,) = named_in(question)
            told = [(name, f"count {answer}")] if answer in map(str, COUNTS) else []
        else:
            name, relation, _ = sides(question)
            told = [(name, relation or answer)]
            told += [(name, RELATIONS[OPPOSITE[RELATIONS.index(relation)]])] if relation else []
        held = [held_out()[called.index(thing), PROPERTIES.index(about)] for thing, about in told]
        found[split] |= {(KINDS[kind], any(held))} if told else set()
    assert {held for _, held in found["train"]} == {False}
    assert found["unseen_compositions"] == {("count", True), ("relation", True), ("beside", True)}
    assert {held for _, held in found["unseen_style"] | found["unseen_concepts"]} == {False}
    share = held_out().mean(0)
    assert (share > 0.12).all() and (share < 0.28).all()
    assert held_out()[pool("train").members].all(1).sum() == 0


def test_what_is_held_out_of_the_pairs_is_held_out_of_scenes(rows):
    shown = {split: set(found["things"].ravel().tolist()) - {-1} for split, (_, found) in rows.items()}
    place = np.array(things())
    trained = {catalogue()[at].meaning.form for at in splits.members("train")}
    assert not shown["train"] & shown["unseen_concepts"]
    assert not {catalogue()[at].meaning.form for at in place[list(shown["unseen_concepts"])]} & trained
    for split in ("train", "unseen_compositions", "unseen_counts", "unseen_style"):
        assert {int(at) for at in place[list(shown[split])]} <= set(splits.members("train"))
    styles = {split: {STYLES[number] for number in found["style"]} for split, (_, found) in rows.items()}
    assert styles.pop("unseen_style") == {"twemoji"} and set(map(frozenset, styles.values())) == {
        frozenset(splits.TRAIN_STYLES)
    }


def test_no_scene_and_no_picture_comes_in_two_splits(rows):
    bytes_ = {split: {image.tobytes() for image in found["image"]} for split, (_, found) in rows.items()}
    assert all(len(images) == SCENES for images in bytes_.values())
    assert len(set.union(*bytes_.values())) == SCENES * len(SPLITS)


def test_names_are_said_of_one_thing_only():
    for number, language in enumerate(LANGUAGES):
        called = [catalogue()[place].captions[number].casefold() for place in things()]
        assert len(set(called)) == len(called), language
    assert len(things()) > 380 and min(len(pool(split).members) for split in SPLITS) > 40


def test_any_record_can_be_made_again_alone(rows):
    source, found = rows["train"]
    again = SceneQuestions("train", languages=("en",), scenes=SCENES)
    assert isinstance(again, Source) and isinstance(again, Gathers) and isinstance(again, Locates)
    for index in (0, 17, 999):
        record = again[index]
        for name, column in found.items():
            same = np.array_equal(record[name], column[index], equal_nan=np.asarray(record[name]).dtype.kind == "f")
            assert same, name
    other = SceneQuestions("train", languages=("en",), scenes=SCENES, seed=1)
    assert other[0]["question"] != again[0]["question"] and other.fingerprint() != again.fingerprint()
    assert again.fingerprint() == source.fingerprint() and from_json(to_json(again)) == again
    for name in ("kind", "language", "thing", "concept", "kin", "group", "subgroup", "picture"):
        assert np.array_equal(source.column(name), found[name])


def test_other_languages_ask_with_words_of_the_catalogue():
    source = SceneQuestions("train", languages=("de", "zh"), scenes=50)
    found = source.gather(np.arange(50))
    assert not set(found["kind"].tolist()) & {KINDS.index("relation"), KINDS.index("beside")}
    for question, thing, language in zip(found["question"], found["thing"], found["language"], strict=True):
        assert catalogue()[things()[thing]].captions[language] in question
    texts = source.texts()
    assert {"ja", "nein", "是", "否", "0", "4", "0.37"} <= set(texts) and texts == source.texts("answer")
    assert set("".join([*found["question"], *found["answer"]])) <= set("".join(texts))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"split": "test"}, "no split is called 'test'"),
        ({"kinds": ("size",)}, "no kind is called 'size'"),
        ({"split": "unseen_counts", "kinds": ("exist",)}, "no kind is called 'exist'"),
        ({"languages": ("xx",)}, "no language is called 'xx'"),
        ({"kinds": ("relation",), "languages": ("de",)}, "none of relation is asked in de; add en"),
        ({"resolution": 32}, "resolution must lie in 48..288 pixels"),
        ({"scenes": 0}, "scenes must be at least 1"),
    ],
)
def test_wrong_settings_are_refused(settings, told):
    with pytest.raises(UserError, match=told):
        SceneQuestions(**settings)


def test_they_run_through_a_pipeline():
    source = SceneQuestions("train", resolution=64, scenes=64)
    features = (ImageFeature(height=64, width=64), TextFeature(Bytes(), "question", 160), *labels("kind", "thing"))
    batch = next(iter(Pipeline(source, features, batch=8, shuffle=0, epochs=1).batches()))
    assert batch.image.pixels.shape == (8, 1, 64, 64, 3) and (batch.image.pixels.std((1, 2, 3, 4)) > 0).all()
