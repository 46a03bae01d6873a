"""The things that scenes are composed of, which of them go together, and which pairings are held out."""

from __future__ import annotations

import dataclasses
import functools
import zlib

import numpy as np

from data_pipelines.emoji import splits
from data_pipelines.emoji.catalogue import STYLES, Emoji, catalogue, drawings
from data_pipelines.emoji.pairing import twins
from data_pipelines.randomness import fold, mix, named, uniform

GROUPS = ("Animals & Nature", "Food & Drink", "Activities", "Travel & Places", "Objects")
NOT_THINGS = ("time", "sky & weather", "hotel", "lock", "mail", "sound", "book-paper", "office", "place-map",
              "place-geographic", "place-building", "place-religious", "place-other", "other-object")  # fmt: skip
"""Subgroups of scenery, and of things that differ by a detail no small picture shows."""
UNCLEAR = ("dog", "bird", "fish", "bug", "flower", "locomotive", "bus", "automobile", "canoe", "ship", "leaf", "worm",
           "pick", "hammer", "egg", "cow", "money bag", "service dog", "guide dog", "ram", "sports medal", "softball",
           "dvd", "trolleybus", "minibus", "metro", "station", "small airplane",
           "magnifying glass tilted right")  # fmt: skip
"""Names that might be said of another thing here (a poodle is a dog), or whose picture looks like another's."""
RELATIONS = ("left", "right", "above", "below")
OPPOSITE = np.array([1, 0, 3, 2])
COUNTS = (1, 2, 3, 4)  # how many of one thing training asks to count, besides none
PROPERTIES = (*RELATIONS, *(f"count {count}" for count in COUNTS))
HELD_OUT = 0.2  # share of the pairs (thing, property)


@functools.cache
def things() -> tuple[int, ...]:
    """Places in the catalogue, by subgroup: drawn in all styles, with a name that is said of no other thing here, in
    any language."""
    kept: list[int] = []
    words: list[list[frozenset[str]]] = []
    eligible = [place for place, emoji in enumerate(catalogue()) if _is_thing(emoji) and place not in twins()]
    for place in sorted(eligible, key=lambda place: (len(catalogue()[place].captions[0]), catalogue()[place].code)):
        mine = [frozenset(caption.casefold().split()) for caption in catalogue()[place].captions]
        if not any(_confused(mine, other) for other in words):
            kept.append(place)
            words.append(mine)
    return tuple(sorted(kept, key=lambda place: (catalogue()[place].subgroup, catalogue()[place].code)))


def _is_thing(emoji: Emoji) -> bool:
    fits = emoji.group in GROUPS and emoji.subgroup not in NOT_THINGS and emoji.captions[0] not in UNCLEAR
    return fits and not emoji.meaning.people and all(emoji.code in drawings(style) for style in STYLES)


def _confused(one: list[frozenset[str]], other: list[frozenset[str]]) -> bool:
    return any(a <= b or b <= a for a, b in zip(one, other, strict=True))


@functools.cache
def held_out() -> np.ndarray:
    """[things PROPERTIES] True where no training question speaks of this thing in this relation or number."""
    codes = np.array([zlib.crc32(catalogue()[place].code.encode()) for place in things()], np.uint64)
    keys = [fold(named(0, f"held out {name}"), codes) for name in PROPERTIES]
    return np.stack([uniform(key) < HELD_OUT for key in keys], axis=1)


@dataclasses.dataclass(frozen=True)
class Pool:
    """The things of one split, as numbers into `things()`.

    members [M]; theme_start, theme_size [M]: where in `members` the things of the same subgroup stand; popular [M]: the
    members, those that turn up most in scenes first."""

    members: np.ndarray
    theme_start: np.ndarray
    theme_size: np.ndarray
    popular: np.ndarray

    def companions(self, of: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """[n k] things seen together with the things `of` [n] under `keys` [n k]: half from the same subgroup, half by
        popularity (rank / M is a uniform number squared). May repeat, and be the thing itself."""
        place = np.searchsorted(self.members, of)[:, None]
        near = self.theme_start[place] + (uniform(fold(keys, 1)) * self.theme_size[place]).astype(np.int64)
        ranks = (uniform(fold(keys, 2)) ** 2 * len(self.members)).astype(np.int64)
        return np.where(uniform(fold(keys, 3)) < 0.5, self.members[near], self.popular[ranks])


@functools.cache
def pool(split: str) -> Pool:
    """What scenes of this split show; splits that hold out pairings show the things of training."""
    own = split in (splits.CONCEPTS, splits.STYLE)
    shown = set(splits.members(split if own else splits.TRAIN))
    members = np.array([number for number, place in enumerate(things()) if place in shown])
    subgroup = np.array([catalogue()[things()[number]].subgroup for number in members])
    _, start, which, size = np.unique(subgroup, return_index=True, return_inverse=True, return_counts=True)
    codes = np.array([zlib.crc32(catalogue()[things()[number]].code.encode()) for number in members], np.uint64)
    return Pool(members, start[which], size[which], members[np.argsort(mix(fold(named(0, "popular"), codes)))])
