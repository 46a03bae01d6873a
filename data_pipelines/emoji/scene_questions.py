"""Questions about scenes: what is there, how many, where, on which side of what, how large."""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data_pipelines.cache import fingerprint_of
from data_pipelines.emoji import answers, splits
from data_pipelines.emoji.catalogue import LANGUAGES, catalogue, versions
from data_pipelines.emoji.inventory import RELATIONS, held_out, pool, things
from data_pipelines.emoji.pairs import EmojiPairs
from data_pipelines.emoji.plans import (
    COMPARE,
    COUNT,
    KINDS,
    LARGER,
    LOCATE,
    RELATION,
    Plan,
    Plans,
    composed,
    counted,
    kinds_of,
    planned,
)
from data_pipelines.emoji.scenes import check_size, paint
from data_pipelines.emoji.wordings import ELSEWHERE, ENGLISH, put, wordings
from data_pipelines.randomness import fold, mix, named, uniform
from mmjax.core.errors import UserError, check_names, look_up

PHRASES = ("to the left of", "to the right of", "above", "below")  # in the order of RELATIONS
LABELS = ("concept", "kin", "group", "subgroup")


@dataclasses.dataclass(frozen=True)
class SceneQuestions:
    """`scenes` composed scenes of `resolution` pixels, one question each.

    exist     is there such a thing? yes or no       beside   is this left of (...) that? yes or no
    count     how many are there?                    larger   which of the two is larger?
    compare   which of the two is there more of?     locate   where? left, top, right, bottom, each in [0, 1]
    relation  on which side of that is this?

    split: train, unseen_concepts, unseen_style as for `EmojiPairs`; unseen_compositions asks of trained things what
    training never asks of them (a thing with a relation, a thing with a number: `inventory.held_out`); unseen_counts
    asks to count more than training ever shows. kinds, languages: () and LANGUAGES for all that there are (relation and
    beside are English only). seed: another one gives other scenes.

    Answers are drawn before scenes are composed, so each kind's are equally frequent whatever is asked about (but a
    thing with held-out relations is asked about in the others more often).

    A record has `image` [R R 3] uint8, `question`, `answer` (text), `boxes` [P 4] (float32 shares of the picture, nan
    where there is no thing), `box` [4] of the one asked about (nan but for locate) and, as integers, `things` [P] (-1
    for none), `thing` (asked about), `kind`, `language`, `style`, `picture`, `concept`, `kin`, `group`, `subgroup`.
    """

    split: str = "train"
    resolution: int = 96
    kinds: tuple[str, ...] = ()
    languages: tuple[str, ...] = LANGUAGES
    scenes: int = 100_000
    seed: int = 0

    def __post_init__(self):
        check_names("kind", self.kinds, kinds_of(self.split))
        check_names("language", self.languages, LANGUAGES)
        check_size(self.resolution, self.scenes)
        if not self._asks:
            raise UserError(f"none of {', '.join(self.kinds)} is asked in {', '.join(self.languages)}; add en")

    # ------------------------------------------------------------------------------------------------ as a source

    def __len__(self) -> int:
        return self.scenes

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return {name: column[0] for name, column in self.gather(np.array([index])).items()}

    def gather(self, indices: np.ndarray) -> Mapping[str, Sequence[Any]]:
        """See `data_pipelines.protocols.Gathers`."""
        plans, language = self._plans(indices), self._languages_of(indices)
        scenes = composed(self.split, plans, self._keys(indices))
        pixels, boxes = paint(scenes, self.resolution)
        box = np.where((plans.kind == LOCATE)[:, None], boxes[:, 0], np.float32(np.nan))
        said = self._said(indices, plans, language, box)
        columns = {"image": pixels, "question": [one for one, _ in said], "answer": [one for _, one in said]}
        columns |= {"boxes": boxes, "box": box}
        numbers = {"things": scenes.thing, "style": scenes.style} | self._numbers(indices, plans)
        return columns | {name: column.astype(np.int32) for name, column in numbers.items()}

    def column(self, name: str) -> np.ndarray:
        """[len] a label of every question, without drawing a picture."""
        indices = np.arange(self.scenes)
        return look_up("column", name, self._numbers(indices, self._plans(indices)))

    def texts(self, field: str = "question") -> list[str]:
        """What questions and answers are made of, each once in a stable order: the same for either field."""
        members = [catalogue()[things()[number]] for number in pool(self.split).members]
        words = {emoji.captions[LANGUAGES.index(name)] for emoji in members for name in self.languages}
        for kind, name in self._asks:
            words |= {put(kind, name, way) for way in range(len(wordings(kind, name)))}
            words |= set(self.choices(kind, name))
        numbers = {f"{share / 100:.2f}" for share in range(101)}
        return sorted(words | set(PHRASES) | numbers)

    def fingerprint(self) -> Mapping[str, str]:
        """See `data_pipelines.protocols.Source`."""
        settings = dataclasses.asdict(self) | {"wordings": [ENGLISH, ELSEWHERE], "split seed": splits.SEED}
        codes = [catalogue()[place].code for place in things()]
        made_from = {"settings": settings, "things": codes, "held out": held_out().tolist(), "composing": 1}
        return {"emoji scenes": fingerprint_of(made_from), "emoji packages": fingerprint_of(versions())}

    def names(self) -> Mapping[str, tuple[str, ...]]:
        """See `data_pipelines.protocols.Source`."""
        return {**label_names(), "kind": KINDS}

    def locate(self, index: int) -> str:
        """See `data_pipelines.protocols.Locates`."""
        kind, language = self._asks[index % len(self._asks)]
        return f"scene {index} of {self.split} {kind} {language}"

    # --------------------------------------------------------------------------------------------- for evaluation

    def chances(self, questions: int = 20_000) -> dict[str, float]:
        """By kind, how often the answer that is most frequent in the first `questions` is right; of two things that a
        question names, the answer counts as the first or the second. 0 for locate: a box is measured, not guessed."""
        indices = np.arange(min(questions, self.scenes))
        plans, language = self._plans(indices), self._languages_of(indices)
        answer = np.where(
            plans.kind == COUNT, plans.count, np.where(plans.kind == RELATION, plans.relation, plans.truth)
        )
        answer = np.where(np.isin(plans.kind, (COMPARE, LARGER)), answer ^ self._swapped(indices), answer)
        counts: dict[tuple[int, int], collections.Counter[int]] = collections.defaultdict(collections.Counter)
        for kind, tongue, one in zip(plans.kind.tolist(), language.tolist(), answer.tolist(), strict=True):
            counts[kind, tongue][one] += 1
        found = {}
        for number, kind in enumerate(KINDS):
            of_kind = [counter for (one, _), counter in counts.items() if one == number]
            if of_kind:
                best = sum(max(counter.values()) for counter in of_kind) / sum(counter.total() for counter in of_kind)
                found[kind] = 0.0 if kind == "locate" else best
        return found

    def choices(self, kind: str, language: str) -> tuple[str, ...]:
        """All answers of a kind that has few; () for the others."""
        closed = {"exist": answers.YES_NO[language], "beside": answers.YES_NO[language], "relation": RELATIONS}
        return (closed | {"count": tuple(map(str, counted(self.split)))}).get(kind, ())

    # ------------------------------------------------------------------------------------------------------ inside

    @functools.cached_property
    def _asks(self) -> tuple[tuple[str, str], ...]:
        """(kind, language) that scenes take in turn."""
        chosen = self.kinds or kinds_of(self.split)
        return tuple((kind, name) for name in self.languages for kind in chosen if wordings(kind, name))

    @functools.cached_property
    def _turns(self) -> np.ndarray:
        """[asks 2] kind and language as numbers."""
        return np.array([(KINDS.index(kind), LANGUAGES.index(language)) for kind, language in self._asks])

    def _plans(self, indices: np.ndarray) -> Plans:
        return planned(self.split, self._turns[np.asarray(indices) % len(self._turns), 0], self._keys(indices))

    def _languages_of(self, indices: np.ndarray) -> np.ndarray:
        return self._turns[np.asarray(indices) % len(self._turns), 1]

    def _keys(self, indices: np.ndarray) -> np.ndarray:
        return fold(named(named(self.seed, "scenes"), self.split), indices)

    def _swapped(self, indices: np.ndarray) -> np.ndarray:
        """Whether a question names the other thing first."""
        return uniform(named(self._keys(indices), "swap")) < 0.5

    def _numbers(self, indices: np.ndarray, plans: Plans) -> dict[str, np.ndarray]:
        numbers = {"kind": plans.kind, "language": self._languages_of(indices), "thing": plans.subject}
        labels = labels_of_things()
        return numbers | {"picture": np.asarray(indices)} | {name: labels[name][plans.subject] for name in LABELS}

    def _said(self, indices: np.ndarray, plans: Plans, language: np.ndarray, box: np.ndarray) -> list[tuple[str, str]]:
        """(question, answer) of each."""
        way = mix(named(self._keys(indices), "way")) >> np.uint64(1)
        columns = (column.tolist() for column in (language, way, self._swapped(indices), box))
        return [
            (_question(plan, tongue, number, swapped), _answer(plan, tongue, spot))
            for plan, tongue, number, swapped, spot in zip(plans.rows(), *columns, strict=True)
        ]


