"""What is asked of a scene and what the scene must therefore hold: answers are drawn first, scenes are made to fit.

So answers are equally frequent whatever the question names, and a held-out pairing is never asked about by chance.
n scenes, P places
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, UInt64

from data_pipelines.emoji import splits
from data_pipelines.emoji.catalogue import STYLES
from data_pipelines.emoji.inventory import COUNTS, OPPOSITE, PROPERTIES, RELATIONS, held_out, pool
from data_pipelines.emoji.scenes import NOTHING, PLACES, SIDE, Scenes, scattered
from data_pipelines.emoji.sprites import bulky
from data_pipelines.randomness import fold, named, uniform
from mmjax.core.errors import check_names

KINDS = ("exist", "count", "compare", "relation", "beside", "larger", "locate")
EXIST, COUNT, COMPARE, RELATION, BESIDE, LARGER, LOCATE = range(len(KINDS))
MORE = "unseen_counts"
SPLITS = (*splits.SPLITS, MORE)
SIDED = (RELATION, BESIDE)
MANY = (5, 6)  # what `unseen_counts` asks to count
UNEQUAL = np.array([(2, 1), (3, 1), (4, 1), (3, 2), (4, 2), (4, 3)])
FILLERS = 6  # at most so many things besides those that are asked about


class Plan(NamedTuple):
    """One row of `Plans`."""

    kind: int
    subject: int
    other: int
    truth: bool
    relation: int
    asked: int
    count: int


@dataclasses.dataclass(frozen=True)
class Plans:
    """Of n scenes: `subject` and `other` count `inventory.things()`.

    truth: yes (exist, beside), or that the subject is the one (compare, larger). relation: of the subject to the other,
    as it is; `asked`: the one that beside asks about. count: of subjects, where these are to be counted."""

    kind: Int[np.ndarray, " n"]
    subject: Int[np.ndarray, " n"]
    other: Int[np.ndarray, " n"]
    truth: Bool[np.ndarray, " n"]
    relation: Int[np.ndarray, " n"]
    asked: Int[np.ndarray, " n"]
    count: Int[np.ndarray, " n"]

    def rows(self) -> list[Plan]:
        """One by one."""
        columns = (getattr(self, field.name).tolist() for field in dataclasses.fields(self))
        return [Plan(*row) for row in zip(*columns, strict=True)]


def kinds_of(split: str) -> tuple[str, ...]:
    """The kinds of question that a split of scenes has. Raises UserError for a split that is not there."""
    check_names("split", (split,), SPLITS)
    return {splits.COMPOSITIONS: ("count", "relation", "beside"), MORE: ("count",)}.get(split, KINDS)


def counted(split: str) -> tuple[int, ...]:
    """What the answers to questions of a number are."""
    return {splits.COMPOSITIONS: COUNTS, MORE: MANY}.get(split, (0, *COUNTS))


def planned(split: str, kind: Int[np.ndarray, " n"], keys: UInt64[np.ndarray, " n"]) -> Plans:
    """Questions of these kinds, one for each key."""
    truth, asked = uniform(named(keys, "truth")) < 0.5, _one_of(np.arange(len(RELATIONS)), keys, "relation")
    count = _one_of(np.array(counted(split)), keys, "count")
    subject = _one_of(pool(split).members, keys, "subject")
    for (number, about), allowed in _allowed(split).items():
        property_ = count + len(RELATIONS) - 1 if number == COUNT else asked
        rows = np.flatnonzero((kind == number) & (property_ == about))
        subject[rows] = _one_of(allowed, keys[rows], "subject")
    other = _other(split, subject, keys)
    sized = np.flatnonzero(kind == LARGER)
    subject[sized], other[sized] = _bulky_pair(split, keys[sized])
    relation = np.where((kind == BESIDE) & ~truth, OPPOSITE[asked], asked)
    return Plans(kind, subject, other, truth, relation, asked, count)


def composed(split: str, plans: Plans, keys: UInt64[np.ndarray, " n"]) -> Scenes:
    """Scenes in which the answers hold. The subject stands first in `Scenes.thing`, as often as it is there."""
    spread = fold(named(keys, "fillers")[:, None], np.arange(FILLERS))
    companions = pool(split).companions(plans.subject, spread)
    thing = _lined_up(plans, companions, *_numbers(split, plans, keys))
    scenes = scattered(thing, styles(split), keys, _pinned(plans, keys))
    sided = np.flatnonzero(np.isin(plans.kind, SIDED))
    scenes.shift[sided, :2, _is_across(plans.relation[sided]).astype(int)] = 0.5  # in line: below, and not a bit left
    compared = plans.kind == LARGER
    scenes.large[compared, 0], scenes.large[compared, 1] = plans.truth[compared], ~plans.truth[compared]
    return scenes


def styles(split: str) -> tuple[int, ...]:
    """Numbers into STYLES of the artists whose pictures a split shows; one scene is by one artist."""
    return tuple(STYLES.index(name) for name in (("twemoji",) if split == splits.STYLE else splits.TRAIN_STYLES))


@functools.cache
def _allowed(split: str) -> dict[tuple[int, int], np.ndarray]:
    """(kind, property) -> the things it may be asked of. "Not left of" tells "right of": beside holds out both."""
    members = pool(split).members
    held = held_out()[members]
    tells = {(COUNT, about): held[:, about] for about in range(len(RELATIONS), len(PROPERTIES))}
    for about in range(len(RELATIONS)):
        tells[RELATION, about] = held[:, about]
        tells[BESIDE, about] = held[:, about] | held[:, OPPOSITE[about]]
    wanted = split == splits.COMPOSITIONS
    return {} if split == MORE else {asked: members[told == wanted] for asked, told in tells.items()}


def _other(split: str, subject: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """A companion of the subject that is not the subject itself."""
    members = pool(split).members
    found = pool(split).companions(subject, named(keys, "other")[:, None])[:, 0]
    return np.where(found == subject, members[(np.searchsorted(members, subject) + 1) % len(members)], found)


def _bulky_pair(split: str, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two things of which each is larger when drawn larger: no pen, however long, beside a box."""
    members = pool(split).members[bulky()[pool(split).members]]
    first = _one_of(np.arange(len(members)), keys, "subject")
    return members[first], members[(first + _one_of(np.arange(1, len(members)), keys, "other")) % len(members)]


