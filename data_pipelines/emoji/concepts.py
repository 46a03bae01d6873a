"""What an emoji shows, apart from whom: code points -> concept, gender, skin tones.

Splits are made by concept, so everything that shows the same thing must get the same concept: the astronaut, the woman
astronaut and the man astronaut with a dark skin tone are one. Unicode writes some families of one concept with
unrelated code points (santa and Mrs Claus); the tables below bring them together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

JOINER, EMOJI_STYLE, FACING_RIGHT = 0x200D, 0xFE0F, 0x27A1
TONES = {0x1F3FB: "light", 0x1F3FC: "medium-light", 0x1F3FD: "medium", 0x1F3FE: "medium-dark", 0x1F3FF: "dark"}
SIGNS = {0x2640: "woman", 0x2642: "man"}
PEOPLE = {
    0x1F9D1: ("adult", "person"), 0x1F468: ("adult", "man"), 0x1F469: ("adult", "woman"),
    0x1F9D2: ("child", "person"), 0x1F466: ("child", "man"), 0x1F467: ("child", "woman"),
    0x1F9D3: ("elder", "person"), 0x1F474: ("elder", "man"), 0x1F475: ("elder", "woman"),
    0x1FAC5: ("crowned", "person"), 0x1F934: ("crowned", "man"), 0x1F478: ("crowned", "woman"),
    0x1FAC4: ("pregnant", "person"), 0x1FAC3: ("pregnant", "man"), 0x1F930: ("pregnant", "woman"),
    0x1F57A: ("dancing", "man"), 0x1F483: ("dancing", "woman"),
    0x1F385: ("adult-1F384", "man"), 0x1F936: ("adult-1F384", "woman"),
    0x1F46B: ("adult-1F91D-adult", "mixed"), 0x1F46C: ("adult-1F91D-adult", "man"),
    0x1F46D: ("adult-1F91D-adult", "woman"),
}  # fmt: skip
SAME = {"1F48F": "adult-2764-1F48B-adult", "1F491": "adult-2764-adult", "1FAF1-1FAF2": "1F91D", "1F46A": "family"}


@dataclasses.dataclass(frozen=True)
class Meaning:
    """concept: what is shown; facing: "" or "right"; people: gender of each person, in order; tones: as written."""

    concept: str
    facing: str
    people: tuple[str, ...]
    tones: tuple[str, ...]

    @property
    def role(self) -> str:
        """The concept and the way it faces: what a composition has besides gender and tone."""
        return self.concept + self.facing

    @property
    def form(self) -> tuple[str, str, tuple[str, ...]]:
        """The emoji without its skin tones: what has a name of its own in Unicode's list."""
        return self.concept, self.facing, self.people

    @property
    def gender(self) -> str:
        """none, person, man, woman or mixed."""
        return _one_of(self.people)

    @property
    def tone(self) -> str:
        """none, one of the five, or mixed."""
        return _one_of(self.tones)


def meaning(points: Sequence[int]) -> Meaning:
    """Reads a sequence of code points (Unicode TS 51: tone modifiers, ZWJ sequences, sign of gender, direction)."""
    tones = tuple(TONES[point] for point in points if point in TONES)
    concepts, people, facing = [], [], ""
    for part in _split([point for point in points if point not in TONES and point != EMOJI_STYLE]):
        if part[0] in SIGNS and len(part) == 1:
            people.append(SIGNS[part[0]])
        elif part == [FACING_RIGHT] and concepts:
            facing = ">"
        elif part[0] in PEOPLE and len(part) == 1:
            concept, gender = PEOPLE[part[0]]
            concepts.append(concept)
            people.append(gender)
        else:
            concepts.append("_".join(f"{point:X}" for point in part))
    return Meaning(_joined(concepts), facing, tuple(people), tones)


def _split(points: list[int]) -> list[list[int]]:
    parts: list[list[int]] = [[]]
    for point in points:
        if point == JOINER:
            parts.append([])
        else:
            parts[-1].append(point)
    return parts


def _joined(concepts: list[str]) -> str:
    name = "-".join(concepts)
    relatives = set(concepts) <= {"adult", "child"} and len(concepts) > 1
    return "family" if relatives else SAME.get(name, name)


def _one_of(values: tuple[str, ...]) -> str:
    kinds = set(values)
    return "none" if not kinds else kinds.pop() if len(kinds) == 1 else "mixed"
