"""Questions about emoji: right by an independent reading of the metadata, unguessable without the picture, no leaks."""

from __future__ import annotations

import collections
import functools
import unicodedata

import emoji as words
import numpy as np
import pytest

from data_pipelines.emoji import LANGUAGES, EmojiQuestions, art, splits
from data_pipelines.emoji.answers import GROUPS, LABELLED, YES_NO
from data_pipelines.emoji.catalogue import STYLES, catalogue
from data_pipelines.emoji.countries import countries, country_code
from data_pipelines.emoji.pairing import clash, partners, twins
from data_pipelines.emoji.questions import BALANCED, KINDS
from data_pipelines.features import ImageFeature, TextFeature, labels
from data_pipelines.pipeline import Pipeline
from data_pipelines.protocols import Gathers, Locates, Source
from data_pipelines.tokenizers import Bytes
from mmjax.core.config import from_json, to_json
from mmjax.core.errors import UserError

TONES = {"🏻": "light", "🏼": "medium-light", "🏽": "medium", "🏾": "medium-dark", "🏿": "dark"}


@pytest.fixture(scope="module")
def sources():
    return {split: EmojiQuestions(split, resolution=24, languages=("en", "ja")) for split in splits.SPLITS}


@functools.lru_cache(8)
def everything(source):
    """(kind, language, emoji, question, answer, style) of every question."""
    indices = np.arange(len(source))
    columns = source.gather(indices)
    kinds = [KINDS[number] for number in columns["kind"]]
    spoken = [LANGUAGES[number] for number in columns["language"]]
    emoji = [catalogue()[code] for code in columns["code"]]
    return list(zip(kinds, spoken, emoji, columns["question"], columns["answer"], columns["style"], strict=True))


QUALIFIED = {
    form.replace("\ufe0f", ""): entry
    for form, entry in words.EMOJI_DATA.items()
    if entry["status"] == words.STATUS["fully_qualified"]
}


def caption(emoji, language):
    """Read from the package again, by the emoji's own text."""
    return QUALIFIED[emoji.text][language].strip(":").replace("_", " ")


def test_records_have_what_models_and_slices_need(sources):
    source = sources["unseen_concepts"]
    assert isinstance(source, Source) and isinstance(source, Gathers) and isinstance(source, Locates)
    names, pictures = source.names(), art.pictures(24)
    for index in range(0, len(source), 501):
        record = source[index]
        emoji = catalogue()[record["code"]]
        assert record["image"].shape == (24, 24, 3) and record["image"].dtype == np.uint8
        assert np.array_equal(record["image"], pictures[record["style"], record["code"]])
        assert record["question"] and record["answer"] == record["answer"].strip() != ""
        assert names["kind"][record["kind"]] in source.locate(index) and emoji.code in source.locate(index)
        assert names["group"][record["group"]] == emoji.group and names["style"][record["style"]] in STYLES


def test_answers_are_what_the_packages_say(sources):
    asked = collections.Counter()
    for source in sources.values():
        for kind, language, emoji, question, answer, _ in everything(source)[::7]:
            asked[kind] += 1
            tones = [TONES[letter] for letter in emoji.text if letter in TONES]
            if kind in ("name", "country"):
                assert answer == caption(emoji, language)
            elif kind == "group":
                label = "Smileys & Emotion" if emoji.group == "People & Body" else emoji.group
                table = GROUPS.get(language, "").split("|")
                assert answer == (emoji.group.lower() if language == "en" else table[LABELLED.index(label)])
            elif kind == "subgroup":
                assert answer.replace(" ", "-") == emoji.subgroup.replace(" ", "-")
            elif kind == "tone":
                assert len(set(tones)) == 1 and answer == caption_of_tone(tones[0], language)
            elif kind == "gender":
                assert answer == words.EMOJI_DATA[person_in(emoji)][language].strip(":")
            elif kind == "capital":
                assert answer == countries()[letters(emoji)].capital != ""
            elif kind == "region":
                assert answer == countries()[letters(emoji)].region
            elif kind == "which":
                assert answer == caption(emoji, language) and answer in question
            elif kind == "is" and answer == YES_NO[language][0]:
                assert caption(emoji, language) in question
    assert set(asked) == set(KINDS)


def caption_of_tone(name, language):
    letter = next(letter for letter, known in TONES.items() if known == name)
    return words.EMOJI_DATA[letter][language].strip(":").replace("_", " ")