def _question(plan: Plan, language: int, way: int, swapped: bool) -> str:
    first, second = name_of(plan.subject, language), name_of(plan.other, language)
    if plan.kind in (COMPARE, LARGER) and swapped:
        first, second = second, first
    return put(KINDS[plan.kind], LANGUAGES[language], way, first, second, PHRASES[plan.asked])


def _answer(plan: Plan, language: int, box: Sequence[float]) -> str:
    if plan.kind in (COMPARE, LARGER):
        return name_of(plan.subject if plan.truth else plan.other, language)
    plain = {COUNT: str(plan.count), RELATION: RELATIONS[plan.relation], LOCATE: " ".join(f"{x:.2f}" for x in box)}
    return plain.get(plan.kind) or answers.yes_or_no(plan.truth, LANGUAGES[language])


def name_of(thing: int, language: int) -> str:
    """What one of `things()` is called."""
    return catalogue()[things()[thing]].captions[language]


@functools.cache
def labels_of_things() -> dict[str, np.ndarray]:
    """The labels of `EmojiPairs` for each of `things()`."""
    found = {name: np.full(len(things()), -1, np.int32) for name in LABELS}
    number = {place: thing for thing, place in enumerate(things())}
    for split in (splits.TRAIN, splits.CONCEPTS):
        pairs = EmojiPairs(split, splits.TRAIN_STYLES[:1], ("en",))
        for row, place in enumerate(pairs.column("code").tolist()):
            if place in number:
                for name in LABELS:
                    found[name][number[place]] = pairs.column(name)[row]
    return found


def label_names() -> dict[str, tuple[str, ...]]:
    """What the integer labels of scenes mean."""
    called = tuple(name_of(thing, 0) for thing in range(len(things())))
    known = EmojiPairs().names()
    return {name: known[name] for name in (*LABELS, "style", "language")} | {"thing": called, "things": called}
