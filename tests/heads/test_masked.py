"""Masking of ids: exact counts per sample, the right shares, the right ids judged."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core.batch import Batch, Text
from mmjax.core.errors import UserError
from mmjax.heads.masked import MaskedLanguage, Masking, MaskText
from mmjax.objectives.masked import MaskedLanguage as Objective
from tests.drawn import applied, drawn

VOCAB, MASK, CLASS, WIDTH = 200, 199, 198, 8


def text_of(lengths, places):
    """Packed samples, each beginning with a class token and then a picture's place."""
    rows = []
    for row, sizes in enumerate(lengths):
        rng = np.random.default_rng(row)
        padding = places - sum(sizes)
        segment = np.repeat([*range(1, len(sizes) + 1), 0], [*sizes, padding])
        position = np.concatenate([np.arange(n) for n in (*sizes, padding)])
        slot = np.where((position == 1) & (segment > 0), 0, -1)
        ids = np.where(position == 0, CLASS, rng.integers(0, CLASS, places))
        rows.append(Text(ids, slot, segment, position * 0, position, np.zeros(places, np.float32)))
    return jax.tree.map(lambda *x: np.stack(x), *rows)


@pytest.mark.parametrize("rate", [0.15, 0.5])
def test_every_sample_loses_its_own_share_of_ids_and_at_least_one(rate):
    lengths, masking = ((42, 22, 4), (62, 5, 3)), Masking(MASK, VOCAB, rate, special=(CLASS,))
    text = text_of(lengths, 72)
    masked = jax.jit(masking)(jax.random.key(0), text)
    for row, sizes in enumerate(lengths):
        for number, size in enumerate(sizes, 1):
            chosen = masked.chosen[row] & (text.segment[row] == number)
            assert chosen.sum() == max(1, round(rate * (size - 2))), "of its own ids, without class token and picture"
    assert not np.any(masked.chosen & ((text.segment == 0) | (text.slot >= 0) | (text.ids == CLASS)))
    np.testing.assert_array_equal(masked.text.ids[~masked.chosen], text.ids[~masked.chosen])
    assert masked.chosen.sum(1).max() <= masking.most(72, samples=3)


def test_of_the_chosen_80_10_and_10_percent_are_hidden_replaced_and_kept():
    text = text_of(((500,),) * 80, 500)
    masked = jax.jit(Masking(MASK, VOCAB, rate=0.5))(jax.random.key(1), text)
    ids, was = np.asarray(masked.text.ids)[masked.chosen], text.ids[masked.chosen]
    shares = np.mean(ids == MASK), np.mean((ids != MASK) & (ids != was)), np.mean(ids == was)
    np.testing.assert_allclose(shares, (0.8 + 0.1 / VOCAB, 0.1 - 0.2 / VOCAB, 0.1 + 0.1 / VOCAB), atol=0.01)
    assert len(np.unique(ids)) > 190, "any id may stand in"


def test_each_step_hides_other_ids_and_evaluation_always_the_same():
    text = text_of(((30, 12),), 48)
    module = MaskText(Masking(MASK, VOCAB))

    def chosen(train):
        run = jax.jit(lambda key: module.apply({}, text, train=train, rngs={"dropout": key}).chosen)
        return [run(jax.random.key(seed)) for seed in (0, 1)]

    assert np.any(np.not_equal(*chosen(train=True)))
    np.testing.assert_array_equal(*chosen(train=False))


def test_only_hidden_ids_are_judged_wherever_room_for_them_is_made():
    """With all T places and with just enough room the loss is the same, and that of the formula."""
    text, rng = text_of(((22, 14), (30, 5)), 36), np.random.default_rng(0)
    masking = Masking(MASK, VOCAB, special=(CLASS,))
    chosen = jax.jit(masking)(jax.random.key(0), text).chosen
    x, table = rng.normal(size=(2, 36, WIDTH)).astype(np.float32), rng.normal(size=(VOCAB, WIDTH)).astype(np.float32)
    batch = Batch.fake(Batch.spec(2, text=36, samples=2)).replace(text=text)
    losses = []
    for most in (None, masking.most(36, samples=2)):
        head = MaskedLanguage(VOCAB, most)
        params = drawn(head, x, text, chosen, table)
        out = applied(head)(params, x, text, chosen, table)
        means = Objective()(out, batch)
        losses.append(float(means["loss"].value))
        assert int(means["loss"].count) == chosen.sum()
    assert out["masked"]["nll"].shape == (2, 7)
    p = params["params"]
    y = jax.nn.gelu(x @ p["map"]["kernel"] + p["map"]["bias"], approximate=False)
    y = (y - y.mean(-1, keepdims=True)) / jnp.sqrt(y.var(-1, keepdims=True) + 1e-6)
    y = y * p["norm"]["scale"] + p["norm"]["bias"]
    score = jax.nn.log_softmax(y @ table.T + p["bias"])
    expected = -jnp.take_along_axis(score, text.ids[..., None], axis=-1)[..., 0][chosen].mean()
    np.testing.assert_allclose(losses, expected, rtol=1e-4)


def test_rows_without_ids_lose_none():
    text = dataclasses.replace(text_of(((3,),), 6), segment=np.zeros((1, 6), int))
    assert not jax.jit(Masking(MASK, VOCAB))(jax.random.key(0), text).chosen.any()


def test_shares_that_are_none_are_refused():
    with pytest.raises(UserError, match="rate=1.5 must lie between 0 and 1"):
        Masking(MASK, VOCAB, rate=1.5)
    with pytest.raises(UserError, match="mask=0.8 and random=0.3 must be shares"):
        Masking(MASK, VOCAB, random=0.3)
