"""Several questions about one emoji picture, as a source.   n dialogues   K questions of each"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data_pipelines.cache import fingerprint_of
from data_pipelines.emoji.questions import KINDS, EmojiQuestions
from data_pipelines.randomness import fold, mix
from mmjax.core.errors import UserError, unknown_name


@dataclasses.dataclass(frozen=True)
class EmojiDialogues:
    """Each question of `questions`, and with it others about the same picture: of a kind drawn among those that the
    picture is asked, in one of its languages. first: kinds that a dialogue may begin with; () = all.

    A record is that of `EmojiQuestions`, but `question` and `answer` are tuples of up to `turns` texts; labels are
    those of the first question. What comes with it depends on the first question alone.
    """

    questions: EmojiQuestions
    turns: int = 3
    first: tuple[str, ...] = ()

    def __post_init__(self):
        for kind in self.first:
            if kind not in (self.questions.kinds or KINDS):
                raise UserError(unknown_name("kind of these questions", kind, self.questions.kinds or KINDS))
        if not 1 <= self.turns <= 16:
            raise UserError(f"turns must lie in 1..16; got {self.turns}")

    def __len__(self) -> int:
        return len(self._begins)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return {name: column[0] for name, column in self.gather(np.array([index])).items()}

    def gather(self, indices: np.ndarray) -> Mapping[str, Sequence[Any]]:
        """See `data_pipelines.protocols.Gathers`."""
        begins = self._begins[indices]
        asked = [list(dict.fromkeys(row)) for row in self._asked(begins).tolist()]
        questions, answers = self.questions.said(np.array([index for row in asked for index in row]))
        ends = np.cumsum([0, *map(len, asked)]).tolist()
        spans = list(itertools.pairwise(ends))
        columns = dict(self.questions.gather(begins))
        columns["question"] = [tuple(questions[a:b]) for a, b in spans]
        return columns | {"answer": [tuple(answers[a:b]) for a, b in spans]}

    def column(self, name: str) -> np.ndarray:
        """[len] a label of every first question, without drawing a picture."""
        return self.questions.column(name)[self._begins]

    def texts(self, field: str = "question") -> list[str]:
        """See `EmojiQuestions.texts`."""
        return self.questions.texts(field)

    def fingerprint(self) -> Mapping[str, str]:
        """See `data_pipelines.protocols.Source`."""
        return {**self.questions.fingerprint(), "emoji dialogues": fingerprint_of([self.turns, self.first])}

    def names(self) -> Mapping[str, tuple[str, ...]]:
        """See `data_pipelines.protocols.Source`."""
        return self.questions.names()

    def card(self) -> Mapping[str, Any]:
        """What reports say of this data."""
        return self.questions.card()

    def locate(self, index: int) -> str:
        """See `data_pipelines.protocols.Locates`."""
        return self.questions.locate(int(self._begins[index]))

    @functools.cached_property
    def _begins(self) -> np.ndarray:
        """[n] questions that begin a dialogue."""
        kinds = [KINDS.index(kind) for kind in self.first or KINDS]
        return np.flatnonzero(np.isin(self.questions.column("kind"), kinds))

    def _asked(self, begins: np.ndarray) -> np.ndarray:
        """[n K] questions: the given one, then some about its picture, drawn with replacement."""
        order, (group, groups), (first, count) = self._by_picture
        chance = mix(fold(begins[:, None], np.arange(1, self.turns)))
        kind = group[begins][:, None] + _drawn(chance, groups[begins][:, None])
        place = first[kind] + _drawn(mix(chance), count[kind])
        return np.concatenate([begins[:, None], order[place]], axis=1)

    @functools.cached_property
    def _by_picture(self) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
        """Questions in groups of one picture and kind: [Q] their order; of each question, the first group of its
        picture and how many; of each group, where it begins in the order and its size."""
        picture, kind = self.questions.shown.astype(np.int64), self.questions.column("kind")
        order = np.lexsort((kind, picture))
        _, first, count = np.unique((picture * len(KINDS) + kind)[order], return_index=True, return_counts=True)
        _, group, groups = np.unique(picture[order][first], return_index=True, return_counts=True)
        place = np.searchsorted(np.unique(picture), picture)
        return order, (group[place], groups[place]), (first, count)


def _drawn(chance: np.ndarray, count: np.ndarray) -> np.ndarray:
    return (chance % count.astype(np.uint64)).astype(np.int64)
