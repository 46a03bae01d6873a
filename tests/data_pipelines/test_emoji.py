"""The emoji pairs: complete, split without leaks, and what each record says is true."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest

from data_pipelines.emoji import LANGUAGES, EmojiPairs, art, splits
from data_pipelines.emoji.card import card, markdown
from data_pipelines.emoji.catalogue import STYLES, catalogue, drawings
from data_pipelines.emoji.concepts import meaning
from data_pipelines.features import ImageFeature, TextFeature, labels
from data_pipelines.mixture import Mixture
from data_pipelines.order import Clustered, OneOfEach
from data_pipelines.pipeline import Pipeline
from data_pipelines.protocols import Gathers, Locates, Source
from data_pipelines.tokenizers import Bytes, SentencePiece, Subwords
from mmjax.core.config import from_json, to_json
from mmjax.core.errors import UserError

LABELS = ("picture", "caption_id", "code", "concept", "language", "style", "tone", "gender", "group", "subgroup")


def of(split):
    return [catalogue()[place] for place in splits.members(split)]


@pytest.mark.parametrize(
    ("text", "concept", "gender", "tone"),
    [
        ("🧑‍🚀", "adult-1F680", "person", "none"),
        ("👩🏽‍🚀", "adult-1F680", "woman", "medium"),
        ("👮🏿‍♂️", "1F46E", "man", "dark"),
        ("🎅🏻", "adult-1F384", "man", "light"),
        ("🤶", "adult-1F384", "woman", "none"),
        ("🧑‍🎄", "adult-1F384", "person", "none"),
        ("👩‍❤️‍👨", "adult-2764-adult", "mixed", "none"),
        ("💑🏿", "adult-2764-adult", "none", "dark"),
        ("👩🏼‍🤝‍👨🏿", "adult-1F91D-adult", "mixed", "mixed"),
        ("👭🏼", "adult-1F91D-adult", "woman", "medium-light"),
        ("🫱🏻‍🫲🏿", "1F91D", "none", "mixed"),
        ("👨‍👩‍👧", "family", "mixed", "none"),
        ("❤️", "2764", "none", "none"),
        ("❤️‍🔥", "2764-1F525", "none", "none"),
    ],
)
def test_variants_of_one_thing_have_one_concept(text, concept, gender, tone):
    found = meaning([ord(point) for point in text])
    assert (found.concept, found.gender, found.tone) == (concept, gender, tone)


def test_facing_is_part_of_the_role_not_of_the_concept():
    left, right = (meaning([ord(point) for point in text]) for text in ("🏃🏽‍♀️", "🏃🏽‍♀️‍➡️"))
    assert left.concept == right.concept and left.role != right.role and left.gender == right.gender == "woman"


def test_every_emoji_has_a_caption_in_every_language_and_a_group():
    assert len(LANGUAGES) == 14 and len(catalogue()) > 3700
    for emoji in catalogue():
        assert len(emoji.captions) == 14 and all(caption.strip() for caption in emoji.captions)
        assert emoji.group and emoji.subgroup
    assert len({emoji.code for emoji in catalogue()}) == len(catalogue())
    assert len({emoji.group for emoji in catalogue()}) == 9 and len({emoji.subgroup for emoji in catalogue()}) > 90


def test_pools_are_large_and_equal_in_both_styles():
    for split, least in (("unseen_concepts", 190), ("unseen_compositions", 350)):
        sizes = {style: len(EmojiPairs(split, (style,), ("en",))) for style in splits.TRAIN_STYLES}
        assert len(set(sizes.values())) == 1 and min(sizes.values()) >= least
    assert len(EmojiPairs("unseen_style", languages=("en",))) > 1000
    assert len(EmojiPairs("train")) == 14 * len(EmojiPairs("train", captions=14))


def test_no_unseen_concept_is_trained_on_in_any_tone():
    seen = {emoji.meaning.form for split in ("train", "unseen_compositions") for emoji in of(split)}
    unseen = of("unseen_concepts")
    assert not {emoji.meaning.form for emoji in unseen} & seen
    assert not any(emoji.meaning.tones for emoji in unseen)
    assert {emoji.group for emoji in unseen} == {emoji.group for emoji in catalogue()} - {"Flags"}


def test_kin_says_whether_training_shows_the_concept_with_another_gender_or_direction():
    trained = {emoji.meaning.concept for emoji in of("train")}
    kin = [splits.kin()[place] for place in splits.members("unseen_concepts")]
    assert kin == [splits.KIN[emoji.meaning.concept in trained] for emoji in of("unseen_concepts")]
    assert min(kin.count(name) for name in splits.KIN) > 30


def test_unseen_compositions_have_parts_that_training_shows_but_never_together():
    train = [emoji.meaning for emoji in of("train")]
    roles, people = {m.role for m in train}, {m.people for m in train}
    tones, whole = {m.tones for m in train}, {(m.role, m.people, m.tones) for m in train}
    for emoji in of("unseen_compositions"):
        m = emoji.meaning
        assert m.tones and m.role in roles and m.people in people and m.tones in tones
        assert (m.role, m.people, m.tones) not in whole


def test_no_picture_crosses_a_split():
    digests = art.digests()
    trained = {digests[style, place] for place in splits.members("train") for style in (0, 1)} - {""}
    for split in ("unseen_concepts", "unseen_compositions"):
        held = {digests[style, place] for place in splits.members(split) for style in (0, 1)}
        assert "" not in held and not held & trained
    assert not {digests[2, place] for place in splits.members("unseen_style")} & trained
    assert STYLES[:2] == splits.TRAIN_STYLES


def test_no_held_out_caption_is_trained_on():
    trained = {pair for emoji in of("train") for pair in zip(LANGUAGES, emoji.captions, strict=True)}
    for split in ("unseen_concepts", "unseen_compositions"):
        assert not {pair for emoji in of(split) for pair in zip(LANGUAGES, emoji.captions, strict=True)} & trained


def test_each_emoji_is_in_one_split_and_unseen_style_shows_trained_base_forms():
    places = [set(splits.members(split)) for split in ("train", "unseen_concepts", "unseen_compositions")]
    assert sum(map(len, places)) == len(set.union(*places))
    assert set(splits.members("unseen_style")) == {p for p in places[0] if not catalogue()[p].meaning.tones}


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"styles": ("twemoji",)}, "twemoji is held out as the unseen style"),
        ({"styles": ("apple",)}, "'apple' is proprietary art"),
        ({"styles": ("notto",)}, "did you mean noto"),
        ({"split": "test"}, "no split is called 'test'"),
        ({"languages": ("en", "xx")}, "no language is called 'xx'"),
        ({"captions": 15}, "captions must lie in 1..14"),
        ({"resolution": 4}, "resolution must lie in 8..512"),
    ],
)
def test_wrong_settings_are_refused(settings, told):
    with pytest.raises(UserError, match=told):
        EmojiPairs(**settings)


def test_records_say_what_they_show():
    source = EmojiPairs("unseen_compositions", languages=("de", "ja"), resolution=24)
    assert isinstance(source, Source) and isinstance(source, Gathers) and isinstance(source, Locates)
    names, pictures = source.names(), art.pictures(24)
    for index in range(0, len(source), 97):
        record = source[index]
        emoji = catalogue()[record["code"]]
        language, style = names["language"][record["language"]], names["style"][record["style"]]
        assert language in ("de", "ja") and record["caption"] == emoji.captions[LANGUAGES.index(language)]
        assert names["code"][record["code"]] == emoji.code and emoji.code in source.locate(index)
        assert names["tone"][record["tone"]] == emoji.meaning.tone != "none"
        assert names["gender"][record["gender"]] == emoji.meaning.gender
        assert names["group"][record["group"]] == emoji.group
        assert np.array_equal(record["image"], pictures[STYLES.index(style), record["code"]])
    columns = source.gather(np.arange(len(source)))
    assert len(set(zip(columns["code"], columns["style"], columns["language"], strict=True))) == len(source)
    assert all(np.array_equal(columns[name], source.column(name)) for name in ("code", "style", "concept", "picture"))
    words = list(zip(columns["caption_id"].tolist(), columns["caption"], strict=True))
    assert len(set(words)) == len({number for number, _ in words}) == len({word for _, word in words})


@pytest.mark.parametrize("captions", [3, 14])
def test_every_caption_stands_in_as_many_examples_as_asked(captions):
    source = EmojiPairs("unseen_concepts", captions=captions, styles=("noto",))
    columns = source.gather(np.arange(len(source)))
    counts = np.unique(
        np.stack([np.repeat(columns["code"], captions), columns["language"].ravel()]), axis=1, return_counts=True
    )[1]
    assert len(counts) == 14 * len(splits.members("unseen_concepts"))
    assert set(counts.tolist()) == {1 if captions == 14 else captions}
    assert all(len(set(row)) == captions for row in columns["language"].tolist())


def test_pictures_are_pictures_and_equal_ones_share_a_number():
    pictures = art.pictures(art.MASTER)
    for style, name in enumerate(STYLES):
        drawn = np.array([emoji.code in drawings(name) for emoji in catalogue()])
        blank = (pictures[style] == 255).reshape(len(drawn), -1).all(1)
        assert not blank[drawn].any() and blank[~drawn].all()
    source = EmojiPairs(captions=14)
    label, digest = source.column("picture"), {}
    for number, style, place in zip(label, source.column("style"), source.column("code"), strict=True):
        assert digest.setdefault(number, art.digests()[style, place]) == art.digests()[style, place]
    assert len(set(digest.values())) == len(digest)


def test_a_training_mixture_of_base_and_toned_forms_makes_valid_batches():
    words = SentencePiece(EmojiPairs(), vocabulary=4000)
    features = (
        ImageFeature(height=40, width=40),
        TextFeature(words, length=16, samples=2, subwords=Subwords(4)),
        *labels(*(name for name in LABELS if name not in ("caption_id", "language"))),
        *labels("caption_id", "language", samples=2),
    )
    base = Pipeline(EmojiPairs(forms="base", captions=2), features, 60, shuffle=1, order=OneOfEach("code"))
    toned = Pipeline(EmojiPairs(forms="toned", captions=2), features, 60, shuffle=2, order=Clustered(size=4))
    mixed = Mixture((base, toned), (0.6, 0.4))
    batch = next(mixed.batches()).check()
    jax.tree.map(
        lambda leaf, spec: np.testing.assert_equal((leaf.shape, leaf.dtype), (spec.shape, spec.dtype)),
        batch,
        mixed.spec(),
    )
    has_tone = batch.labels["tone"][:, 0] > 0
    assert has_tone.sum() == 24 and batch.valid.all()
    assert len(set(batch.labels["code"][~has_tone, 0].tolist())) == 36  # one of each
    assert len(set(batch.labels["concept"][has_tone, 0].tolist())) <= 7  # six clusters of four
    assert (batch.labels["language"][:, 0] != batch.labels["language"][:, 1]).all()
    shown = mixed.example(int(batch.id[0, 0]))
    assert shown["image"].shape == (40, 40, 3) and shown["style"] in splits.TRAIN_STYLES and len(shown["caption"]) == 2


def test_the_pipeline_of_a_split_survives_json_and_evaluates_each_pair_once():
    features = (ImageFeature(height=16, width=16), TextFeature(Bytes(), length=8), *labels(*LABELS))
    source = EmojiPairs("unseen_concepts", languages=("en", "ar"), resolution=16)
    data = Pipeline(source, features, 256, epochs=1)
    assert from_json(json.loads(json.dumps(to_json(data)))) == data
    batches = [batch.check() for batch in data.batches()]
    ids = np.concatenate([batch.id[batch.valid] for batch in batches])
    assert ids.tolist() == list(range(len(source)))


def test_the_card_counts_what_is_there_and_names_each_licence():
    facts = card()
    json.dumps(facts)
    assert facts["splits"]["unseen_concepts"]["pictures"]["noto"] == len(splits.members("unseen_concepts"))
    text = markdown()
    for word in ("CC BY-SA 4.0", "Apache-2.0", "CC BY 4.0", "Flags", *STYLES, *splits.SPLITS):
        assert word in text
