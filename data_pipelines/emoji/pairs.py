"""Emoji pictures with captions, as a source."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data_pipelines.cache import fingerprint_of
from data_pipelines.emoji import art, splits
from data_pipelines.emoji.card import card
from data_pipelines.emoji.catalogue import LANGUAGES, STYLES, catalogue, drawings, tone_names, versions
from data_pipelines.randomness import fold, mix
from mmjax.core.errors import UserError, check_names, unknown_name

GENDERS = ("none", "person", "man", "woman", "mixed")
FORMS = ("all", "base", "toned")


@dataclasses.dataclass(frozen=True)
class EmojiPairs:
    """Pictures of one split, each with captions in some of the languages.

    split: train, unseen_concepts, unseen_compositions or unseen_style (`data_pipelines.emoji.splits`).
    styles: which artists; () = those of the split. resolution: pixels. forms: "base" without a skin tone, "toned" with.
    captions: how many captions, each in another language, one example holds. 1: every (picture, language) is an
    example. As many as there are languages: every picture is one example. Between: every picture is as many examples
    as there are languages, and each caption stands in `captions` of them.

    A record has `image` [R R 3] uint8, `caption` (text; a tuple when `captions` > 1) and, as integers, `picture` (equal
    for pictures equal to the last bit), `caption_id` (equal for equal captions), `code` (which emoji), `concept` (of
    all its genders and tones), `kin` (is the concept trained on), `language`, `style`, `tone`, `gender`, `group`,
    `subgroup`; caption_id and language are [captions] when that is > 1.
    """

    split: str = "train"
    styles: tuple[str, ...] = ()
    languages: tuple[str, ...] = LANGUAGES
    resolution: int = 40
    forms: str = "all"
    captions: int = 1

    def __post_init__(self):
        for kind, given, known in (
            ("split", (self.split,), splits.SPLITS),
            ("style", [s for s in self.styles if s not in art.PROPRIETARY], STYLES),
            ("language", self.languages, LANGUAGES),
            ("choice of forms", (self.forms,), FORMS),
        ):
            check_names(kind, given, known)
        for style in self.styles:
            if style in art.PROPRIETARY:
                raise UserError(
                    f"the style {style!r} is proprietary art and is not used; free ones: {', '.join(STYLES)}"
                )
            if self.split == splits.TRAIN and style not in splits.TRAIN_STYLES:
                raise UserError(f"{style} is held out as the unseen style; train on {', '.join(splits.TRAIN_STYLES)}")
        if not 1 <= self.captions <= len(self.languages):
            raise UserError(
                f"captions must lie in 1..{len(self.languages)}, the number of languages; got {self.captions}"
            )
        if not 8 <= self.resolution <= 512:
            raise UserError(f"resolution must lie in 8..512 pixels; got {self.resolution}")

    # ------------------------------------------------------------------------------------------------ as a source

    def __len__(self) -> int:
        return len(self._places) * self._turns

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        columns = self.gather(np.array([index]))
        return {name: column[0] for name, column in columns.items()}

    def gather(self, indices: np.ndarray) -> Mapping[str, Sequence[Any]]:
        """See `data_pipelines.protocols.Gathers`."""
        pictures, turns = np.divmod(indices, self._turns)
        style, emoji = self._places[pictures].T
        language = self._languages_of(pictures, turns)
        caption = _tables()["caption"][emoji[:, None], language]
        texts = _texts()
        if self.captions == 1:
            caption, language = caption[:, 0], language[:, 0]
            words: list[Any] = [texts[number] for number in caption]
        else:
            words = [tuple(texts[number] for number in row) for row in caption]
        columns = {"image": self._art[style, emoji], "caption": words, "caption_id": caption, "language": language}
        columns |= {"picture": _tables()["picture"][style, emoji], "style": style, "code": emoji}
        return columns | {
            name: _tables()[name][emoji] for name in ("concept", "kin", "tone", "gender", "group", "subgroup")
        }

    def column(self, name: str) -> np.ndarray:
        """[len] a label of every example, without drawing a picture."""
        style, emoji = np.repeat(self._places, self._turns, axis=0).T
        if name in ("style", "code"):
            return {"style": style, "code": emoji}[name]
        if name == "picture":
            return _tables()["picture"][style, emoji]
        if name in ("caption", "caption_id", "language", "image") or name not in _tables():
            raise UserError(unknown_name("column", name, ["style", "code", "picture", *_tables()]))
        return _tables()[name][emoji]

    def texts(self, field: str = "caption") -> list[str]:
        """Every caption of the split once, in a stable order; what a tokenizer is trained on."""
        chosen = [LANGUAGES.index(language) for language in self.languages]
        rows = _tables()["caption"][np.unique(self._places[:, 1])][:, chosen]
        texts = _texts()
        return sorted(texts[number] for number in np.unique(rows))

    def fingerprint(self) -> Mapping[str, str]:
        """See `data_pipelines.protocols.Source`."""
        settings = dataclasses.asdict(self) | {"styles": self._styles, "seed": splits.SEED}
        return {"emoji": fingerprint_of(settings), "emoji packages": fingerprint_of(versions())}

    def names(self) -> Mapping[str, tuple[str, ...]]:
        """See `data_pipelines.protocols.Source`."""
        return _names()

    def card(self) -> Mapping[str, Any]:
        """What reports say of this data: artists, licences, splits, limits."""
        return card()

    def locate(self, index: int) -> str:
        """See `data_pipelines.protocols.Locates`."""
        style, emoji = self._places[index // self._turns]
        return f"{STYLES[style]} {catalogue()[emoji].code}"

    # ------------------------------------------------------------------------------------------------------ inside

    @property
    def _styles(self) -> tuple[str, ...]:
        return self.styles or (("twemoji",) if self.split == splits.STYLE else splits.TRAIN_STYLES)

    @property
    def _turns(self) -> int:
        return 1 if self.captions == len(self.languages) else len(self.languages)

    @functools.cached_property
    def _art(self) -> np.ndarray:
        return art.pictures(self.resolution)

    @functools.cached_property
    def _places(self) -> np.ndarray:
        """[pictures 2]: style, emoji."""
        wanted = {"all": (True, False), "base": (False,), "toned": (True,)}[self.forms]
        chosen = [
            (STYLES.index(style), place)
            for place in splits.members(self.split)
            if bool(catalogue()[place].meaning.tones) in wanted
            for style in self._styles
            if catalogue()[place].code in drawings(style)
        ]
        return np.array(chosen, np.int64).reshape(-1, 2)

    def _languages_of(self, pictures: np.ndarray, turns: np.ndarray) -> np.ndarray:
        """[n captions] numbers into LANGUAGES: a window, from `turns` on, of the picture's own order of languages."""
        numbers = np.array([LANGUAGES.index(language) for language in self.languages])
        if self.captions in (1, len(numbers)):
            return numbers[(turns[:, None] + np.arange(self.captions)) % len(numbers)]
        order = np.argsort(mix(fold(pictures[:, None], np.arange(len(numbers)))), axis=1)
        window = (turns[:, None] + np.arange(self.captions)) % len(numbers)
        return numbers[np.take_along_axis(order, window, axis=1)]


