"""Models that read a sample with all its modalities: samples of a row are apart, and what is absent is nothing."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from mmjax.core.batch import Batch
from mmjax.core.config import from_json, to_json
from mmjax.core.errors import UserError
from mmjax.core.parameters import unbox
from mmjax.encoders.image import PatchStem, ViT
from mmjax.encoders.text import TextEncoder
from mmjax.evals.absent import without
from mmjax.fusion.connectors import MLP
from mmjax.fusion.cross import CrossFusion
from mmjax.fusion.early import Concatenate, Interleave
from mmjax.fusion.gating import Gate, GatedTokens
from mmjax.fusion.late import Joined
from mmjax.fusion.streams import Bottleneck, BottleneckLayer
from mmjax.heads.classify import Classify
from mmjax.models.joint import Joint, RowReader, StreamReader
from mmjax.nn.attention import Attention
from mmjax.nn.block import Block
from mmjax.nn.embeddings import NoPositions, TokenEmbedding
from mmjax.nn.feedforward import FeedForward
from mmjax.nn.norms import Identity
from mmjax.nn.stack import KeepAll, Stack

WIDTH, CELLS, WORDS = 16, 4, 5
block = Block(Attention(2), FeedForward(24))
stack = Stack(block, 2, KeepAll())
READERS = {
    "in the row": (RowReader(Interleave(), stack, {"image": MLP(WIDTH)}), CELLS),
    "before the row": (RowReader(Concatenate(), stack, streams=GatedTokens(Gate(4))), 0),
    "beside the row": (RowReader(CrossFusion(), Stack(Block(Attention(2), cross=Attention(2)), 2)), 0),
    "streams": (StreamReader(Joined(WIDTH), Bottleneck(Stack(BottleneckLayer(block), 2), 2)), 0),
}


@pytest.fixture(scope="module", params=READERS, ids=str)
def case(request):
    reader, places = READERS[request.param]
    image = ViT(PatchStem(4, WIDTH), Stack(Identity(), 0))
    text = TextEncoder(TokenEmbedding(9, WIDTH), Stack(Identity(), 0), NoPositions())
    model = Joint({"text": text, "image": image}, reader, Classify(3, gain=1.0))
    batch = packed(places)
    params = unbox(jax.jit(model.init)({"params": jax.random.key(0)}, batch))
    return model, params, batch, jax.jit(model.apply)


def packed(places: int) -> Batch:
    """One row of two samples, each a picture and words."""
    size = places + WORDS
    spec = Batch.spec(1, samples=2, text=(2 * size, {"image": places} if places else {}), image=(2, 8, 8))
    batch = Batch.fake(spec, vocabulary=9)
    number = np.repeat([[1, 2]], size, axis=1).astype(np.int32)
    slot = np.concatenate([np.r_[n * places + np.arange(places), [-1] * WORDS] for n in (0, 1)])[None].astype(np.int32)
    position = np.tile(np.arange(size, dtype=np.int32), 2)[None]
    text = dataclasses.replace(
        batch.text, slot=slot, segment=number, block=0 * slot, position=position, loss=np.zeros_like(slot, np.float32)
    )
    image = dataclasses.replace(batch.image, valid=np.ones((1, 2), bool), segment=np.array([[1, 2]], np.int32))
    return batch.replace(text=text, image=image, fault=np.zeros((1, 2), np.uint8)).check()


def said(case, batch: Batch) -> np.ndarray:
    _, params, _, forward = case
    return np.asarray(forward(params, batch)["logits"])[0]


def test_samples_of_a_row_are_as_if_alone(case):
    batch = case[2]
    before = said(case, batch)
    assert before.shape == (2, 3)
    pixels = np.array(batch.image.pixels)
    pixels[:, 1] = 255 - pixels[:, 1]
    after = said(case, batch.replace(image=dataclasses.replace(batch.image, pixels=pixels)))
    np.testing.assert_allclose(after[0], before[0], atol=1e-5)
    assert np.abs(after[1] - before[1]).max() > 1e-4


def test_without_the_picture_its_pixels_are_nothing(case):
    blind = without(case[2], "image")
    noise = dataclasses.replace(blind.image, pixels=np.full_like(blind.image.pixels, 77))
    before, after = said(case, blind), said(case, blind.replace(image=noise))
    np.testing.assert_allclose(after, before, atol=1e-6)
    assert np.isfinite(before).all() and np.abs(before - said(case, case[2])).max() > 1e-4


def test_a_joint_model_is_its_own_configuration(case):
    assert from_json(to_json(case[0])) == case[0]


def test_what_cannot_be_read_is_refused(case):
    model, params, batch, _ = case
    with pytest.raises(UserError, match="the model reads text, image; the batch has audio"):
        model.apply(params, Batch.fake(Batch.spec(1, audio=(1, 8, 16_000))))
    if isinstance(model.reader, RowReader):
        with pytest.raises(UserError, match="a row is made of text; the model has read image alone"):
            model.apply(params, batch.replace(text=None))
