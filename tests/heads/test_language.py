"""Heads over ids: the right id from the right place, packed or not, tied or not, near or further ahead."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core.batch import Batch, Text
from mmjax.core.config import from_json, to_json
from mmjax.core.errors import UserError
from mmjax.heads.language import Language, MultiToken
from mmjax.nn.linear import Linear
from mmjax.objectives.language import Ahead
from mmjax.objectives.language import Language as Objective
from mmjax.ops.crossentropy import Dense, GradientInForward, Recompute
from mmjax.ops.divergence import divergence
from mmjax.ops.vocabulary import Form, Words
from mmjax.training.gradients import loss_and_gradient
from tests.drawn import drawn

VOCAB, ROWS, WIDTH = 37, 40, 8  # three rows of the table are padding
LENGTHS = ((5, 4), (7, 1))  # samples of each row


def text_of(lengths=LENGTHS, places=10, seed=0):
    """Rows of packed samples whose second place is a picture's; the first half of a sample counts nothing."""
    rng, rows = np.random.default_rng(seed), []
    for sizes in lengths:
        segment = np.repeat([*range(1, len(sizes) + 1), 0], [*sizes, places - sum(sizes)])
        position = np.concatenate([np.arange(n) for n in (*sizes, places - sum(sizes))])
        slot = np.where((position == 1) & (segment > 0), 0, -1)
        loss = (position >= 2) * rng.uniform(0.5, 1.5, places) * (segment > 0)
        ids = rng.integers(0, VOCAB, places)
        rows.append(Text(ids, slot, segment, position, position, loss.astype(np.float32)))
    return jax.tree.map(lambda *x: np.stack(x), *rows)


def hidden(shape=(2, 10), seed=1):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(*shape, WIDTH)), jnp.float32)


def outputs(head, params, *inputs, **how):
    """`head.apply` as one program; whole numbers among its inputs are part of it."""
    return jax.jit(lambda params, x: head.apply(params, x, *inputs[1:], **how))(params, inputs[0])


def by_hand(x, text, table, distance=1):
    """-log softmax(table . x[t - distance])[id at t], where both places are of one sample and t is text."""
    nll, hit = np.zeros(text.ids.shape), np.zeros(text.ids.shape, bool)
    for b, t in np.ndindex(text.ids.shape):
        s = t - distance
        if s >= 0 and text.segment[b, t] == text.segment[b, s] > 0 and text.slot[b, t] < 0:
            z = table[:VOCAB] @ x[b, s]
            nll[b, t] = np.log(np.exp(z).sum()) - z[text.ids[b, t]]
            hit[b, t] = z.argmax() == text.ids[b, t]
    return nll, hit


@pytest.mark.parametrize("distance", [1, 3])
def test_each_id_is_predicted_from_the_place_before_it_in_its_own_sample(distance):
    head, x, text = Language(VOCAB, ROWS), hidden(), text_of()
    params = drawn(head, x, text)
    told = outputs(head, params, x, text, None, distance)
    nll, hit = by_hand(np.asarray(x), text, np.asarray(params["params"]["table"]), distance)
    np.testing.assert_allclose(told["nll"], nll, atol=1e-5)
    np.testing.assert_array_equal(told["hit"], hit)
    assert np.all((np.asarray(told["log_z"]) != 0) == (nll != 0))


def test_logits_say_the_same_as_the_loss():
    head, x, text = Language(VOCAB, ROWS, cap=2.0), hidden(), text_of()
    params = drawn(head, x, text)
    logits = outputs(head, params, x, method="logits")
    assert (
        logits.shape == (2, 10, ROWS)
        and np.all(np.isneginf(logits[..., VOCAB:]))
        and np.abs(logits[..., :VOCAB]).max() < 2
    )
    score = jnp.take_along_axis(jax.nn.log_softmax(logits[:, :-1]), text.ids[:, 1:, None], axis=-1)[..., 0]
    told = outputs(head, params, x, text)["nll"][:, 1:]
    np.testing.assert_allclose(told, np.where(told != 0, -score, 0), atol=1e-5)
    np.testing.assert_allclose(outputs(head, params, x[:, 3], method="logits"), logits[:, 3], atol=1e-6)


def test_with_the_embeddings_table_the_head_has_no_parameters():
    head, x, text = Language(VOCAB), hidden(), text_of()
    table = np.random.default_rng(2).normal(size=(VOCAB, WIDTH)).astype(np.float32)
    assert not drawn(head, x, text, table)
    told = outputs(head, {}, x, text, table)["nll"]
    np.testing.assert_allclose(told, by_hand(np.asarray(x), text, table)[0], atol=1e-5)
    with pytest.raises(UserError, match="a table of 36 entries cannot hold a vocabulary of 37"):
        outputs(head, {}, x, text, table[1:])


def test_packed_samples_have_the_losses_of_samples_alone():
    """Sample by sample in rows of their own, the same sums and counts."""
    head, x, text = Language(VOCAB), hidden(), text_of()
    params = drawn(head, x, text)
    batch = Batch.fake(Batch.spec(2, text=10))
    packed = Objective(1e-2)(outputs(head, params, x, text), batch.replace(text=text))
    total = count = 0.0
    for row, number in ((0, 1), (0, 2), (1, 1), (1, 2)):
        where = np.flatnonzero(text.segment[row] == number)
        alone = jax.tree.map(lambda part, r=row, w=where: part[r : r + 1, w], text)
        told = outputs(head, params, x[row : row + 1, where], alone)
        found = Objective(1e-2)(told, batch.replace(text=alone))["loss"]
        total, count = total + found.total, count + found.count
    np.testing.assert_allclose(packed["loss"].total, total, rtol=1e-5)
    np.testing.assert_allclose(packed["loss"].count, count, rtol=1e-6)
    assert float(count) == pytest.approx(text.loss[text.position > 0].sum())


