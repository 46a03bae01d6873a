"""Constraints hold for every row, and a constraint that allows one thing says just that."""

import itertools
import random
import re

import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core.errors import UserError
from mmjax.decoding import patterns
from mmjax.decoding.beam import beam
from mmjax.decoding.constraints import Each, Repetition, TokenSet, one_of
from mmjax.decoding.generate import generate
from mmjax.decoding.patterns import derive, matching, nullable, parse
from mmjax.decoding.samplers import Sampling
from tests.decoding.conftest import PROMPTS, VOCAB
from tests.rows import rows_of

END = 30
WORDS = [None, *"0123456789abcdex.-+", "12", "00", "ab", "abc", "e-", "e5", "1.", ".5", "xx", "-", None]
DRAW = Sampling(temperature=4.0)


def text_of(row):
    ids = [int(i) for i in row if i >= 0]
    assert ids[-1] == END and END not in ids[:-1]
    return "".join(WORDS[i] for i in ids[:-1])


def test_only_and_without(plain):
    model, params = plain
    only = generate(model, params, rows_of(PROMPTS), DRAW, 12, constraint=TokenSet.only((3, 4, 5), VOCAB))
    assert set(np.asarray(only.ids).ravel()) == {3, 4, 5}
    not_these = TokenSet.without(range(20), VOCAB)
    assert np.min(generate(model, params, rows_of(PROMPTS), DRAW, 12, constraint=not_these).ids) >= 20
    with pytest.raises(UserError, match="ids 0 to 30; got 31"):
        TokenSet.only([31], VOCAB)


def test_rows_match_the_expression(plain):
    model, params = plain
    pattern = r"-?\d+(\.\d+)?(e-?\d)?"
    constraint = matching(pattern, WORDS, END)
    made = generate(model, params, rows_of(PROMPTS * 4), DRAW, 60, end=(END,), constraint=constraint)
    texts = [text_of(row) for row in made.ids if END in row]
    assert len(texts) > 6
    assert [text for text in texts if not re.fullmatch(pattern, text)] == []
    assert np.all(np.isfinite(made.log_probs))


@pytest.mark.parametrize("pattern", [r"(abc|ab)+x?", r"[^a-e]{2,3}", r"(0|12)*1\.5"])
def test_whatever_is_allowed_leads_to_a_match(pattern):
    table, draw = np.asarray(matching(pattern, WORDS, END).table), random.Random(0)
    for _ in range(200):
        state, said = 0, []
        while END not in said:
            said.append(draw.choice(np.flatnonzero(table[state] >= 0)))
            state = table[state, said[-1]]
        assert re.fullmatch(pattern, text_of(said))


def test_rows_say_one_of_the_choices(plain):
    model, params = plain
    choices = [(3, 4, 5), (3, 4), (9,)]
    constraint = one_of(choices, VOCAB, END)
    made = generate(model, params, rows_of(PROMPTS * 4), DRAW, 6, end=(END,), constraint=constraint, rng=3)
    said = {tuple(int(i) for i in row if i >= 0) for row in made.ids}
    assert said <= {(*choice, END) for choice in choices} and len(said) > 1
    found = beam(model, params, rows_of(PROMPTS), 3, 6, end=(END,), constraint=constraint)
    for row in range(3):
        assert {tuple(int(i) for i in ids if i >= 0) for ids in found.ids[row]} == {(*c, END) for c in choices}


def test_repetition_is_the_published_division_and_counts_the_prompt():
    ids, valid = jnp.array([[1, 2, 2, 0], [3, 0, 0, 0]]), jnp.array([[1, 1, 1, 0], [1, 0, 0, 0]], bool)
    logits = jnp.array([[2.0, -2.0, 2.0, -1.0], [4.0, 4.0, 4.0, -4.0]])
    constraint = Repetition(vocab=4, penalty=2.0)
    memo = constraint.begin(ids, valid)
    np.testing.assert_allclose(constraint.bend(logits, memo), [[2, -4, 1, -1], [4, 4, 4, -8]])
    memo = constraint.follow(memo, jnp.array([0, 1]))
    np.testing.assert_allclose(constraint.bend(logits, memo), [[1, -4, 1, -1], [4, 2, 4, -8]])


def test_an_endless_penalty_never_says_anything_twice(plain):
    model, params = plain
    both = Each((Repetition(vocab=VOCAB, penalty=1e6), TokenSet.without([0], VOCAB)))
    made = generate(model, params, rows_of(PROMPTS), steps=10, constraint=both)
    for prompt, ids in zip(PROMPTS, made.ids, strict=True):
        whole = [*set(prompt), *map(int, ids)]
        assert len(whole) == len(set(whole)) and 0 not in ids


PATTERNS = [
    r"a*b|c{2,3}", r"(yes|no)!?", r"\d{1,3}(\.\d+)?", r"[^ab]+x", r"[a-c\d-]*", r"(a|ab)(c|bcd)*", r".?.?\w", r"x{0}",
    r"a{,2}b", r"[]a]+", r"\[\x61\]", r"(?:ab)+?c", r"[\Dx]b", r"[^\D]", r"a{x", r"", r"a|",
]  # fmt: skip


@pytest.mark.parametrize("pattern", PATTERNS)
def test_expressions_mean_what_re_means(pattern):
    draw = random.Random(0)
    texts = {"".join(draw.choices("abcdx01.-[] \n!]{", k=draw.randrange(6))) for _ in range(1500)}
    texts |= {"".join(t) for n in range(4) for t in itertools.product("abc1", repeat=n)} | {"yes", "no!", "a{x"}
    for text in texts:
        node = parse(pattern)
        for char in text:
            node = derive(node, char)
        assert nullable(node) == (re.fullmatch(pattern, text) is not None), text


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("^a", "an anchor"),
        ("(?=a)b", "more than a group"),
        (r"a\b", r"has \\b at 2"),
        ("a++", "possessive"),
        ("(", "is wrong: missing"),
        ("q+", "no text of this vocabulary matches"),
        ("((a{5}){5})x", "more than 20 states"),
    ],
)
def test_expressions_that_are_not_understood_are_refused(pattern, message, monkeypatch):
    monkeypatch.setattr(patterns, "STATES", 20)
    with pytest.raises(UserError, match=message):
        matching(pattern, WORDS, END)