@functools.cache
def _texts() -> tuple[str, ...]:
    """Every caption there is, in all languages; its place is the caption's number."""
    return tuple(sorted({caption for emoji in catalogue() for caption in emoji.captions}))


@functools.cache
def _names() -> dict[str, tuple[str, ...]]:
    emoji = catalogue()
    plainest = sorted(emoji, key=lambda entry: (len(entry.meaning.tones), GENDERS.index(entry.meaning.gender)))
    english = {entry.meaning.concept: entry.captions[0] for entry in reversed(plainest)}
    return {
        "language": LANGUAGES,
        "style": STYLES,
        "tone": tone_names(),
        "gender": GENDERS,
        "group": tuple(dict.fromkeys(entry.group for entry in emoji)),
        "subgroup": tuple(dict.fromkeys(entry.subgroup for entry in emoji)),
        "concept": tuple(english[name] for name in _concepts()),
        "kin": splits.KIN,
        "code": tuple(entry.code for entry in emoji),
    }


def _concepts() -> tuple[str, ...]:
    return tuple(dict.fromkeys(entry.meaning.concept for entry in catalogue()))


@functools.cache
def _tables() -> dict[str, np.ndarray]:
    """The labels of every emoji: `caption` [E L], `picture` [S E], others [E]."""
    emoji, names = catalogue(), _names()
    number = {text: place for place, text in enumerate(_texts())}

    def column(known: Sequence[str], values: Sequence[str]) -> np.ndarray:
        places = {name: place for place, name in enumerate(known)}
        return np.array([places[value] for value in values], np.int32)

    digests = art.digests()
    return {
        "caption": np.array([[number[caption] for caption in entry.captions] for entry in emoji], np.int32),
        "picture": np.unique(digests, return_inverse=True)[1].reshape(digests.shape).astype(np.int32),
        "concept": column(_concepts(), [entry.meaning.concept for entry in emoji]),
        "kin": column(splits.KIN, splits.kin()),
        "tone": column(names["tone"], [entry.meaning.tone for entry in emoji]),
        "gender": column(names["gender"], [entry.meaning.gender for entry in emoji]),
        "group": column(names["group"], [entry.group for entry in emoji]),
        "subgroup": column(names["subgroup"], [entry.subgroup for entry in emoji]),
    }
