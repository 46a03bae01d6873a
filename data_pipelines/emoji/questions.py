"""Questions about emoji whose answers are known: from names, groups, skin tones, genders and the countries of flags."""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from data_pipelines.cache import fingerprint_of
from data_pipelines.emoji import answers
from data_pipelines.emoji.catalogue import LANGUAGES, Emoji, catalogue
from data_pipelines.emoji.concepts import TONES
from data_pipelines.emoji.countries import Country, countries, country_code, version
from data_pipelines.emoji.pairing import partners, twins
from data_pipelines.emoji.pairs import EmojiPairs
from data_pipelines.emoji.wordings import ELSEWHERE, ENGLISH, put, wordings
from data_pipelines.randomness import fold, mix, named
from mmjax.core.errors import UserError, check_names

KINDS = ("name", "group", "subgroup", "tone", "gender", "country", "capital", "region", "is", "which")
BALANCED = ("group", "subgroup", "tone", "gender", "region")  # kinds with few answers
PAIRED = ("is", "which")  # kinds that ask about a picture's name and its partner's
LABELS = ("concept", "picture", "style", "code", "kin", "tone", "gender", "group", "subgroup")


@dataclasses.dataclass(frozen=True)
class EmojiQuestions:
    """Questions about the pictures of one split of `EmojiPairs`, each with its one short answer.

    name        its CLDR name                       country, capital, region   of a flag
    group, subgroup   where Unicode files it        is       is this its name? yes or no
    tone        which of the five skin tones        which    its name or that of another
    gender      man or woman (of one adult)

    kinds, languages: which to ask; () = all that the split and the languages have (subgroup, country, capital and
    region are asked in English alone). turns: how many partners each picture gets in the last two kinds.

    Without its picture a question says next to nothing of the answer (`chances`): partners share a subgroup, and what
    is asked of one is asked of the other in the same words; kinds with few answers have no answer in more pictures than
    the median answer. Left out: pictures that two emoji share, and couples of two tones in tone, is and which.

    A record has `image` [R R 3] uint8, `question` and `answer` (text) and, as integers, `kind`, `language`, `concept`,
    `picture`, `style`, `code`, `kin`, `tone`, `gender`, `group`, `subgroup`: those of `EmojiPairs`.
    """

    split: str = "train"
    resolution: int = 40
    kinds: tuple[str, ...] = ()
    languages: tuple[str, ...] = LANGUAGES
    styles: tuple[str, ...] = ()
    turns: int = 2

    def __post_init__(self):
        check_names("kind", self.kinds, KINDS)
        check_names("language", self.languages, LANGUAGES)
        if not self.languages:
            raise UserError(f"languages is empty; choose from {', '.join(LANGUAGES)}")
        if not 1 <= self.turns <= 64:
            raise UserError(f"turns must lie in 1..64; got {self.turns}")
        EmojiPairs(self.split, self.styles, self.languages[:1], self.resolution)

    # ------------------------------------------------------------------------------------------------ as a source

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return {name: column[0] for name, column in self.gather(np.array([index])).items()}

    def gather(self, indices: np.ndarray) -> Mapping[str, Sequence[Any]]:
        """See `data_pipelines.protocols.Gathers`."""
        rows = self._rows[indices]
        shown = self._pairs.gather(rows[:, _PICTURE])
        question, answer = self._said(rows)
        columns = {"image": shown["image"], "question": question, "answer": answer}
        columns |= {"kind": rows[:, _KIND].astype(np.int32), "language": rows[:, _LANGUAGE].astype(np.int32)}
        return columns | {name: shown[name] for name in LABELS}

    def column(self, name: str) -> np.ndarray:
        """[len] a label of every question, without drawing a picture."""
        places = {"kind": _KIND, "language": _LANGUAGE}
        if name in places:
            return self._rows[:, places[name]]
        check_names("column", (name,), (*places, *LABELS))
        return self._pairs.column(name)[self._rows[:, _PICTURE]]

    def said(self, indices: np.ndarray) -> tuple[list[str], list[str]]:
        """Questions and answers, without drawing a picture."""
        return self._said(self._rows[indices])

    @property
    def shown(self) -> np.ndarray:
        """[len] which drawing each question is about."""
        return self._rows[:, _PICTURE]

    def texts(self, field: str = "question") -> list[str]:
        """What questions and answers are made of, each once in a stable order: the same for either field, so that one
        tokenizer serves both."""
        asked = {(kind, language) for kind, language in np.unique(self._rows[:, [_KIND, _LANGUAGE]], axis=0).tolist()}
        words = set(self._pairs_in_all_languages.texts())
        for number, language in asked:
            kind, name = KINDS[number], LANGUAGES[language]
            words |= {put(kind, name, way) for way in range(len(wordings(kind, name)))}
            words |= set(self.choices(kind, name))
        open_ended = np.isin(self._rows[:, _KIND], [KINDS.index("country"), KINDS.index("capital")])
        return sorted(words | set(self._said(self._rows[open_ended])[1]))

    def fingerprint(self) -> Mapping[str, str]:
        """See `data_pipelines.protocols.Source`."""
        settings = dataclasses.asdict(self) | {"wordings": [ENGLISH, ELSEWHERE]} | version()
        return {**self._pairs.fingerprint(), "emoji questions": fingerprint_of(settings)}

    def names(self) -> Mapping[str, tuple[str, ...]]:
        """See `data_pipelines.protocols.Source`. `answer`, where every kind that is asked has few."""
        few = {"answer": self._answers} if self._answers else {}
        return {**self._pairs.names(), "kind": KINDS, "language": LANGUAGES} | few

    def card(self) -> Mapping[str, Any]:
        """What reports say of this data."""
        return {**self._pairs.card(), "questions": dict(self._sizes()), "chances": self.chances()}

    def locate(self, index: int) -> str:
        """See `data_pipelines.protocols.Locates`."""
        row = self._rows[index]
        return f"{self._pairs.locate(int(row[_PICTURE]))} {KINDS[row[_KIND]]} {LANGUAGES[row[_LANGUAGE]]}"

    # --------------------------------------------------------------------------------------------- for evaluation

    def chances(self) -> dict[str, float]:
        """By kind, how often a reader who never sees a picture is right: one who gives each question, word for word,
        the answer that it most often has in this very source."""
        said: dict[tuple[int, str], collections.Counter[str]] = collections.defaultdict(collections.Counter)
        for kind, question, answer in zip(self._rows[:, _KIND].tolist(), *self._said(self._rows), strict=True):
            said[kind, question][answer] += 1
        best: collections.Counter[int] = collections.Counter()
        for (kind, _), counts in said.items():
            best[kind] += max(counts.values())
        return {kind: best[KINDS.index(kind)] / size for kind, size in self._sizes().items()}

    def choices(self, kind: str, language: str) -> tuple[str, ...]:
        """All answers of a kind that has few; () for the others."""
        groups = self._pairs.names()
        closed: dict[str, Callable[[], list[str]]] = {
            "group": lambda: [answers.group(name, language) for name in groups["group"]],
            "subgroup": lambda: [answers.subgroup(name) for name in groups["subgroup"]],
            "tone": lambda: [answers.tone(name, language) for name in TONES.values()],
            "gender": lambda: [answers.gender(name, language) for name in answers.ADULTS],
            "region": lambda: sorted({country.region for country in countries().values()} - {""}),
            "is": lambda: list(answers.YES_NO[language]),
        }
        return tuple(dict.fromkeys(closed[kind]())) if kind in closed else ()

    # ------------------------------------------------------------------------------------------------------ inside

    @functools.cached_property
    def _pairs(self) -> EmojiPairs:
        """Its examples are the pictures."""
        return EmojiPairs(self.split, self.styles, ("en",), self.resolution)

    @property
    def _pairs_in_all_languages(self) -> EmojiPairs:
        return dataclasses.replace(self._pairs, languages=self.languages)

    @functools.cached_property
    def _codes(self) -> np.ndarray:
        """[pictures] places in the catalogue."""
        return self._pairs.column("code")

    @functools.cached_property
    def _rows(self) -> np.ndarray:
        """[questions 5] kind, picture, picture whose name is asked about, language, turn."""
        parts = []
        for kind in self.kinds or KINDS:
            asked = [self._asked(kind, name) for name in self.languages if wordings(kind, name)]
            if self.kinds and not sum(map(len, asked)):
                raise UserError(f"the split {self.split} has no question of kind {kind} in {', '.join(self.languages)}")
            parts += asked
        return np.concatenate(parts).astype(np.int32)

    def _asked(self, kind: str, language: str) -> np.ndarray:
        """[questions 5] rows of one kind in one language; none where all would have one answer."""
        if kind in PAIRED:
            asked = self._matched[kind]
        else:
            found = self._by_answer(kind, LANGUAGES.index(language))
            chosen = _levelled(found) if kind in BALANCED else [place for some in found.values() for place in some]
            places = np.array(chosen if len(found) > 1 else [], np.int64)
            asked = np.stack([places, places, np.zeros_like(places)], axis=1)
        number, tongue = (np.full(len(asked), place) for place in (KINDS.index(kind), LANGUAGES.index(language)))
        return np.stack([number, asked[:, 0], asked[:, 1], tongue, asked[:, 2]], axis=1)

    def _by_answer(self, kind: str, language: int) -> dict[str, list[int]]:
        """answer -> pictures. Of all kinds only groups have answers that fall together in some languages."""
        known, unfair, found = classes_of(kind), twins(), collections.defaultdict(list)
        for picture, code in enumerate(self._codes.tolist()):
            name = known[code]
            if name and code not in unfair:
                found[answers.group(name, LANGUAGES[language]) if kind == "group" else name].append(picture)
        return found

    @functools.cached_property
    def _matched(self) -> dict[str, np.ndarray]:
        """kind -> [questions in one language, 3]: picture, picture whose name is asked about, turn."""
        matched = np.concatenate([self._partners(turn) for turn in range(self.turns)])
        own = np.stack([matched[:, 0], matched[:, 0], matched[:, 2]], axis=1)
        return {"is": np.concatenate([own, matched]), "which": matched}

    def _partners(self, turn: int) -> np.ndarray:
        """[pictures 3]: picture, its partner, turn."""
        style = self._pairs.column("style")
        parts = []
        for number in np.unique(style):
            pictures = np.flatnonzero((style == number) & ~np.isin(self._codes, list(twins())))
            partner = partners(self._codes[pictures].tolist(), fold(turn, number))
            pictures, partner = pictures[partner >= 0], pictures[partner[partner >= 0]]
            parts.append(np.stack([pictures, partner, np.full_like(pictures, turn)], axis=1))
        return np.concatenate(parts)

    def _said(self, rows: np.ndarray) -> tuple[list[str], list[str]]:
        """Question and answer of each row."""
        way = _ways(rows)
        own, asked = self._codes[rows[:, _PICTURE]], self._codes[rows[:, _ASKED]]
        columns = (rows[:, _KIND], rows[:, _LANGUAGE], own, asked, way >> np.uint64(1), way & np.uint64(1))
        said = [_question_and_answer(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]
        return [question for question, _ in said], [answer for _, answer in said]

    @functools.cached_property
    def _answers(self) -> tuple[str, ...]:
        """All answers there are; () where a kind is asked that has many."""
        asked = [(kind, name) for kind in self.kinds or KINDS for name in self.languages if wordings(kind, name)]
        few = [self.choices(kind, language) for kind, language in asked]
        return tuple(dict.fromkeys(answer for some in few for answer in some)) if all(few) else ()

    def _sizes(self) -> dict[str, int]:
        """Questions by kind."""
        counts = np.bincount(self._rows[:, _KIND], minlength=len(KINDS)).tolist()
        return {kind: count for kind, count in zip(KINDS, counts, strict=True) if count}


_KIND, _PICTURE, _ASKED, _LANGUAGE, _TURN = range(5)


def class_of(kind: str, emoji: Emoji) -> str:
    """The answer in metadata's own words, "" when the kind is not asked of this emoji."""
    meaning, flag = emoji.meaning, country_code(emoji.code)
    country = countries().get(flag, Country("", ""))
    single_adult = len(meaning.people) == 1 and meaning.concept != "child"
    known = {
        "name": emoji.code,
        "group": emoji.group,
        "subgroup": emoji.subgroup,
        "tone": meaning.tone if meaning.tone in TONES.values() else "",
        "gender": meaning.gender if single_adult and meaning.gender in answers.ADULTS else "",
        "country": emoji.captions[0] if flag else "",
        "capital": country.capital,
        "region": country.region,
    }
    return known[kind]


@functools.cache
def classes_of(kind: str) -> tuple[str, ...]:
    """`class_of` each emoji of the catalogue."""
    return tuple(class_of(kind, emoji) for emoji in catalogue())


def _levelled(found: Mapping[str, list[int]]) -> list[int]:
    """No more pictures of one answer than of the median answer (the lower one of two); drawn by hashing."""
    most = sorted(len(pictures) for pictures in found.values())[(len(found) - 1) // 2] if found else 0
    return sorted(
        picture
        for name, pictures in found.items()
        for picture in np.array(pictures)[np.argsort(mix(named(np.array(pictures), name)))[:most]].tolist()
    )


def _ways(rows: np.ndarray) -> np.ndarray:
    """[n] a hash that chooses wording and order: equal where partners are asked the same, so that nothing but the
    picture tells their questions apart."""
    one, other = rows[:, _PICTURE], rows[:, _ASKED]
    which = rows[:, _KIND] == KINDS.index("which")
    low, high = np.where(which, np.minimum(one, other), other), np.where(which, np.maximum(one, other), other)
    key = fold(fold(fold(rows[:, _KIND], rows[:, _LANGUAGE]), rows[:, _TURN]), low)
    return mix(fold(key, high))


@functools.lru_cache(1 << 16)
def _question_and_answer(kind: int, language: int, own: int, asked: int, way: int, swap: int) -> tuple[str, str]:
    name, tongue, emoji = KINDS[kind], LANGUAGES[language], catalogue()[own]
    caption, other = emoji.captions[language], catalogue()[asked].captions[language]
    if name == "is":
        return put(name, tongue, way, other), answers.yes_or_no(own == asked, tongue)
    if name == "which":
        low, high = sorted((own, asked))
        first, second = (catalogue()[place].captions[language] for place in ((low, high) if swap else (high, low)))
        return put(name, tongue, way, first, second), caption
    if name == "gender":
        first, second = (answers.gender(person, tongue) for person in (("man", "woman")[:: 1 if swap else -1]))
        return put(name, tongue, way, first, second), _plain_answer(name, emoji, language)
    return put(name, tongue, way), _plain_answer(name, emoji, language)


def _plain_answer(kind: str, emoji: Emoji, language: int) -> str:
    found, tongue = class_of(kind, emoji), LANGUAGES[language]
    ways: dict[str, Callable[[], str]] = {
        "name": lambda: emoji.captions[language],
        "group": lambda: answers.group(found, tongue),
        "subgroup": lambda: answers.subgroup(found),
        "tone": lambda: answers.tone(found, tongue),
        "gender": lambda: answers.gender(found, tongue),
    }
    return ways.get(kind, lambda: found)()
