"""Decoding says what the model says, whoever else is in the batch and however it is laid out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core.batch import Batch
from mmjax.core.errors import UserError
from mmjax.decoding import generate as module
from mmjax.decoding.generate import generate, stream
from mmjax.decoding.samplers import Sampling
from mmjax.decoding.state import advance, asked, start
from mmjax.nn import cache
from tests.decoding.conftest import MODELS, PROMPTS, VOCAB, ended, parameters, scores
from tests.rows import rows_of


def logits_of(model, params, rows):
    """What the model says after each place of right-padded rows, without any cache."""
    return scores(model, params, rows_of(rows, length=24))


@pytest.mark.parametrize("laid", [False, True])
def test_cached_logits_are_the_uncached_ones(each, laid, monkeypatch):
    monkeypatch.setattr(cache, "LARGE", 1)
    model, params = each
    later = np.array([[13, 2, 27, 19, 6, 6, 1, 30], [1, 4, 9, 16, 25, 5, 18, 2], [0, 1, 2, 3, 4, 5, 6, 7]])
    batch = asked(model, rows_of(PROMPTS), 8)
    logits, state = jax.jit(lambda p: start(model, p, batch, room=8, slack=2, abreast=int(laid)))(params)
    assert bool(jax.tree.leaves(state.laid)) == laid
    step = jax.jit(lambda p, state, ids: advance(model, p, state, ids))
    seen = [logits[:, None]]
    for part in (later[:, :1], later[:, 1:2], later[:, 2:4], later[:, 4:5], later[:, 5:7], later[:, 7:]):
        logits, state = step(params, state, part)
        seen.append(logits)
    seen = np.concatenate(seen, axis=1)
    whole = logits_of(model, params, [[*prompt, *ids] for prompt, ids in zip(PROMPTS, later, strict=True)])
    for row, prompt in enumerate(PROMPTS):
        np.testing.assert_allclose(seen[row], whole[row, len(prompt) - 1 : len(prompt) + 8], atol=1e-5)


def test_going_back_is_as_if_it_had_not_been(each):
    model, params = each
    batch = asked(model, rows_of(PROMPTS), 8)
    _, state = jax.jit(lambda p: start(model, p, batch, room=8, slack=2))(params)
    step = jax.jit(lambda p, state, ids: advance(model, p, state, ids))
    ids = jnp.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]])
    plain = step(params, step(params, state, ids)[1], ids[:, ::-1])[0]
    _, wrong = step(params, step(params, state, ids)[1], 20 + ids)
    np.testing.assert_allclose(step(params, wrong.back(jnp.array(3)), ids[:, ::-1])[0], plain, atol=1e-5)


def test_greedy_ids_are_the_argmax_of_the_whole_row(each):
    model, params = each
    made = generate(model, params, rows_of(PROMPTS), steps=6)
    whole = logits_of(model, params, [[*prompt, *map(int, ids)] for prompt, ids in zip(PROMPTS, made.ids, strict=True)])
    for row, prompt in enumerate(PROMPTS):
        said = whole[row, len(prompt) - 1 : len(prompt) + 5]
        np.testing.assert_array_equal(made.ids[row], said.argmax(-1))
        np.testing.assert_allclose(made.log_probs[row], jax.nn.log_softmax(said).max(-1), atol=1e-5)
    np.testing.assert_array_equal(made.lengths, 6)


def test_rows_depend_neither_on_each_other_nor_on_padding(model, params):
    keys, sampler = jax.random.split(jax.random.key(5), 3), Sampling(temperature=1.5)
    together = generate(model, params, rows_of(PROMPTS), sampler, 6, rng=keys)
    padded = generate(model, params, rows_of(PROMPTS, length=40), sampler, 6, rng=keys)
    np.testing.assert_array_equal(padded.ids, together.ids)
    for row, prompt in enumerate(PROMPTS):
        alone = generate(model, params, rows_of([prompt]), sampler, 6, rng=keys[row : row + 1])
        np.testing.assert_array_equal(alone.ids[0], together.ids[row])
        np.testing.assert_allclose(alone.log_probs[0], together.log_probs[row], atol=1e-5)


def test_rows_stop_at_their_end_and_null_rows_say_nothing(plain):
    model, params = plain
    free = generate(model, params, rows_of(PROMPTS), steps=6)
    end = int(free.ids[1, 3])
    made = generate(model, params, rows_of([*PROMPTS, []]), steps=6, end=(end,))
    np.testing.assert_array_equal(made.ids[:3], ended(free.ids, end))
    np.testing.assert_array_equal(made.lengths, (made.ids >= 0).sum(1))
    assert made.lengths[1] <= 4 and made.lengths[3] == 0
    assert np.all(np.isfinite(made.log_probs)) and not np.any(made.log_probs[made.ids < 0])


def test_a_stream_yields_the_ids_of_generate(plain):
    model, params = plain
    free = generate(model, params, rows_of(PROMPTS), steps=6)
    end = tuple({int(x) for x in free.ids[:, 3]})
    whole = ended(free.ids, end)
    parts = list(stream(model, params, rows_of(PROMPTS), steps=6, end=end))
    assert len(parts) == (whole >= 0).sum(1).max()
    np.testing.assert_array_equal(np.stack(parts, 1), whole[:, : len(parts)])


def test_one_compilation_serves_a_bucket(plain):
    model, params = plain
    before = module._generate.compiled
    for lengths in ((3, 9), (12, 16), (1, 1)):
        generate(model, params, rows_of([[1] * n for n in lengths]), steps=2)
    assert module._generate.compiled == before + 1
    generate(model, params, rows_of([[1] * 17, [1]]), steps=2)
    assert module._generate.compiled == before + 2


def test_draws_repeat_by_seed_and_differ_by_row(plain):
    model, params = plain
    same = rows_of([PROMPTS[0]] * 3)
    one, two = (generate(model, params, same, Sampling(1.5), 6, rng=4).ids for _ in range(2))
    np.testing.assert_array_equal(one, two)
    assert len(np.unique(one, axis=0)) == 3
    assert not np.array_equal(one, generate(model, params, same, Sampling(1.5), 6, rng=5).ids)


def test_half_precision_parameters_decode_as_their_own_values_in_full(plain):
    model, params = plain
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    full = jax.tree.map(lambda x: x.astype(jnp.float32), half)
    one, two = (generate(model, p, rows_of(PROMPTS), steps=6) for p in (half, full))
    np.testing.assert_array_equal(one.ids, two.ids)
    np.testing.assert_allclose(one.log_probs, two.log_probs, atol=1e-5)


def test_what_cannot_be_decoded_is_refused(model, params):
    packed = Batch.fake(Batch.spec(4, samples=3, text=12), 0, VOCAB)
    with pytest.raises(UserError, match="one sample per row; a row here has 3"):
        generate(model, params, packed)
    with pytest.raises(UserError, match="continues a row of text; the batch has none"):
        generate(model, params, Batch.fake(Batch.spec(2, image=(1, 8, 8)), 0))
    with pytest.raises(UserError, match="at least one step; got 0"):
        generate(model, params, rows_of(PROMPTS), steps=0)


def test_a_learned_table_of_positions_is_not_overrun():
    model = MODELS["learned"]
    params = parameters(model, rows_of(PROMPTS))
    with pytest.raises(UserError, match="64 positions; the longest prompt takes 11 .* room for 53 steps, not 54"):
        generate(model, params, rows_of(PROMPTS), steps=54)
