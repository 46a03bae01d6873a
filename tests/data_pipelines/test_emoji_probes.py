"""Probes for things that are not there: balanced, true, and of the kind they claim to be."""

from __future__ import annotations

import numpy as np
import pytest

from data_pipelines.emoji import SceneProbes, SceneQuestions
from data_pipelines.emoji.catalogue import catalogue
from data_pipelines.emoji.inventory import pool, things
from data_pipelines.emoji.plans import LOCATE, composed, planned
from data_pipelines.emoji.probes import KINDS, QUESTIONS, SPLITS
from data_pipelines.protocols import Gathers, Locates, Source
from data_pipelines.randomness import fold
from mmjax.core.config import from_json, to_json
from mmjax.core.errors import UserError


@pytest.fixture(scope="module", params=SPLITS)
def probes(request):
    source = SceneProbes(request.param, scenes=120)
    return source, source.gather(np.arange(len(source)))


def subgroup(thing):
    return catalogue()[things()[thing]].subgroup


def test_half_the_answers_are_yes_and_all_are_true(probes):
    source, found = probes
    assert len(source) == 120 * len(KINDS) * QUESTIONS
    there = (found["things"] == found["thing"][:, None]).any(1)
    assert [answer == "yes" for answer in found["answer"]] == there.tolist()
    names = source.names()["thing"]
    assert all(names[thing] in question for thing, question in zip(found["thing"], found["question"], strict=True))
    for kind in range(len(KINDS)):
        assert there[found["kind"] == kind].mean() == 0.5
    pairs = set(zip(found["picture"].tolist(), found["kind"].tolist(), found["thing"].tolist(), strict=True))
    assert len(pairs) == len(source)  # nothing is asked twice


def test_kinds_of_negatives_are_what_they_say(probes):
    source, found = probes
    no = np.array([answer == "no" for answer in found["answer"]])
    near = np.array([
        subgroup(thing) in {subgroup(one) for one in present if one >= 0}
        for thing, present in zip(found["thing"], found["things"], strict=True)
    ])  # fmt: skip
    popular = pool(source.split).popular[: max(11, len(pool(source.split).popular) // 4)]
    share = {name: (near[no & (found["kind"] == kind)]).mean() for kind, name in enumerate(KINDS)}
    assert share["adversarial"] > 2 * share["random"] and share["adversarial"] > 0.5
    assert np.isin(found["thing"][no & (found["kind"] == KINDS.index("popular"))], popular).all()
    assert not np.isin(found["thing"][no & (found["kind"] == KINDS.index("random"))], popular).all()


def test_popular_things_and_kin_do_turn_up_most_in_training_scenes():
    """What the negatives are drawn by is how scenes are made."""
    keys = fold(7, np.arange(4000))
    shown = composed("train", planned("train", np.full(4000, LOCATE), keys), keys).thing
    counts = np.bincount(shown[shown >= 0], minlength=len(things()))
    popular = pool("train").popular
    eighth = len(popular) // 8
    assert counts[popular[:eighth]].mean() > 1.5 * counts[popular[-eighth:]].mean()
    pairs = [(subgroup(one), subgroup(two)) for one, two in shown[:1000, :2].tolist()]
    assert np.mean([one == two for one, two in pairs]) > 0.4


def test_chances_are_told(probes):
    source, _ = probes
    chances = SceneProbes(source.split, scenes=2000).chances()
    assert set(chances) == set(KINDS) and all(0.5 <= chance < 0.85 for chance in chances.values())
    assert chances["random"] < chances["popular"]


def test_any_probe_can_be_made_again_alone(probes):
    source, found = probes
    assert isinstance(source, Source) and isinstance(source, Gathers) and isinstance(source, Locates)
    again = SceneProbes(source.split, scenes=120)
    for index in (0, 5, 700):
        record = again[index]
        assert all(np.array_equal(record[name], column[index]) for name, column in found.items())
    assert again.fingerprint() == source.fingerprint() != SceneProbes(source.split, scenes=120, seed=1).fingerprint()
    assert from_json(to_json(source)) == source
    for name in ("kind", "thing", "picture", "concept", "subgroup"):
        assert np.array_equal(source.column(name), found[name])
    assert set("".join(found["question"])) <= set("".join(source.texts()))


def test_probed_scenes_are_not_those_of_training():
    probed = {image.tobytes() for image in SceneProbes(scenes=100).gather(np.arange(0, 1200, 12))["image"]}
    trained = {image.tobytes() for image in SceneQuestions(scenes=2000).gather(np.arange(2000))["image"]}
    assert len(probed) == 100 and not probed & trained


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"split": "unseen_counts"}, "no split is called 'unseen_counts'"),
        ({"kinds": ("hard",)}, "no kind is called 'hard'"),
        ({"kinds": ()}, "no kind is given; choose from random, popular, adversarial"),
        ({"scenes": 0}, "scenes must be at least 1"),
        ({"resolution": 20}, "resolution must lie in 48..288 pixels"),
    ],
)
def test_wrong_settings_are_refused(settings, told):
    with pytest.raises(UserError, match=told):
        SceneProbes(**settings)
