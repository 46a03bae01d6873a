"""Positions in time, height and width are those that Qwen2-VL gives, and a row may be read piece by piece."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core.batch import MODALITIES
from mmjax.core.errors import UserError
from mmjax.core.tokens import Live, Places
from mmjax.ops.rotary import MultimodalRotary, Rotary

ROTARY = MultimodalRotary((2, 3, 3), (("image", (1, 2, 3)), ("video", (2, 1, 2))))
rotated = jax.jit(ROTARY)


def places_of(*samples):
    """One row of samples, each a string: t text, i image, v video."""
    kinds = {"t": "text", "i": "image", "v": "video"}
    modality = [MODALITIES.index(kinds[c]) for sample in samples for c in sample]
    segment = [n for n, sample in enumerate(samples, 1) for _ in sample]
    position = [p for sample in samples for p in range(len(sample))]
    vectors = (np.ones(len(modality), bool), position, segment, position, modality)
    return Places(*(jnp.asarray(v)[None] for v in vectors))


def test_axes_are_the_published_example_by_hand():
    time, height, width = np.asarray(ROTARY.axes(places_of("tt" + 6 * "i" + "t" + 4 * "v" + "tt")))[:, 0]
    assert list(time) == [0, 1, 2, 2, 2, 2, 2, 2, 5, 6, 6, 7, 7, 8, 9]
    assert list(height) == [0, 1, 2, 2, 2, 3, 3, 3, 5, 6, 6, 6, 6, 8, 9]
    assert list(width) == [0, 1, 2, 3, 4, 2, 3, 4, 5, 6, 7, 6, 7, 8, 9]


def test_packed_samples_count_for_themselves():
    one, two = "t" + 12 * "i" + "t", 6 * "i" + "tt"
    packed = np.asarray(ROTARY.axes(places_of(one, two)))
    alone = [np.asarray(ROTARY.axes(places_of(sample))) for sample in (one, two)]
    np.testing.assert_array_equal(packed, np.concatenate(alone, axis=2))


def test_text_alone_turns_as_plain_rotary():
    x = np.random.default_rng(0).normal(size=(1, 2, 5, 16)).astype(np.float32)
    places = places_of("ttttt")
    np.testing.assert_allclose(rotated(x, places), jax.jit(Rotary())(x, places), atol=1e-6)


def test_each_section_turns_with_its_axis():
    """Against the formula of the released model: frequencies in order, each angle by the axis of its section."""
    places = places_of("tt" + 6 * "i" + "t")
    axes = np.asarray(ROTARY.axes(places))[:, 0]
    x = np.random.default_rng(1).normal(size=(1, 1, 9, 16)).astype(np.float32)
    owner = np.repeat([0, 1, 2], [2, 3, 3])
    angle = axes[owner].T * 10_000.0 ** (-np.arange(8) / 8)
    turned = (x[0, 0, :, :8] + 1j * x[0, 0, :, 8:]) * np.exp(1j * angle)
    np.testing.assert_allclose(rotated(x, places)[0, 0], np.concatenate([turned.real, turned.imag], 1), atol=1e-5)


def test_the_last_tokens_of_a_row_turn_as_in_the_whole():
    x = np.random.default_rng(2).normal(size=(1, 1, 12, 16)).astype(np.float32)
    whole = places_of("tt" + 6 * "i" + "tttt")
    pad = jax.tree.map(lambda v: jnp.pad(v, [(0, 0), (3, 2)]), whole)  # three slots before, two to come
    now = jax.tree.map(lambda v: v[:, 9:11], whole)
    live = Live(**{f.name: getattr(now, f.name) for f in dataclasses.fields(now)}, slots=pad, cursor=jnp.array(12))
    np.testing.assert_allclose(rotated(x[:, :, 9:11], live), rotated(x, whole)[:, :, 9:11], atol=1e-5)


def test_sections_that_do_not_fill_the_head_are_refused():
    with pytest.raises(UserError, match=r"\(2, 3, 3\) must add up to half the head width, 4"):
        ROTARY(jnp.zeros((1, 1, 1, 8)), places_of("t"))
    with pytest.raises(UserError, match="did you mean image"):
        MultimodalRotary((1, 1, 1), (("imge", (1, 1, 1)),))