def _numbers(split: str, plans: Plans, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How many subjects, others and fillers. Where something is sought or counted, how many there are in all does not
    depend on the answer."""
    some = _one_of(np.arange(4), keys, "some")
    subjects, others, fillers = np.ones_like(some), np.ones_like(some), some

    exist = plans.kind == EXIST
    subjects = np.where(exist, plans.truth, subjects)
    fillers = np.where(exist, np.maximum(some, 1) + ~plans.truth, fillers)

    count = plans.kind == COUNT
    in_all = _one_of(np.array([7, 8]) if split == MORE else np.array([5, 6, 7]), keys, "in all")
    subjects = np.where(count, plans.count, subjects)
    others = np.where(count, 1 + (some % 2) * (in_all - plans.count > 2), others)
    fillers = np.where(count, in_all - plans.count - others, fillers)

    compare = plans.kind == COMPARE
    more, fewer = _one_of(UNEQUAL, keys, "unequal").T
    subjects = np.where(compare, np.where(plans.truth, more, fewer), subjects)
    others = np.where(compare, np.where(plans.truth, fewer, more), others)
    return subjects, others, np.where(compare, some % 2, fillers)


def _lined_up(plans: Plans, companions: np.ndarray, subjects: np.ndarray, others: np.ndarray, fillers: np.ndarray):
    """[n P] subjects, others, fillers. A filler that is there already is left out."""
    n = len(subjects)
    fitting = companions.copy()
    for place in range(FILLERS):
        before = np.concatenate([plans.subject[:, None], plans.other[:, None], companions[:, :place]], axis=1)
        fitting[(companions[:, place, None] == before).any(1), place] = NOTHING
    place = np.broadcast_to(np.arange(PLACES), (n, PLACES))
    filler = place - (subjects + others)[:, None]
    filled = np.take_along_axis(fitting, np.clip(filler, 0, FILLERS - 1), axis=1)
    rest = np.where(filler < fillers[:, None], filled, NOTHING)
    pair = np.where(place < subjects[:, None], plans.subject[:, None], plans.other[:, None])
    return np.where(filler < 0, pair, rest)


def _pinned(plans: Plans, keys: np.ndarray) -> np.ndarray:
    """[n 2] cells of subject and other where sides are asked about: in one row, or in one column."""
    line, left_out = _one_of(np.arange(SIDE), keys, "line"), _one_of(np.arange(SIDE), keys, "left out")
    near, far = np.where(left_out == 0, 1, 0), np.where(left_out == 2, 1, 2)
    first = np.isin(plans.relation, (RELATIONS.index("left"), RELATIONS.index("above")))
    along = np.stack([np.where(first, near, far), np.where(first, far, near)], axis=1)
    cell = np.where(_is_across(plans.relation)[:, None], line[:, None] * SIDE + along, along * SIDE + line[:, None])
    return np.where(np.isin(plans.kind, SIDED)[:, None], cell, NOTHING)


def _is_across(relation: np.ndarray) -> np.ndarray:
    return np.isin(relation, (RELATIONS.index("left"), RELATIONS.index("right")))


def _one_of(values: np.ndarray, keys: np.ndarray, name: str) -> np.ndarray:
    return values[(uniform(named(keys, name)) * len(values)).astype(np.int64)]
