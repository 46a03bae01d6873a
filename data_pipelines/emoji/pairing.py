"""Who is compared with whom: emoji in pairs that a reader of the question alone cannot tell apart.

Partners are each other's partner. So whatever is asked of one picture is asked of the other in the same words, and its
answer is the other one: over a source, every question of a pair has each answer equally often, exactly.
"""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable, Hashable, Iterable, Sequence

import numpy as np

from data_pipelines.emoji.art import digests
from data_pipelines.emoji.catalogue import Emoji, catalogue
from data_pipelines.randomness import fold, mix


@functools.cache
def twins() -> frozenset[int]:
    """Places in the catalogue of emoji that some style draws exactly like another: no question about them is fair."""
    found: set[int] = set()
    for style in digests():
        for digest in collections.Counter(digest for digest in style.tolist() if digest).items():
            if digest[1] > 1:
                found.update(np.flatnonzero(style == digest[0]).tolist())
    return frozenset(found)


@functools.lru_cache(1 << 18)
def clash(one: int, other: int) -> bool:
    """Whether the name of one emoji might be said of the other (by place in the catalogue).

    They show the same concept (a man and a woman swimming), or in some language a name is part of the other's (cat and
    cat face). Toned ones clash unless they are the same thing in two tones: then the tone is what is asked about."""
    one_, other_ = catalogue()[one], catalogue()[other]
    if one_.meaning.tones or other_.meaning.tones:
        tones = one_.meaning.tone, other_.meaning.tone
        return one_.meaning.form != other_.meaning.form or "mixed" in tones or "none" in tones or tones[0] == tones[1]
    if one_.meaning.concept == other_.meaning.concept:
        return True
    pairs = zip(one_.captions, other_.captions, strict=True)
    return any(a.casefold() in b.casefold() or b.casefold() in a.casefold() for a, b in pairs)


def partners(places: Sequence[int], key: np.ndarray | int) -> np.ndarray:
    """[n] for each emoji (a place in the catalogue) which of the n is its partner; -1 for the few that find none.

    A partner is as near as there is: of the same form in another tone; of the same subgroup; then of the same group."""
    found = np.full(len(places), -1, np.int64)
    order = np.argsort(mix(fold(key, np.asarray(places))), kind="stable").tolist()
    for near in (_form, lambda emoji: emoji.subgroup, lambda emoji: emoji.group):
        _match([item for item in order if found[item] < 0], places, near, found)
    return found


def _form(emoji: Emoji) -> Hashable:
    return emoji.meaning.form


def _match(items: Iterable[int], places: Sequence[int], near: Callable[[Emoji], Hashable], found: np.ndarray) -> None:
    """Greedily, in the order given: each item takes the first of its pool that is free and does not clash."""
    free: dict[Hashable, list[int]] = collections.defaultdict(list)
    for item in items:
        pool = free[near(catalogue()[places[item]])]
        for position, other in enumerate(pool):
            if not clash(min(places[item], places[other]), max(places[item], places[other])):
                found[item], found[other] = other, item
                del pool[position]
                break
        else:
            pool.append(item)
