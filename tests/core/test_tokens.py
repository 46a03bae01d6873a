"""Who sees whom: each attention pattern against a loop written by hand."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.core.batch import MODALITIES
from mmjax.core.errors import UserError
from mmjax.core.tokens import Pattern, Places, Tokens, visible

TEXT, IMAGE, AUDIO = (MODALITIES.index(name) for name in ("text", "image", "audio"))


def places(**rows) -> Places:
    """One row from lists; what is not given is one valid bidirectional text sample."""
    length = len(next(iter(rows.values())))
    default = {"valid": [True] * length, "block": [0] * length, "segment": [1] * length, "modality": [TEXT] * length}
    default["position"] = list(range(length))
    return Places(**{name: jnp.asarray([values]) for name, values in (default | rows).items()})


def seen(places: Places, pattern: Pattern = Pattern()) -> np.ndarray:
    return np.asarray(visible(places, places, pattern))[0]


def by_hand(length: int, rule) -> np.ndarray:
    return np.array([[bool(rule(q, k)) for k in range(length)] for q in range(length)])


def test_bidirectional():
    assert seen(Places.all_of("image", 1, 4)).all()


def test_causal():
    assert np.array_equal(seen(Places.all_of("text", 1, 5).causal()), by_hand(5, lambda q, k: k <= q))


def test_prefix_then_causal():
    prefix = 3  # the prefix sees itself whole and nothing after; the rest sees the prefix and what came before
    row = places(block=[0, 0, 0, 1, 2, 3])
    assert np.array_equal(seen(row), by_hand(6, lambda q, k: k < prefix if q < prefix else k <= q))


def test_block_causal():
    row = places(block=[0, 0, 1, 1, 2, 2])
    assert np.array_equal(seen(row), by_hand(6, lambda q, k: k // 2 <= q // 2))


def test_packed_samples_are_strangers():
    segment = [1, 1, 2, 2, 2, 0]
    row = places(segment=segment, valid=[s > 0 for s in segment], block=[0, 1, 0, 1, 2, 0])
    rule = by_hand(6, lambda q, k: segment[q] == segment[k] > 0 and k <= q)
    assert np.array_equal(seen(row), rule)


def test_invalid_places_see_nobody_and_nobody_sees_them():
    row = places(valid=[True, False, True])
    assert np.array_equal(seen(row), by_hand(3, lambda q, k: q != 1 and k != 1))


@pytest.mark.parametrize("window", [1, 2, 3, 10])
def test_window(window):
    row = places(block=[0] * 6)
    assert np.array_equal(seen(row, Pattern(window=window)), by_hand(6, lambda q, k: abs(q - k) < window))


def test_a_window_counts_positions_not_slots():
    row = places(position=[0, 5, 6, 7])
    assert np.array_equal(seen(row, Pattern(window=3))[0], [True, False, False, False])


def test_a_hidden_modality_is_hidden_one_way():
    kinds = [TEXT, IMAGE, IMAGE, AUDIO]
    row = places(modality=kinds)
    rule = by_hand(4, lambda q, k: not (kinds[q] == TEXT and kinds[k] == IMAGE))
    assert np.array_equal(seen(row, Pattern(hidden=(("text", "image"),))), rule)


five = st.integers(2, 8)


@settings(max_examples=60, deadline=None)
@given(st.data(), five)
def test_any_row_agrees_with_the_definition(data, length):
    def draw(values):
        return data.draw(st.lists(values, min_size=length, max_size=length))

    row = {
        "valid": draw(st.booleans()), "block": draw(st.integers(0, 3)), "segment": draw(st.integers(0, 2)),
        "position": draw(st.integers(0, 6)), "modality": draw(st.integers(0, len(MODALITIES) - 1)),
    }  # fmt: skip
    window = data.draw(st.none() | st.integers(1, 5))
    hidden = data.draw(st.lists(st.tuples(st.sampled_from(MODALITIES), st.sampled_from(MODALITIES)), max_size=3))

    def rule(q, k):
        same = row["valid"][q] and row["valid"][k] and row["segment"][q] == row["segment"][k]
        near = window is None or abs(row["position"][q] - row["position"][k]) < window
        blind = (MODALITIES[row["modality"][q]], MODALITIES[row["modality"][k]]) in hidden
        return same and row["block"][k] <= row["block"][q] and near and not blind

    assert np.array_equal(seen(places(**row), Pattern(window, tuple(hidden))), by_hand(length, rule))


def test_queries_and_keys_may_be_different_rows():
    query, key = Places.all_of("text", 2, 3), Places.all_of("image", 2, 5)
    assert visible(query, key).shape == (2, 3, 5) and bool(visible(query, key).all())
    assert not visible(query, key, Pattern(hidden=(("text", "image"),))).any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Pattern(window=0), "at least 1; got 0"),
        (lambda: Pattern(hidden=(("text", "sound"),)), "no modality is called 'sound'"),
    ],
)
def test_wrong_patterns_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


def tokens(modality: str, length: int, width: int = 4) -> Tokens:
    x = np.random.default_rng(length).normal(size=(2, length, width)).astype(np.float32)
    return Tokens(jnp.asarray(x), Places.all_of(modality, 2, length))


@given(st.lists(st.tuples(st.sampled_from(MODALITIES), st.integers(1, 4)), min_size=1, max_size=4))
@settings(max_examples=25, deadline=None)
def test_split_is_the_inverse_of_concat(parts):
    rows = [tokens(*part) for part in parts]
    back = Tokens.concat(rows).split([length for _, length in parts])
    for before, after in zip(rows, back, strict=True):
        assert np.array_equal(before.x, after.x)
        assert all(np.array_equal(getattr(before.places, n), getattr(after.places, n)) for n in vars(before.places))


def test_joined_tokens_see_each_other():
    row = Tokens.concat([tokens("image", 2), tokens("text", 3)])
    assert row.mask().shape == (2, 5, 5) and bool(row.mask().all())
    assert row.mask(Pattern(hidden=(("image", "text"),)))[0, :2, 2:].sum() == 0


def test_tokens_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match=r"different widths cannot be joined: \[4, 8\]"):
        Tokens.concat([tokens("image", 2, 4), tokens("text", 2, 8)])
    with pytest.raises(UserError, match=r"cannot split 5 tokens into \[2, 2\]"):
        tokens("text", 5).split([2, 2])
