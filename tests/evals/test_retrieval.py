"""Retrieval over pairs: several positives, separate galleries, macro averages, and what must not matter."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mmjax.core.errors import DataError, UserError
from mmjax.evals.retrieval import Retrieval

RNG = np.random.default_rng(0)
PICTURES, LANGUAGES, STYLES = 6, 3, 2


def emoji(table, order=None, null=(), rows=8):
    """Six things drawn in two styles and named in three languages; things 4 and 5 have one name in language 2."""
    thing, language, style = (x.ravel() for x in np.meshgrid(range(6), range(3), range(2), indexing="ij"))
    caption = np.where((language == 2) & (thing == 5), 4, thing) * 3 + language
    labels = {"picture": thing * 2 + style, "caption": caption, "language": language, "style": style, "thing": thing}
    order = np.arange(36) if order is None else order
    names = {"language": ("en", "ar", "ja"), "style": ("flat", "round")}
    return table(36, {name: values[order] for name, values in labels.items()}, names, rows, null)


def task(data, **changes):
    settings = {"same": "picture", "alike": "caption", "within": "style", "macro": "language", "cluster": "thing"}
    return Retrieval(data, slices=("language", "style"), **{**settings, **changes})


def perfect(data):
    """Things on the axes, whatever the language or the style; a caption of two things lies between them."""
    axes, thing, caption = np.eye(6, dtype=np.float32), data.labels["thing"], data.labels["caption"]
    return {"text": np.stack([axes[thing[caption == one]].mean(0) for one in caption]), "image": axes[thing]}


def test_perfect_vectors_are_perfect(table, answers):
    data = emoji(table)
    found = task(data).evaluate(answers(perfect(data)))
    for direction in ("text_to_image", "image_to_text"):
        overall = found[direction]["all"]
        assert {name: overall[name]["value"] for name in ("r1", "r5", "r10")} == {"r1": 1.0, "r5": 1.0, "r10": 1.0}
        assert overall["map"]["value"] == 1.0 and overall["median_rank"]["value"] == 1
    # Every query is (thing, language, style); a picture is a query once per language.
    assert found["text_to_image"]["pool"] == {"queries": 36, "gallery": [6]}
    assert found["image_to_text"]["pool"] == {"queries": 36, "gallery": [5, 6]}


def test_a_shared_caption_makes_both_pictures_right(table, answers):
    data = emoji(table)
    vectors = perfect(data)
    swapped = vectors["image"][:, [0, 1, 2, 3, 5, 4]]  # things 4 and 5 are taken for each other
    found = task(data).evaluate(answers({"text": vectors["text"], "image": swapped}))
    values = {name: row["r1"]["value"] for name, row in found["text_to_image"]["slices"]["language"].items()}
    assert values == pytest.approx({"en": 4 / 6, "ar": 4 / 6, "ja": 1.0}, rel=1e-4)
    assert found["text_to_image"]["all"]["r1"]["value"] == pytest.approx((4 / 6 + 4 / 6 + 1) / 3, rel=1e-4)
    chance = {name: row["r1"]["chance"] for name, row in found["text_to_image"]["slices"]["language"].items()}
    assert chance == pytest.approx({"en": 1 / 6, "ar": 1 / 6, "ja": (4 / 6 + 2 * 2 / 6) / 6}, rel=1e-4)
    gap = found["text_to_image"]["gaps"]["language"]
    assert (gap["best"], gap["gap"]["value"]) == ("ja", pytest.approx(1 / 3, rel=1e-4))


def test_a_style_is_searched_alone(table, answers):
    """Style 1 pictures all look like thing 0: that must not disturb queries of style 0."""
    data = emoji(table)
    vectors = perfect(data)
    image = np.where(data.labels["style"][:, None] == 1, np.eye(6, dtype=np.float32)[:1], vectors["image"])
    found = task(data).evaluate(answers({"text": vectors["text"], "image": image}))
    styles = found["text_to_image"]["slices"]["style"]
    assert styles["flat"]["r1"]["value"] == 1.0
    assert styles["round"]["r1"]["value"] == 0.0  # ties count against the model


def test_random_vectors_are_at_chance(table, answers):
    size = 600
    data = table(size, {}, rows=64)
    vectors = {name: RNG.normal(size=(size, 8)) for name in ("text", "image")}
    overall = Retrieval(data).evaluate(answers(vectors))["text_to_image"]["all"]
    for name in ("r5", "r10"):
        assert overall[name]["low"] <= overall[name]["chance"] * 1.5 + 0.005
        assert overall[name]["value"] < 5 * overall[name]["chance"]
    assert overall["median_rank"]["value"] == pytest.approx(overall["median_rank"]["chance"], rel=0.15)
    assert overall["median_rank"]["chance"] == 300


def test_order_batch_size_and_padding_do_not_matter(table, answers):
    vectors = {name: RNG.normal(size=(36, 5)) for name in ("text", "image")}
    expected = None
    for order, rows in ((np.arange(36), 36), (RNG.permutation(36), 36), (RNG.permutation(36), 7)):
        base = emoji(table)
        data = emoji(table, order, rows=rows)
        # One vector per caption and per picture, as a model would give.
        text = vectors["text"][base.labels["caption"][order]]
        image = vectors["image"][base.labels["picture"][order]]
        found = task(data).evaluate(answers({"text": text, "image": image}))
        both = [found[direction] for direction in ("text_to_image", "image_to_text")]
        numbers = [[direction[part] for part in ("all", "slices", "gaps", "pool")] for direction in both]
        expected = expected or numbers
        assert numbers == expected


def test_repeated_examples_change_nothing_but_null_ones_leave(table, answers):
    data = emoji(table)
    vectors = {"text": RNG.normal(size=(36, 5)), "image": RNG.normal(size=(36, 5))[data.labels["picture"]]}
    once = task(data).evaluate(answers(vectors))
    twice_order = np.concatenate([np.arange(36), np.arange(36)])
    twice = table(72, {name: values[twice_order] for name, values in data.labels.items()}, data.words)
    again = task(twice).evaluate(answers({name: v[twice_order] for name, v in vectors.items()}))
    assert again["text_to_image"]["all"] == once["text_to_image"]["all"]
    fewer = task(emoji(table, null=(0, 5))).evaluate(answers(vectors))
    assert fewer["text_to_image"]["pool"]["queries"] == 34


def test_examples_say_what_was_found(table, answers):
    data = emoji(table)
    vectors = perfect(data)
    swapped = vectors["image"][:, [0, 1, 2, 3, 5, 4]]
    found = task(data, examples=4).evaluate(answers({"text": vectors["text"], "image": swapped}))
    examples = found["text_to_image"]["examples"]
    assert [example["rank"] == 1 for example in examples] == [True] * 4 + [False] * 4
    for example in examples:
        hits = [item["right"] for item in example["found"]]
        assert hits[0] == (example["rank"] == 1)
        assert data.labels["thing"][example["id"]] in data.labels["thing"][example["right"]]
        cosines = [item["cosine"] for item in example["found"]]
        assert cosines == sorted(cosines, reverse=True)
    assert len({data.labels["language"][example["id"]] for example in examples[:4]}) == 3
    heat = np.array(found["heatmap"]["cosine"])
    assert heat.shape == (6, 6) and heat[0, 0] == 1.0 and heat[4, 4] == 0.0
    assert len(json.dumps(found)) < 100_000


def test_unknown_label_and_no_data(table, answers):
    data = emoji(table)
    with pytest.raises(UserError, match="no label of this data is called 'languag'; did you mean language"):
        task(data, macro="languag").evaluate(answers(perfect(data)))
    with pytest.raises(DataError, match="no example of the data has text and image"):
        task(emoji(table, null=tuple(range(36)))).evaluate(answers(perfect(data)))
    with pytest.raises(UserError, match="no modality of the model's outputs is called 'audio'"):
        task(data, gallery="audio").evaluate(answers(perfect(data)))


def test_pictures_without_a_label_are_not_one_picture(table, answers):
    data = table(8, {"picture": np.array([0, 0, 1, 1, -1, -1, -1, -1])})
    vectors = {name: RNG.normal(size=(8, 4)) for name in ("text", "image")}
    found = Retrieval(data, same="picture").evaluate(answers(vectors))
    assert found["text_to_image"]["pool"]["gallery"] == [6]


def test_a_picture_with_many_captions_is_encoded_once(table, answers):
    class Watched(answers):
        def outputs(self, data, *names):
            for outputs, batch in super().outputs(data, *names):
                seen.append((batch.modalities(), batch.id[batch.valid].tolist()))
                yield outputs, batch

    seen, null = [], (0, 7)  # what stands for a picture is its first example that can be read
    data = emoji(table, null=null)
    task(data).evaluate(Watched(perfect(data)))
    encoded = {kinds: [i for which, ids in seen if which == kinds for i in ids] for kinds, _ in seen}
    readable = [i for i in range(36) if i not in null]
    firsts = dict(reversed([(data.labels["picture"][i], i) for i in readable]))
    assert encoded == {("text",): readable, ("image",): sorted(firsts.values())}
