"""Tiny decoders of every kind, and what a model says of a row without any cache."""

import functools

import jax
import numpy as np
import pytest

from mmjax.core.parameters import unbox
from mmjax.core.tokens import Pattern
from mmjax.decoding.state import Fixed
from mmjax.models.decoder import Decoder
from mmjax.nn.attention import Attention
from mmjax.nn.block import Block, Chain
from mmjax.nn.embeddings import LearnedPositions
from mmjax.nn.feedforward import FeedForward
from mmjax.nn.norms import LayerNorm, RMSNorm
from mmjax.nn.stack import Stack
from mmjax.ops.rotary import MultimodalRotary, Rotary
from tests.rows import rows_of, scores_of

VOCAB = 31


def parameters(model, batch, seed=0):
    return unbox(jax.jit(model.init)({"params": jax.random.key(seed)}, batch)["params"])


@functools.partial(jax.jit, static_argnames="fixed")
def _scores(fixed, params, batch):
    return scores_of(fixed.model, params, batch)


def scores(model, params, batch):
    """[B T V] what a decoder, or a model that has one, says after each place: in one pass, without any cache."""
    return np.asarray(_scores(Fixed(model), params, batch))


def attention(**parts):
    return Attention(4, 2, rotary=Rotary(), **parts)


MODELS = {
    "grouped": Decoder.of("mu", VOCAB),
    "learned": Decoder.of(
        "mu",
        VOCAB,
        positions=LearnedPositions(64, 0.5),
        norm=LayerNorm(),
        stack=Stack(Block(Attention(2), FeedForward(48)), 2),
        tied=False,
    ),
    "windows": Decoder.of(
        "mu",
        VOCAB,
        stack=Stack(
            Chain(
                (
                    Block(attention(pattern=Pattern(3)), norm=RMSNorm()),
                    Block(attention(softcap=2.0, qk_norm=RMSNorm()), norm=RMSNorm(), post_norm=RMSNorm()),
                )
            ),
            2,
        ),
    ),
    "multimodal": Decoder.of("mu", VOCAB, stack=Stack(Block(Attention(4, 2, rotary=MultimodalRotary((1, 1, 2)))), 1)),
}
PROMPTS = [[3, 7, 1, 9, 4, 12, 30, 8, 2, 5, 11], [5, 2, 8, 8], [6, 17, 20, 1, 1, 22, 3]]


@pytest.fixture(scope="session")
def prompts():
    return rows_of(PROMPTS)


@pytest.fixture(scope="session", params=MODELS, ids=str)
def each(request, prompts):
    """Every kind of model, with its parameters."""
    model = MODELS[request.param]
    return model, parameters(model, prompts)


@pytest.fixture(scope="session")
def model():
    return MODELS["windows"]


@pytest.fixture(scope="session")
def params(model, prompts):
    return parameters(model, prompts)


@pytest.fixture(scope="session")
def plain(prompts):
    """The smallest model, with its parameters."""
    return MODELS["multimodal"], parameters(MODELS["multimodal"], prompts)


def ended(ids, end):
    """Ids [B n] up to the first that is one of `end`, and -1 after it."""
    over = np.isin(ids, end)
    return np.where(np.cumsum(over, axis=1) - over > 0, -1, ids)