def test_the_objective_is_the_weighted_mean_of_the_formula():
    head, x, text = Language(VOCAB), hidden(), text_of()
    params = drawn(head, x, text)
    told = outputs(head, params, x, text)
    means = Objective(z_loss=0.1)(told, Batch.fake(Batch.spec(2, text=10)).replace(text=text))
    (nll, hit), weight = by_hand(np.asarray(x), text, np.asarray(params["params"]["table"])), text.loss
    expected = np.average(nll, weights=weight)
    np.testing.assert_allclose(means["nll"].value, expected, rtol=1e-5)
    np.testing.assert_allclose(means["accuracy"].value, np.average(hit, weights=weight), rtol=1e-5)
    z = np.average(np.square(told["log_z"]), weights=weight)
    np.testing.assert_allclose(means["loss"].value, expected + 0.1 * z, rtol=1e-5)


@pytest.mark.parametrize(
    "execution", [Recompute(16), GradientInForward(places=4, z_loss=0.1)], ids=lambda e: type(e).__name__
)
@pytest.mark.parametrize("parts", [1, 2])
def test_every_execution_trains_alike_in_micro_batches_too(execution, parts):
    """Loss and gradients through head and objective, whole (dense) and in `parts` micro-batches."""
    x, text = hidden(), text_of()
    batch = Batch.fake(Batch.spec(2, text=10)).replace(text=text)
    params = drawn(Language(VOCAB), x, text)

    def run(execution, parts):
        head = Language(VOCAB, execution=execution)

        def forward(params, batch, _):
            own = jnp.tanh(batch.text.ids[..., None] * params["scale"])
            return head.apply({"params": params["params"]}, own, batch.text)

        def loss(outputs, batch):
            return Objective(z_loss=0.1)(outputs, batch)["loss"].value, None

        start = {"params": params["params"], "scale": jnp.linspace(0.1, 0.3, WIDTH)}
        return jax.jit(lambda p: loss_and_gradient(forward, loss, p, batch, jax.random.key(0), parts))(start)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), run(execution, parts), run(Dense(), 1))


class Mix(nn.Module):
    """A block, as small as one can be."""

    @nn.compact
    def __call__(self, x, places=None, *, train=False):
        return x + Linear("btd,dD->btD", x.shape[-1:], name="mix")(x)


def test_ids_further_ahead_are_told_by_blocks_of_their_own():
    head, x, text = MultiToken(Language(VOCAB), Mix(), count=3), hidden(), text_of()
    params = drawn(head, x, text)["params"]
    assert set(params) == {"head", *(f"{part}_{i}" for part in ("block", "norm") for i in range(3))}
    told = outputs(head, {"params": params}, x, text)
    table = np.asarray(params["head"]["table"])
    for distance in (1, 2, 3):
        block = params[f"block_{distance - 1}"]["mix"]
        y = np.asarray(x + x @ block["kernel"] + block["bias"])
        y = y / np.sqrt(np.square(y).mean(-1, keepdims=True) + 1e-6) * params[f"norm_{distance - 1}"]["scale"]
        found = told["nll"] if distance == 1 else told["ahead"]["nll"][..., distance - 2]
        np.testing.assert_allclose(found, by_hand(y, text, table, distance)[0], atol=1e-4)
    means = Ahead()(told, Batch.fake(Batch.spec(2, text=10)).replace(text=text))
    weights = [text.loss * (text.position >= distance) for distance in (2, 3)]
    sums = [np.sum(w * told["ahead"]["nll"][..., i]) for i, w in enumerate(weights)]
    np.testing.assert_allclose(means["loss"].value, sum(sums) / np.sum(weights), rtol=1e-5)
    assert set(means) == {"loss", "accuracy_2", "accuracy_3"}
    assert outputs(head, {"params": params}, x, method="logits").shape == (2, 10, VOCAB)


def test_divergence_from_a_teacher_stands_where_an_id_is_predicted():
    head, x, text = Language(VOCAB), hidden(), text_of()
    params, teacher = drawn(head, x, text), hidden(seed=5)
    table = np.random.default_rng(6).normal(size=(VOCAB, WIDTH)).astype(np.float32)
    told = outputs(head, params, x, text, teacher, table, temperature=2.0, method="divergence")
    form = Form(VOCAB)
    log_q = jax.nn.log_softmax(form.scores(x[:, :-1], Words(params["params"]["table"])) / 2)
    log_p = jax.nn.log_softmax(form.scores(teacher[:, :-1], Words(table)) / 2)
    expected = 4 * jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)
    there = outputs(head, params, x, text)["nll"] != 0
    np.testing.assert_allclose(told[:, 1:], np.where(there[:, 1:], expected, 0), atol=1e-5)
    assert divergence(x, Words(jnp.asarray(table)), x, Words(jnp.asarray(table)), form=form).max() < 1e-5


def test_heads_are_configuration():
    head = MultiToken(Language(VOCAB, cap=30.0, execution=GradientInForward(z_loss=1e-4)), Mix(), count=2)
    assert from_json(to_json(head.head)) == head.head
    assert from_json(to_json(Objective(1e-4))) == Objective(1e-4)
