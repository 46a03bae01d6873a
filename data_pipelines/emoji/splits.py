"""Which emoji is trained on and which is held out, and for which question. A pure function of the installed packages.

unseen_concepts      emoji that training never shows in any tone or style, in their base form (not from Flags)
unseen_compositions  toned emoji of trained concepts: their role, gender and tone all occur in training, never together
                     (people of one tone; the names of two-toned couples differ by the order of their words alone)
unseen_style         trained base forms as Twemoji draws them; training never shows a Twemoji picture

An unseen concept is an emoji with a name of its own, less its skin tones. Training may show its kin: the same thing
done by another gender or facing another way (`kin`). Results are given for both kinds, with kin and without.
"""

from __future__ import annotations

import collections
import functools
import hashlib
from collections.abc import Callable, Hashable, Sequence

from data_pipelines.emoji.art import digests
from data_pipelines.emoji.catalogue import STYLES, Emoji, catalogue, drawings

TRAIN, CONCEPTS, COMPOSITIONS, STYLE = SPLITS = ("train", "unseen_concepts", "unseen_compositions", "unseen_style")
UNUSED = "unused"  # toned forms of unseen concepts, and twins of held-out pictures
KIN = ("without kin", "with kin")
TRAIN_STYLES = STYLES[:2]
SEED = "s0"
CONCEPT_SHARE, COMPOSITION_SHARE = 0.13, 0.25
ROLE_SHARE, TONE_SHARE = 0.41, 0.5  # at most so much of one (role, gender) and of one tone is held out


@functools.cache
def assignment() -> tuple[str, ...]:
    """The split of each emoji of the catalogue: train, unseen_concepts, unseen_compositions or unused."""
    everything = catalogue()
    twins = _twins()
    unseen = _unseen_concepts(everything)
    split = [TRAIN] * len(everything)
    for place, emoji in enumerate(everything):
        if emoji.meaning.form in unseen:
            split[place] = CONCEPTS if not emoji.meaning.tones and _in_all_styles(emoji) else UNUSED
    toned = [place for place, emoji in enumerate(everything) if emoji.meaning.tones and split[place] == TRAIN]
    for place in _unseen_compositions(everything, toned, {place for group in twins for place in group}):
        split[place] = COMPOSITIONS
    for group in twins:
        if any(split[place] != TRAIN for place in group):
            for place in group:
                split[place] = UNUSED if split[place] == TRAIN else split[place]
    return tuple(split)


def members(split: str) -> tuple[int, ...]:
    """Places in the catalogue of the emoji of a split."""
    if split == STYLE:
        return tuple(place for place in members(TRAIN) if not catalogue()[place].meaning.tones)
    return tuple(place for place, name in enumerate(assignment()) if name == split)


def kin() -> tuple[str, ...]:
    """For each emoji of the catalogue, whether training shows its concept at all: one of KIN."""
    everything = catalogue()
    trained = {everything[place].meaning.concept for place in members(TRAIN)}
    return tuple(KIN[emoji.meaning.concept in trained] for emoji in everything)


def _unseen_concepts(everything: Sequence[Emoji]) -> set[Hashable]:
    """The same share of each group's forms. Not of Flags: no one can read the name of a country off its flag."""
    groups: dict[str, dict[Hashable, str]] = collections.defaultdict(dict)
    for emoji in everything:
        if not emoji.meaning.tones:
            groups[emoji.group].setdefault(emoji.meaning.form, emoji.code)
    unseen: set[Hashable] = set()
    for group, forms in groups.items():
        if group != "Flags":
            drawn = _drawn(forms.items(), lambda item: "c" + item[1])
            unseen |= {form for form, _ in drawn[: round(CONCEPT_SHARE * len(forms))]}
    return unseen


def _unseen_compositions(everything: Sequence[Emoji], toned: Sequence[int], twins: set[int]) -> list[int]:
    """Held out one by one while enough of every part stays in training. Emoji that share their picture with another
    are left alone: there would be two right answers."""

    def parts(place: int) -> tuple[Hashable, Hashable]:
        is_ = everything[place].meaning
        return (is_.role, is_.people), is_.tones

    total = collections.Counter(part for place in toned for part in parts(place))
    held: collections.Counter[Hashable] = collections.Counter()
    chosen: list[int] = []
    eligible = [
        place
        for place in toned
        if everything[place].meaning.tone != "mixed" and place not in twins and _in_all_styles(everything[place])
    ]
    for place in _drawn(eligible, lambda place: "t" + everything[place].code):
        role, tones = parts(place)
        if len(chosen) >= COMPOSITION_SHARE * len(toned):
            break
        if held[role] + 1 <= ROLE_SHARE * total[role] and held[tones] + 1 <= TONE_SHARE * total[tones]:
            held.update((role, tones))
            chosen.append(place)
    return chosen


def _in_all_styles(emoji: Emoji) -> bool:
    """Whether every trained style draws it, so that the pools of held-out pictures are as large in each."""
    return all(emoji.code in drawings(style) for style in TRAIN_STYLES)


def _twins() -> list[list[int]]:
    """Groups of emoji that some style draws the same, to the last bit."""
    same = collections.defaultdict(set)
    for style in digests():
        for place, digest in enumerate(style):
            if digest:
                same[digest].add(place)
    return [sorted(group) for group in same.values() if len(group) > 1]


def _drawn(items, key: Callable[..., str]) -> list:
    """In an order that hashing decides: the same on every machine, and stable when items come or go."""
    return sorted(items, key=lambda item: (hashlib.sha256(f"{SEED}|{key(item)}".encode()).hexdigest(), str(item)))
