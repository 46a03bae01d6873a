"""One stream, several tasks: each sees what it may, none what it is asked for, and all share one stack."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core.batch import Batch
from mmjax.core.config import from_json, to_json
from mmjax.core.errors import UserError
from mmjax.core.parameters import unbox
from mmjax.core.pytrees import flatten_names
from mmjax.encoders.image import PatchStem, ViT
from mmjax.fusion.connectors import InTurn, Placed, Project
from mmjax.heads.masked import MaskedLanguage, Masking, MaskText
from mmjax.models.decoder import Sense
from mmjax.models.single_stream import Belonging, HiddenRegions, HiddenWords, SingleStream
from mmjax.nn.attention import Attention
from mmjax.nn.block import Block
from mmjax.nn.embeddings import LearnedPositions, TokenEmbedding
from mmjax.nn.norms import Identity
from mmjax.nn.stack import Stack

VOCAB, WIDTH = 20, 16
TASKS = (
    HiddenWords(MaskText(Masking(1, VOCAB, rate=0.3)), MaskedLanguage(VOCAB)),
    Belonging(alike=("picture",)),
    HiddenRegions(0.25),
)


def model_of(*tasks) -> SingleStream:
    patches = ViT(PatchStem(4, 12), Stack(Identity(), 0), norm=Identity())  # a feature is its patch alone
    return SingleStream(
        embedding=TokenEmbedding(VOCAB, WIDTH),
        image=Sense(patches, InTurn((Project(WIDTH), Placed(LearnedPositions(4))))),
        stack=Stack(Block(Attention(2)), 2),
        tasks=tasks or TASKS,
        positions=LearnedPositions(12),
    )


MODEL = model_of()
SPEC = Batch.spec(6, text=10, image=(1, 8, 8), labels={"picture": ((), "int32")})


def batch_of(present=(1, 1, 1, 1, 1, 0)) -> Batch:
    batch = Batch.fake(SPEC, 3, VOCAB)
    there = np.array(present, bool)[:, None]
    image = dataclasses.replace(batch.image, valid=there, segment=there.astype(np.int32))
    return batch.replace(image=image, labels={"picture": np.arange(6, dtype=np.int32)[:, None]})


@pytest.fixture(scope="module")
def params():
    return unbox(jax.jit(MODEL.init)({"params": jax.random.key(0)}, batch_of())["params"])


@pytest.fixture(scope="module")
def told(params):
    run = jax.jit(lambda batch: MODEL.apply({"params": params}, batch))
    return lambda batch: jax.tree.map(np.asarray, run(batch))


def test_all_tasks_share_one_stack(params):
    assert {name.split("/")[0] for name in flatten_names(params)} == {
        "embedding", "image", "norm", "positions", "stack", "fusion", "tasks_0", "tasks_1", "tasks_2"
    }  # fmt: skip
    assert set(params["tasks_1"]) == {"pool", "matching"} and set(params["tasks_2"]) == {"features"}


def test_tasks_tell_what_their_objectives_read(told):
    out = told(batch_of())
    assert set(out) == {"masked", "matching", "patches"}
    np.testing.assert_array_equal(out["patches"]["hidden"].sum(-1)[:, 0], [1, 1, 1, 1, 1, 0])
    np.testing.assert_array_equal(out["matching"]["valid"], np.array([[1, 1, 1]] * 5 + [[0, 0, 1]], bool))
    assert out["masked"]["valid"].sum() >= 6 and np.all(np.isfinite(out["masked"]["nll"]))


def test_an_absent_picture_never_matters(told):
    batch = batch_of()
    pixels = np.array(batch.image.pixels)
    pixels[5] = 255 - pixels[5]
    one, two = told(batch), told(batch.replace(image=dataclasses.replace(batch.image, pixels=pixels)))
    np.testing.assert_array_equal(one["masked"]["nll"], two["masked"]["nll"])
    real = one["matching"]["valid"]
    np.testing.assert_array_equal(one["matching"]["logit"][real], two["matching"]["logit"][real])


def test_words_are_told_with_the_picture_in_sight(told):
    batch = batch_of()
    other = batch.replace(image=dataclasses.replace(batch.image, pixels=255 - batch.image.pixels))
    one, two = told(batch)["masked"], told(other)["masked"]
    moved = np.abs(one["nll"] - two["nll"]) > 1e-5
    there = one["valid"] & np.array([1, 1, 1, 1, 1, 0], bool)[:, None]
    assert moved[there].all() and not moved[5].any()


def test_hidden_regions_are_told_from_the_others(params):
    """The error's gradient reaches the pixels of seen patches through the stream, and those of hidden ones never: the
    target has none."""
    batch, model = batch_of(), model_of(TASKS[2])
    mine = {name: params[name] for name in params if not name.startswith("tasks_")} | {"tasks_0": params["tasks_2"]}
    hidden = np.asarray(model.apply({"params": mine}, batch)["patches"]["hidden"])

    def error(pixels):
        image = dataclasses.replace(batch.image, pixels=pixels)
        found = model.apply({"params": mine}, batch.replace(image=image))["patches"]
        return jnp.sum(found["error"] * found["hidden"])

    slope = np.abs(jax.jit(jax.grad(error))(batch.image.pixels.astype(np.float32)))
    cells = slope.reshape(6, 2, 4, 2, 4, 3).max(axis=(2, 4, 5)).reshape(6, 1, 4)
    assert (cells[hidden] == 0).all() and (cells[:5][~hidden[:5]] > 0).all() and (cells[5] == 0).all()


def test_false_pairs_are_drawn_evenly_and_never_of_the_same_picture(params):
    """What is judged in place of row 0's text is another row's, each as often as the others."""
    batch = batch_of((1,) * 6)
    batch = batch.replace(labels={"picture": np.array([[0], [0], [1], [2], [3], [4]], np.int32)})
    batch = jax.tree.map(jnp.asarray, batch)
    model = model_of(TASKS[1])
    mine = {name: params[name] for name in params if not name.startswith("tasks_")} | {"tasks_0": params["tasks_1"]}

    def logits(key):
        return model.apply({"params": mine}, batch, train=True, rngs={"dropout": key})["matching"]["logit"]

    drawn = np.asarray(jax.jit(jax.vmap(logits))(jax.random.split(jax.random.key(0), 200)))
    np.testing.assert_allclose(drawn[:, :, 0], drawn[:1, :, 0].repeat(200, 0), atol=1e-5)  # the true pairs
    kinds, counts = np.unique(drawn[:, 0, 1].round(4), return_counts=True)
    assert len(kinds) == 4 and counts.min() > 25  # of 5 others, one shows the same picture


def test_a_stream_needs_both():
    with pytest.raises(UserError, match="reads pictures and words together; the batch has text"):
        MODEL.init({"params": jax.random.key(0)}, batch_of().replace(image=None))


def test_a_single_stream_is_its_configuration():
    assert to_json(from_json(to_json(MODEL))) == to_json(MODEL)