def person_in(emoji):
    """👩 or 👨, by the English name or by the sign of gender."""
    name = f" {emoji.captions[0].lower()} "
    female = "\u2640" in emoji.text or any(
        word in name for word in (" woman ", " women ", "mrs", "princess", " girl ", "old woman", "breast", "bride")
    )
    return "👩" if female else "👨"


def letters(emoji):
    return "".join(unicodedata.name(letter)[-1] for letter in emoji.text)


def test_a_no_is_about_another_thing_and_near(sources):
    """The name in a question that is answered with no never suits the picture; mostly it is of the same subgroup."""
    by_name = collections.defaultdict(list)
    for place, emoji in enumerate(catalogue()):
        by_name[emoji.captions[0]].append(place)
    near = total = 0
    place_of = {emoji.code: place for place, emoji in enumerate(catalogue())}
    for kind, language, emoji, question, answer, _ in everything(sources["train"]):
        if kind == "is" and language == "en" and answer == "no":
            named = [name for name in (question_name(question),) if name in by_name]
            assert len(named) == 1
            (other,) = (place for place in by_name[named[0]] if place not in twins())
            assert not clash(*sorted((place_of[emoji.code], other)))
            near += catalogue()[other].subgroup == emoji.subgroup
            total += 1
    assert total > 5000 and near / total > 0.9


def question_name(question):
    for before, after in (
        ("Does this show: ", "?"),
        ('Is "', '" the right name for this?'),
        ("", ": yes or no?"),
        ("Is this picture called ", "?"),
    ):
        if question.startswith(before) and question.endswith(after):
            return question.removeprefix(before).removesuffix(after)
    raise AssertionError(question)


@pytest.mark.parametrize("split", splits.SPLITS)
def test_a_question_alone_does_not_tell_yes_from_no_nor_one_of_two(sources, split):
    counts = collections.defaultdict(collections.Counter)
    for kind, _, _, question, answer, _ in everything(sources[split]):
        if kind in ("is", "which"):
            counts[kind, question][answer] += 1
    assert len(counts) > 1000
    for (_, question), answers in counts.items():
        assert len(answers) == 2 and len(set(answers.values())) == 1, (question, answers)


@pytest.mark.parametrize("split", splits.SPLITS)
def test_chances_are_near_those_of_a_blind_guess(sources, split):
    source = sources[split]
    chances = source.chances()
    assert chances["is"] == chances["which"] == 0.5
    for kind in set(chances) & set(BALANCED):
        found = len(
            {answer for one, language, _, _, answer, _ in everything(source) if (one, language) == (kind, "en")}
        )
        assert chances[kind] < {"gender": 0.65, "group": 0.2}.get(kind, 1.6 / found + 0.1), (kind, chances[kind])
    assert chances["name"] < 0.02
    assert ("tone" in chances) == (split in ("train", "unseen_compositions"))


def test_every_question_has_one_answer_per_picture(sources):
    for source in sources.values():
        answers = collections.defaultdict(set)
        for kind, _, emoji, question, answer, style in everything(source):
            answers[kind, question, emoji.code, style].add(answer)
        assert {len(found) for found in answers.values()} == {1}


def test_held_out_concepts_and_pictures_are_never_asked_about_in_training(sources):
    train = sources["train"]
    forms = {catalogue()[code].meaning.form for code in np.unique(train.column("code"))}
    pictures = set(train.column("picture").tolist())
    texts = {answer for kind, _, _, _, answer, _ in everything(train) if kind in ("name", "which")}
    whole = {(m.form, m.tones) for m in (catalogue()[code].meaning for code in np.unique(train.column("code")))}
    for split in ("unseen_concepts", "unseen_compositions", "unseen_style"):
        held = sources[split]
        assert not pictures & set(held.column("picture").tolist())
        codes = np.unique(held.column("code"))
        if split == "unseen_concepts":
            assert not {catalogue()[code].meaning.form for code in codes} & forms
        if split == "unseen_compositions":
            assert not {(catalogue()[code].meaning.form, catalogue()[code].meaning.tones) for code in codes} & whole
        if split != "unseen_style":
            assert not {answer for kind, _, _, _, answer, _ in everything(held) if kind == "name"} & texts


