"""Regular expressions over a vocabulary: which ids may come next so that the text can still match.

The expression becomes an automaton over characters by its derivatives (Brzozowski 1964; Owens et al. 2009), and that
one over ids by walking each token's text through it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from mmjax.core.errors import UserError
from mmjax.decoding.constraints import Automaton

STATES = 2000  # of one expression; more is a mistake (nested counts) rather than a wish


@dataclasses.dataclass(frozen=True)
class Chars:
    """One character: one of `those`, or any other when `but`."""

    those: frozenset[str]
    but: bool = False


@dataclasses.dataclass(frozen=True)
class Then:
    """All parts in turn; none: the empty text."""

    parts: tuple[Node, ...] = ()


@dataclasses.dataclass(frozen=True)
class Or:
    """Any of the parts; none: nothing matches."""

    parts: frozenset[Node] = frozenset()


@dataclasses.dataclass(frozen=True)
class Star:
    """Any number of times."""

    part: Node


Node = Chars | Then | Or | Star
EMPTY, NOTHING = Then(), Or()
DIGITS = frozenset("0123456789")
WORD = DIGITS | frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_")
SPACE = frozenset(" \t\n\r\f\v")
CLASSES = {"d": Chars(DIGITS), "w": Chars(WORD), "s": Chars(SPACE)} | {
    "D": Chars(DIGITS, True), "W": Chars(WORD, True), "S": Chars(SPACE, True)
}  # fmt: skip
CONTROLS = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v"}


def matching(pattern: str, vocabulary: Sequence[str | None], end: int) -> Automaton:
    """Rows whose text matches the whole `pattern`, then `end`. vocabulary: the text of each id, None for ids that
    stand for none (special ones).

    Understands the syntax of `re` for literals, `.`, classes, escapes \\d \\w \\s (of ASCII), groups, `|`, `*`, `+`,
    `?` and counts; not look-around, anchors, back references. Raises UserError for those, and when no text of this
    vocabulary matches."""
    step, accepts = _automaton(parse(pattern), sorted(set("".join(text or "" for text in vocabulary))), pattern)
    dead = len(accepts)
    table = np.full((dead + 1, len(vocabulary)), -1, np.int32)
    for token, text in enumerate(vocabulary):
        now = np.arange(dead + 1)
        for char in text or "":
            now = step[char][now]
        table[:, token] = np.where(now == dead, -1, now) if text else -1
    table[dead] = -1  # that state's number now stands for the one after the end
    table[:, end] = np.where([*accepts, True], dead, -1)
    return Automaton(_completable(table, dead, pattern))


def _completable(table: np.ndarray, final: int, pattern: str) -> np.ndarray:
    """The table without ids after which no further ids lead to the end."""
    alive = np.arange(len(table)) == final
    while True:
        reached = ((table >= 0) & alive[table]).any(axis=1)
        if (reached == alive).all():
            break
        alive = reached
    if not alive[0]:
        raise UserError(f"no text of this vocabulary matches the expression {pattern!r}")
    return np.where((table >= 0) & alive[table], table, -1)


def _automaton(node: Node, alphabet: Sequence[str], pattern: str) -> tuple[dict[str, np.ndarray], list[bool]]:
    """For each character the state after it in each state (the last state is the dead one), and which states accept."""
    sets = sorted(set(_sets(node)), key=repr)
    kinds: dict[tuple[bool, ...], list[str]] = {}
    for char in alphabet:
        kinds.setdefault(tuple(_takes(one, char) for one in sets), []).append(char)
    states, steps = {node: 0}, {kind: [] for kind in kinds}
    for state in (order := [node]):  # grows while we walk it
        for kind, chars in kinds.items():
            after = derive(state, chars[0])
            if after != NOTHING and after not in states:
                states[after] = len(states)
                order.append(after)
            steps[kind].append(states.get(after, -1))
        if len(states) > STATES:
            raise UserError(f"the expression {pattern!r} needs more than {STATES} states; make its counts smaller")
    dead = len(states)
    rows = {kind: np.array([dead if s < 0 else s for s in its] + [dead]) for kind, its in steps.items()}
    return {char: rows[kind] for kind, chars in kinds.items() for char in chars}, [nullable(state) for state in order]


def _sets(node: Node) -> Iterator[Chars]:
    if isinstance(node, Chars):
        yield node
    for part in node.parts if isinstance(node, Then | Or) else [node.part] if isinstance(node, Star) else []:
        yield from _sets(part)


def _takes(chars: Chars, char: str) -> bool:
    return (char in chars.those) != chars.but


def nullable(node: Node) -> bool:
    """Whether the empty text matches."""
    match node:
        case Then(parts):
            return all(map(nullable, parts))
        case Or(parts):
            return any(map(nullable, parts))
        case _:
            return isinstance(node, Star)


def derive(node: Node, char: str) -> Node:
    """What must follow `char` for the whole to match."""
    match node:
        case Chars():
            return EMPTY if _takes(node, char) else NOTHING
        case Or(parts):
            return either(derive(part, char) for part in parts)
        case Star(part):
            return chain(derive(part, char), node)
    found = []
    for i, part in enumerate(node.parts):
        found.append(chain(derive(part, char), *node.parts[i + 1 :]))
        if not nullable(part):
            break
    return either(found)


def chain(*nodes: Node) -> Node:
    """Nodes in turn, in one form however they were grouped."""
    parts = [part for node in nodes for part in (node.parts if isinstance(node, Then) else (node,))]
    return NOTHING if NOTHING in parts else parts[0] if len(parts) == 1 else Then(tuple(parts))


def either(nodes: Iterable[Node]) -> Node:
    """Any of the nodes, in one form however they were grouped."""
    parts = {part for node in nodes for part in (node.parts if isinstance(node, Or) else (node,))}
    return parts.pop() if len(parts) == 1 else Or(frozenset(parts))


def parse(pattern: str) -> Node:
    """The expression as a tree. Raises UserError for what is wrong or not understood."""
    try:
        re.compile(pattern)
    except re.error as error:
        raise UserError(f"the expression {pattern!r} is wrong: {error}") from None
    reader = _Reader(pattern)
    return reader.alternatives()


class _Reader:
    """Reads an expression, whose syntax `re` has approved, from left to right."""

    def __init__(self, pattern: str):
        self.pattern, self.at = pattern, 0

    def alternatives(self) -> Node:
        found = [self._sequence()]
        while self._eat("|"):
            found.append(self._sequence())
        return either(found)

    def _sequence(self) -> Node:
        found = []
        while self.at < len(self.pattern) and self._peek() not in "|)":
            found.append(self._repeated(self._atom()))
        return chain(*found)

    def _repeated(self, node: Node) -> Node:
        count = re.compile(r"([*+?])|\{(\d*)(,?)(\d*)\}").match(self.pattern, self.at)
        if count is None or count[0] in ("{}", "{,}"):
            return node
        self.at = count.end()
        if self._eat("+"):
            raise self._refusal("possessive repetition")
        self._eat("?")  # reluctant: another match, the same language
        if count[1]:
            low, high = {"*": (0, None), "+": (1, None), "?": (0, 1)}[count[1]]
        else:
            low = int(count[2] or 0)
            high = (int(count[4]) if count[4] else None) if count[3] else low
        rest = [Star(node)] if high is None else [either([EMPTY, node])] * (high - low)
        return chain(*[node] * low, *rest)

    def _atom(self) -> Node:
        char = self._next()
        if char == "(":
            if self._eat("?") and not self._eat(":"):
                raise self._refusal("a group that is more than a group")
            inner = self.alternatives()
            self._next()
            return inner
        if char in "^$":
            raise self._refusal("an anchor (the whole text is matched anyway)")
        if char == ".":
            return Chars(frozenset("\n"), True)
        return self._class() if char == "[" else self._escape() if char == "\\" else Chars(frozenset(char))

    def _class(self) -> Chars:
        but, found = self._eat("^"), Chars(frozenset())
        while True:
            one = self._escape() if (char := self._next()) == "\\" else Chars(frozenset(char))
            if self._peek() == "-" and self.pattern[self.at + 1] != "]":
                self._next()
                last = self._escape() if (char := self._next()) == "\\" else Chars(frozenset(char))
                (low,), (high,) = one.those, last.those
                one = Chars(frozenset(map(chr, range(ord(low), ord(high) + 1))))
            found = _union(found, one)
            if self._eat("]"):
                return Chars(found.those, found.but != but)

    def _escape(self) -> Chars:
        char = self._next()
        if char in CLASSES:
            return CLASSES[char]
        if char in CONTROLS:
            return Chars(frozenset(CONTROLS[char]))
        if char in "xuU":
            size = {"x": 2, "u": 4, "U": 8}[char]
            self.at += size
            return Chars(frozenset(chr(int(self.pattern[self.at - size : self.at], 16))))
        if char.isalnum():
            raise self._refusal(f"\\{char}")
        return Chars(frozenset(char))

    def _peek(self) -> str:
        return self.pattern[self.at : self.at + 1]

    def _next(self) -> str:
        self.at += 1
        return self.pattern[self.at - 1]

    def _eat(self, char: str) -> bool:
        found = self._peek() == char
        self.at += found
        return found

    def _refusal(self, what: str) -> UserError:
        return UserError(f"the expression {self.pattern!r} has {what} at {self.at - 1}, which is not understood here")


def _union(one: Chars, other: Chars) -> Chars:
    if one.but and other.but:
        return Chars(one.those & other.those, True)
    if one.but or other.but:
        but, plain = (one, other) if one.but else (other, one)
        return Chars(but.those - plain.those, True)
    return Chars(one.those | other.those)
