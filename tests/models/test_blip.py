"""BLIP does what its parts do by themselves, whichever rows of a batch are for which."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core.batch import Batch, Images, Text
from mmjax.core.parameters import unbox
from mmjax.decoding.generate import generate
from mmjax.encoders.image import PatchStem, ViT
from mmjax.encoders.text import TextEncoder
from mmjax.fusion.connectors import Project
from mmjax.fusion.cross import Scoped, WholeRow
from mmjax.heads.contrastive import Contrastive
from mmjax.heads.language import Language
from mmjax.models.blip import BLIP, Judge
from mmjax.models.decoder import Decoder
from mmjax.models.towers import Tower, Towers
from mmjax.nn.attention import Attention
from mmjax.nn.block import Block
from mmjax.nn.embeddings import LearnedGrid, NoPositions, TokenEmbedding
from mmjax.nn.feedforward import FeedForward
from mmjax.nn.norms import Identity
from mmjax.nn.stack import Stack
from mmjax.objectives.language import Language as PredictNext
from mmjax.objectives.matching import Matching
from mmjax.ops.rotary import Rotary

VOCAB, ROWS, SAMPLES, LENGTH = 29, 6, 2, 5
SPEAKS = np.array([False, True, False, False, True, False])


def model(judge=None, spoken=None):
    block = Block(Attention(2, rotary=Rotary()), FeedForward(24), cross=Scoped(Attention(2), WholeRow()))
    words = TextEncoder(TokenEmbedding(VOCAB, 12), Stack(Identity(), 0), NoPositions())
    return BLIP(
        decoder=Decoder(TokenEmbedding(VOCAB, 16), Stack(block, 2), Language(VOCAB)),
        image=ViT(PatchStem(4, 8), Stack(Block(Attention(2), FeedForward(16)), 1), LearnedGrid((2, 2))),
        text=Tower(words),
        head=Contrastive(10),
        connector=Project(16),
        judge=judge,
        spoken=spoken,
    )


def batch(seed=0):
    """Rows 1 and 4 are spoken: two dialogues each, the first place given; the others hold two captions."""
    rng = np.random.default_rng(seed)
    place = np.tile(np.arange(LENGTH), SAMPLES)[None].repeat(ROWS, 0)
    segment = np.repeat(np.arange(1, SAMPLES + 1), LENGTH)[None].repeat(ROWS, 0).astype(np.int32)
    segment[2, 3:LENGTH] = 0  # a short caption
    ids = np.where(segment > 0, rng.integers(0, VOCAB, segment.shape), 0).astype(np.int32)
    block = np.where(SPEAKS[:, None], np.maximum(place - 1, 0), 0) * (segment > 0)
    loss = (SPEAKS[:, None] & (place > 1)).astype(np.float32)
    text = Text(ids, np.full_like(ids, -1), segment, block.astype(np.int32), place * (segment > 0), loss)
    ones = np.ones((ROWS, 1), np.int32)
    image = Images(rng.integers(0, 255, (ROWS, 1, 8, 8, 3)).astype(np.uint8), ones > 0, ones)
    number = np.arange(ROWS, dtype=np.int32)[:, None].repeat(SAMPLES, 1)
    return Batch(text=text, image=image, labels={"picture": number}, id=number, fault=np.zeros_like(number, np.uint8))


JUDGE = Judge(3, LENGTH, same="picture")


@pytest.fixture(scope="module")
def params():
    shapes = unbox(jax.eval_shape(model(JUDGE).init, jax.random.key(0), batch()))["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: (0.4 * rng.normal(size=x.shape)).astype(np.float32), shapes)


def said(params, batch, judge=JUDGE, spoken=None):
    rng = {"dropout": jax.random.key(0)}
    return jax.jit(lambda p, b: model(judge, spoken).apply({"params": p}, b, train=spoken is not None, rngs=rng))(
        params, batch
    )


def swapped(x, rows, other):
    x = np.array(x)
    x[rows] = other[rows]
    return x


def test_captions_and_pictures_meet_as_in_towers(params):
    whole, parts = batch(), model()
    towers = Towers(head=parts.head, image=Tower(parts.image), text=parts.text)
    outputs = said(params, whole)
    of_towers = {"head": params["head"], "image": {"encoder": params["image"]}, "text": params["text"]}
    expected = towers.apply({"params": of_towers}, whole)
    for name in ("image", "text"):
        met, alone = outputs["embeddings"][name][~SPEAKS], expected["embeddings"][name][~SPEAKS]
        np.testing.assert_allclose(met, alone, rtol=1e-5, atol=1e-6)
    assert (np.asarray(outputs["present"]["text"]) == ~SPEAKS[:, None]).all()
    assert np.asarray(outputs["present"]["image"])[:, 0].all()


def test_a_limit_on_spoken_rows_changes_nothing_until_it_is_passed(params):
    free, limited, short = (said(params, batch(), spoken=spoken) for spoken in (None, 2, 1))
    for name in ("nll", "log_z", "hit"):
        np.testing.assert_allclose(limited[name][SPEAKS], free[name][SPEAKS], rtol=1e-5, atol=1e-6)
    assert np.asarray(free["nll"])[SPEAKS][:, 2].all()
    assert np.isnan(PredictNext()(short, batch())["loss"].value)


def test_every_dialogue_of_a_row_sees_its_picture_and_no_other_dialogue(params):
    first, other = batch(), batch(1)
    base = np.asarray(said(params, first)["nll"])[1]
    pixels = swapped(first.image.pixels, [1], other.image.pixels)
    seen = np.asarray(said(params, first.replace(image=dataclasses.replace(first.image, pixels=pixels)))["nll"])[1]
    assert (np.abs(seen - base) > 1e-4)[[2, 3, 4, 7, 8, 9]].all()
    ids = np.array(first.text.ids)
    ids[1, :LENGTH] = other.text.ids[1, :LENGTH]
    told = np.asarray(said(params, first.replace(text=dataclasses.replace(first.text, ids=ids)))["nll"])[1]
    np.testing.assert_allclose(told[LENGTH:], base[LENGTH:], rtol=1e-5, atol=1e-6)
    assert (np.abs(told - base)[2:LENGTH] > 1e-4).all()


def test_the_first_captions_are_judged_with_both_sides_in_sight(params):
    first, other = batch(), batch(1)
    base = said(params, first, spoken=2)["matching"]
    assert base["logit"].shape == (3, 3) and base["valid"].all()
    base = said(params, first)["matching"]
    np.testing.assert_array_equal(base["valid"][:, 0], ~SPEAKS)
    for change in (
        {"image": dataclasses.replace(first.image, pixels=swapped(first.image.pixels, [0], other.image.pixels))},
        {"text": dataclasses.replace(first.text, ids=swapped(first.text.ids, [0], other.text.ids))},
    ):
        true = np.asarray(said(params, first.replace(**change))["matching"]["logit"])[:, 0]
        assert abs(true[0] - base["logit"][0, 0]) > 1e-4
        np.testing.assert_allclose(true[1:], base["logit"][1:, 0], rtol=1e-5, atol=1e-6)
    second = np.array(first.text.ids)
    second[:, LENGTH:] = other.text.ids[:, LENGTH:]
    unread = said(params, first.replace(text=dataclasses.replace(first.text, ids=second)))["matching"]["logit"]
    np.testing.assert_allclose(unread[:, 0], base["logit"][:, 0], rtol=1e-5, atol=1e-6)


def test_rows_without_a_picture_are_finite_and_are_not_judged(params):
    whole = batch()
    valid = np.array(whole.image.valid)
    valid[[0, 1]] = False
    pixels = np.array(whole.image.pixels)
    pixels[[0, 1]] = 77
    image = dataclasses.replace(whole.image, valid=valid, segment=valid.astype(np.int32))
    absent = [whole.replace(image=dataclasses.replace(image, pixels=x)) for x in (whole.image.pixels, pixels)]

    def loss(params, batch):
        outputs = model(JUDGE).apply({"params": params}, batch)
        means = PredictNext()(outputs, batch)["loss"].value, Matching()(outputs, batch)["loss"].value
        return sum(means), outputs["matching"]["valid"]

    (total, valid), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params, absent[0])
    assert not valid[0, :2].any() and np.isfinite(total)  # the caption may still be held against another picture
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(grads))
    np.testing.assert_array_equal(total, jax.jit(loss)(params, absent[1])[0])


def test_it_writes_what_it_says_in_one_pass(params):
    whole, steps = batch(), 3
    rows = jax.tree.map(lambda x: x[SPEAKS], whole)
    keep = np.broadcast_to(np.arange(SAMPLES * LENGTH) < 2, rows.text.ids.shape)
    cut = {name: getattr(rows.text, name) * keep for name in ("ids", "segment", "block", "position", "loss")}
    prompts = rows.replace(
        text=dataclasses.replace(rows.text, **cut), labels={}, id=rows.id[:, :1], fault=rows.fault[:, :1]
    )
    made = np.asarray(generate(model(), params, prompts, steps=steps).ids)
    ids = np.array(rows.text.ids)
    ids[:, 2 : 2 + steps] = made
    parts = {name: getattr(rows.text, name)[:, : 2 + steps] for name in ("slot", "segment", "block", "position")}
    loss = (np.arange(2 + steps) > 1).astype(np.float32)[None].repeat(2, 0)
    text = Text(ids[:, : 2 + steps], loss=loss, **parts)
    outputs = said(params, prompts.replace(text=text), judge=None)
    assert np.asarray(outputs["hit"])[:, 2:].all()


def test_one_side_alone_has_what_it_gives(params):
    whole = batch()
    pictures = said(params, whole.replace(text=None))
    np.testing.assert_allclose(pictures["embeddings"]["image"], said(params, whole)["embeddings"]["image"], rtol=1e-5)
    assert "nll" not in pictures
    texts = said(params, whole.replace(image=None))
    assert set(texts["embeddings"]) == {"text"} and np.isfinite(texts["nll"]).all() and "matching" not in texts
