"""Beams, given answers and speculation agree with what plain decoding and plain scoring say."""

import itertools

import jax
import numpy as np
import pytest

from mmjax.core.errors import UserError
from mmjax.decoding.beam import beam
from mmjax.decoding.generate import generate
from mmjax.decoding.scoring import choose, score
from mmjax.decoding.speculative import speculate
from tests.decoding.conftest import MODELS, PROMPTS, VOCAB, ended, parameters
from tests.rows import rows_of


def told(model, params, continuations, prefix=2):
    """Sum of log-probabilities of each continuation of each prompt [B C], by the loss of the model."""
    rows = [[*prompt, *ids] for prompt, its in zip(PROMPTS, continuations, strict=True) for ids in its]
    batch = rows_of(rows, prefix, length=24)
    starts = np.repeat([len(prompt) for prompt in PROMPTS], [len(its) for its in continuations])
    loss = (batch.text.segment > 0) & (batch.text.position >= starts[:, None])
    text = type(batch.text)(**{**vars(batch.text), "loss": loss.astype(np.float32)})
    return np.asarray(score(model, params, batch.replace(text=text))).reshape(len(PROMPTS), -1)


def test_one_beam_is_greedy(plain):
    model, params = plain
    rows = rows_of([*PROMPTS, []])
    free = generate(model, params, rows, steps=6)
    end = (int(free.ids[0, 2]), int(free.ids[2, 4]))
    for ends, penalty in (((), 0.0), (end, 1.0)):
        greedy = generate(model, params, rows, steps=6, end=ends)
        found = beam(model, params, rows, 1, 6, end=ends, penalty=penalty).best()
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, greedy)


def test_beams_as_many_as_ids_find_the_best_pairs_of_all(plain):
    model, params = plain
    texts = list(itertools.product(range(VOCAB), repeat=2))
    sums = told(model, params, [texts] * 3)
    found = beam(model, params, rows_of(PROMPTS), VOCAB, 2)
    np.testing.assert_allclose(found.score, np.sort(sums, axis=1)[:, ::-1][:, :VOCAB], atol=1e-4)
    for row in range(3):
        np.testing.assert_array_equal(found.ids[row, :3], np.array(texts)[np.argsort(-sums[row])[:3]])


def test_scores_of_beams_are_those_of_their_texts(model, params):
    free = generate(model, params, rows_of(PROMPTS), steps=6)
    end, alpha = int(free.ids[0, 3]), 0.8
    found = beam(model, params, rows_of(PROMPTS), 4, 6, end=(end,), penalty=alpha)
    ids = [[[int(i) for i in one if i >= 0] for one in row] for row in found.ids]
    sums, lengths = told(model, params, ids), np.array([[len(one) for one in row] for row in ids])
    np.testing.assert_allclose(found.score, sums / ((5 + lengths) / 6) ** alpha, atol=1e-4)
    np.testing.assert_allclose(np.sum(found.log_probs, -1), sums, atol=1e-4)
    assert np.all(np.diff(found.score, axis=1) <= 1e-6)
    for row in ids:
        assert len(set(map(tuple, row))) == 4 and all(one.index(end) == len(one) - 1 for one in row if end in one)


def test_choices_have_the_log_probability_that_the_loss_gives(model, params):
    choices = [[[1, 2, 3], [4]], [[7, 7], [8, 1, 2, 3, 4]], [[5], [6]]]
    found = choose(model, params, rows_of(PROMPTS), choices)
    np.testing.assert_allclose(found.log_prob, told(model, params, choices), atol=1e-4)
    np.testing.assert_array_equal(found.best, np.argmax(found.log_prob, axis=1))
    each_id = choose(model, params, rows_of(PROMPTS), choices, per_length=1.0)
    lengths = [[len(one) for one in row] for row in choices]
    np.testing.assert_array_equal(each_id.best, np.argmax(found.log_prob / np.array(lengths), axis=1))


def test_rows_may_have_different_numbers_of_choices(model, params):
    found = choose(model, params, rows_of(PROMPTS), [[[1]], [[2], [3, 4, 5, 6, 7]], [[1], [2]]])
    np.testing.assert_array_equal(np.isinf(found.log_prob), [[0, 1], [0, 0], [0, 0]])
    assert found.best[0] == 0
    with pytest.raises(UserError, match=r"row 1 has lengths \[2, 0\]"):
        choose(model, params, rows_of(PROMPTS), [[[1]], [[1, 2], []], [[1]]])
    with pytest.raises(UserError, match="there are 3 rows, but choices for 1"):
        choose(model, params, rows_of(PROMPTS), [[[1]]])


def test_speculation_says_what_greedy_says(each):
    model, params = each
    draft = MODELS["grouped"]
    draft_params = parameters(draft, rows_of(PROMPTS), seed=9)
    rows = rows_of([*PROMPTS, []])
    free = generate(model, params, rows, steps=9)
    end = (int(free.ids[0, 4]), int(free.ids[1, 6]))
    found = speculate(model, params, draft, draft_params, rows, 9, guesses=3, end=end).generated
    said = ended(free.ids, end)
    np.testing.assert_array_equal(found.ids, said)
    np.testing.assert_array_equal(found.lengths, (said >= 0).sum(1))
    np.testing.assert_allclose(found.log_probs, np.where(said >= 0, free.log_probs, 0), atol=1e-5)


def test_speculation_has_the_room_that_greedy_has():
    """As many steps as positions are left after the longest prompt, whatever its bucket is."""
    model = MODELS["learned"]
    params = jax.eval_shape(lambda: parameters(model, rows_of(PROMPTS)))
    made = jax.eval_shape(lambda p: speculate(model, p, model, p, rows_of(PROMPTS), 53), params)
    assert made.generated.ids.shape == (3, 53)
    with pytest.raises(UserError, match="room for 53 steps, not 54"):
        speculate(model, None, model, None, rows_of(PROMPTS), 54)


def test_a_draft_that_is_always_right_saves_its_rounds(plain):
    model, params = plain
    rows = rows_of([*PROMPTS, []])
    found = speculate(model, params, model, params, rows, 9, guesses=3)
    np.testing.assert_array_equal(found.generated.ids, generate(model, params, rows, steps=9).ids)
    assert found.rounds == 2  # one id from the prompt, then 4 of each round