def test_questions_of_a_split_name_its_own_emoji_only(sources):
    for split in ("train", "unseen_concepts", "unseen_compositions"):
        own = {emoji.captions[0] for emoji in (catalogue()[place] for place in splits.members(split))}
        for kind, language, _, question, _, _ in everything(sources[split]):
            if kind == "is" and language == "en":
                assert question_name(question) in own


def test_the_same_every_time_and_different_when_told_so():
    one, two = (EmojiQuestions("unseen_concepts", resolution=24, languages=("fr",)) for _ in range(2))
    indices = np.arange(len(one))[::-3]
    first, again = one.gather(indices), two.gather(indices)
    assert first["question"] == again["question"] and first["answer"] == again["answer"]
    assert np.array_equal(first["image"], again["image"]) and one.fingerprint() == two.fingerprint()
    more = EmojiQuestions("unseen_concepts", resolution=24, languages=("fr",), turns=3)
    assert more.fingerprint() != one.fingerprint() and len(more) > len(one)
    assert from_json(to_json(one)) == one


def test_columns_agree_with_records_and_texts_cover_them(sources):
    source = sources["unseen_compositions"]
    columns = source.gather(np.arange(0, len(source), 13))
    for name in ("kind", "language", "concept", "picture", "style", "code", "tone", "gender", "subgroup"):
        assert np.array_equal(source.column(name)[::13], columns[name])
    texts = source.texts()
    assert texts == source.texts("answer") == sorted(set(texts))
    assert set(columns["answer"]) <= set(texts)
    letters_known = set("".join(texts))
    assert set("".join(columns["question"])) <= letters_known


def test_a_tone_that_a_reader_could_guess_is_not_favoured(sources):
    found = collections.Counter(answer for kind, _, _, _, answer, _ in everything(sources["train"]) if kind == "tone")
    assert len(found) == 10 and max(found.values()) / min(found.values()) < 1.2


def test_flags_give_countries():
    assert country_code("1F1E9-1F1EA") == "DE" and country_code("1F600") == "" and country_code("1F3F4") == ""
    assert (countries()["JP"].capital, countries()["JP"].region) == ("Tokyo", "Asia")
    assert countries()["KZ"].capital == "Astana" and countries()["ZA"].capital == ""
    assert {country.region for country in countries().values()} == {
        "Africa",
        "Americas",
        "Asia",
        "Europe",
        "Oceania",
        "",
    }


def test_partners_are_mutual():
    places = [place for place in splits.members("train") if place not in twins()]
    found = partners(places, 3)
    paired = np.flatnonzero(found >= 0)
    assert np.array_equal(found[found[paired]], paired) and (found[paired] != paired).all()
    base = np.array([not catalogue()[place].meaning.tones for place in places])
    assert (found[base] >= 0).mean() > 0.95
    assert not np.array_equal(found, partners(places, 4))


def test_yes_and_no_differ_in_every_language():
    assert set(YES_NO) == set(LANGUAGES) and all(yes != no for yes, no in YES_NO.values())
    assert all(len(table.split("|")) == len(LABELLED) for table in GROUPS.values())


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"kinds": ("colour",)}, "no kind is called 'colour'"),
        ({"languages": ("xx",)}, "no language is called 'xx'"),
        ({"languages": ()}, "languages is empty"),
        ({"split": "test"}, "no split is called 'test'"),
        ({"turns": 0}, "turns must lie in 1..64"),
        ({"resolution": 4}, "resolution must lie in 8..512"),
    ],
)
def test_wrong_settings_are_refused(settings, told):
    with pytest.raises(UserError, match=told):
        EmojiQuestions(**settings)


def test_a_split_without_a_kind_says_so():
    with pytest.raises(UserError, match="the split unseen_concepts has no question of kind tone in en"):
        len(EmojiQuestions("unseen_concepts", kinds=("tone",), languages=("en",)))


def test_they_run_through_a_pipeline():
    source = EmojiQuestions("unseen_concepts", resolution=24, kinds=("is", "name"), languages=("en", "ar"))
    features = (ImageFeature(height=24, width=24), TextFeature(Bytes(), "question", 96), *labels("kind", "concept"))
    batch = next(iter(Pipeline(source, features, batch=8, shuffle=0, epochs=1).batches()))
    assert batch.image.pixels.shape == (8, 1, 24, 24, 3) and (batch.text.segment[:, 0] == 1).all()
    assert set(batch.labels["kind"].ravel().tolist()) <= {KINDS.index("is"), KINDS.index("name")}
