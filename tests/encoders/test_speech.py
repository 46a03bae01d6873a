"""The encoder of speech: padding is invisible, items are strangers, waveforms and features both go in."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from mmjax.core.batch import Batch
from mmjax.core.config import from_json, to_json
from mmjax.core.errors import UserError
from mmjax.core.parameters import unbox
from mmjax.encoders.speech import Frames, Sinusoids, SpeechEncoder

ENCODERS = {"sensor": SpeechEncoder.of("mu"), "audio": SpeechEncoder.of("mu", front=Frames(4))}


@pytest.fixture(scope="module", params=ENCODERS, ids=str)
def each(request):
    kind = request.param
    spec = {"sensor": (2, 11, 5, 100.0), "audio": (2, 42, 16_000)}[kind]
    media = getattr(Batch.fake(Batch.spec(2, **{kind: spec}), 3), kind)
    params = unbox(jax.jit(ENCODERS[kind].init)(jax.random.key(0), media))
    return kind, params, media


def with_steps(media, steps):
    """The same items in longer slots of noise."""
    name = "samples" if hasattr(media, "samples") else "values"
    old = getattr(media, name)
    noise = np.full((*old.shape[:2], steps, *old.shape[3:]), 9.0, np.float32)
    noise[:, :, : old.shape[2]] = old
    return dataclasses.replace(media, **{name: noise})


def test_longer_slots_change_nothing(each):
    kind, params, media = each
    run = jax.jit(ENCODERS[kind].apply)
    tokens = run(params, media)
    size = tokens.x.shape[1] // 2
    for steps in (13, 14) if kind == "sensor" else (43, 50, 53):
        more = run(params, with_steps(media, steps))
        x, valid = (part.reshape(2, 2, -1, *part.shape[2:])[:, :, :size] for part in (more.x, more.valid))
        mine = np.asarray(tokens.valid).reshape(2, 2, size)
        np.testing.assert_array_equal(valid, mine)
        assert int(more.valid.sum()) == mine.sum()
        np.testing.assert_allclose(x[mine], tokens.x.reshape(2, 2, size, -1)[mine], atol=1e-5)


def test_tokens_are_half_the_real_frames(each):
    kind, params, media = each
    tokens = jax.jit(ENCODERS[kind].apply)(params, media)
    frames = media.length * media.valid if kind == "sensor" else -(-media.length * media.valid // 4)
    per_item = np.asarray(tokens.valid).reshape(2, 2, -1).sum(-1)
    np.testing.assert_array_equal(per_item, -(-frames // 2))
    assert np.isfinite(tokens.x).all()


def test_absent_items_may_hold_anything_and_reach_nobody(each):
    kind, params, media = each
    name = "samples" if kind == "audio" else "values"
    gone = dataclasses.replace(media, valid=np.array([[True, False]] * 2), segment=np.array([[1, 0]] * 2, np.int32))
    spoiled = getattr(gone, name).copy()
    spoiled[:, 1] = np.nan
    run = jax.jit(ENCODERS[kind].apply)
    a, b = run(params, gone), run(params, dataclasses.replace(gone, **{name: spoiled}))
    assert np.isfinite(b.x).all() and not np.asarray(b.valid)[:, b.x.shape[1] // 2 :].any()
    np.testing.assert_allclose(b.clean().x, a.clean().x, atol=1e-6)


def test_sinusoids_are_those_of_the_paper():
    position = np.arange(5)[None]
    x = Sinusoids().apply({}, np.zeros((1, 5, 8), np.float32), position)
    angles = position[0][:, None] * 10_000 ** (-np.arange(4) / 3)
    np.testing.assert_allclose(x[0], np.concatenate([np.sin(angles), np.cos(angles)], 1), atol=1e-5)
    with pytest.raises(UserError, match="need an even width; got 7"):
        Sinusoids().apply({}, np.zeros((1, 5, 7), np.float32), position)


def test_encoders_are_their_own_configuration():
    for model in ENCODERS.values():
        assert from_json(json.loads(json.dumps(to_json(model), allow_nan=False))) == model
    with pytest.raises(UserError, match="no Whisper is called 'bse'; did you mean base"):
        SpeechEncoder.of("bse")
