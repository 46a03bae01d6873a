"""Boxes: overlaps by hand, tokens there and back, the loss of DETR."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core.batch import Batch
from mmjax.core.errors import UserError
from mmjax.core.parameters import unbox
from mmjax.heads.grounding import Boxes as Head
from mmjax.objectives.grounding import Boxes
from mmjax.ops.boxes import BoxTokens, area, from_centre, giou, iou, to_centre

LEFT, RIGHT = [0.0, 0.0, 0.4, 0.5], [0.2, 0.0, 0.6, 0.5]
FAR, NOTHING = [0.8, 0.5, 1.0, 1.0], [0.3, 0.3, 0.3, 0.3]


@pytest.mark.parametrize(
    ("one", "other", "share", "general"),
    [
        (LEFT, LEFT, 1.0, 1.0),
        (LEFT, RIGHT, 1 / 3, 1 / 3),  # 0.1 shared of 0.3, and the hull is the union
        (LEFT, FAR, 0.0, -0.7),  # 0.2 and 0.1 in a hull of 1: -(1 - 0.3) / 1
        ([0.0, 0.0, 0.2, 0.2], [0.1, 0.1, 0.3, 0.3], 1 / 7, 1 / 7 - 2 / 9),  # 0.01 of 0.07, hull 0.09
        (NOTHING, LEFT, 0.0, 0.0),  # a point inside
        (NOTHING, NOTHING, 0.0, 0.0),
    ],
)
def test_overlaps_by_hand(one, other, share, general):
    one, other = jnp.array(one), jnp.array(other)
    np.testing.assert_allclose(iou(one, other), share, atol=1e-6)
    np.testing.assert_allclose([giou(one, other), giou(other, one)], general, atol=1e-6)
    assert np.all(np.isfinite(jax.grad(lambda x: giou(x, other))(one)))


def test_boxes_by_centre_and_back():
    np.testing.assert_allclose(to_centre(jnp.array(RIGHT)), [0.4, 0.25, 0.4, 0.5], atol=1e-6)
    np.testing.assert_allclose(from_centre(to_centre(jnp.array(RIGHT))), RIGHT, atol=1e-6)
    assert area(jnp.array([0.5, 0.5, 0.4, 0.4])) == 0, "inside out"


@pytest.mark.parametrize("bins", [2, 1000, 1024])
def test_tokens_of_a_box_are_off_by_half_a_bin_at_most(bins):
    tokens = BoxTokens(first=300, bins=bins)
    box = np.concatenate([np.random.default_rng(0).random((200, 4)), np.zeros((1, 4)), np.ones((1, 4))])
    ids = tokens.encode(jnp.asarray(box))
    assert ids.min() == 300 and ids.max() == 300 + bins - 1
    np.testing.assert_allclose(tokens.decode(ids), box, atol=0.5 / (bins - 1) + 1e-6)


def test_tokens_stand_in_the_order_of_pix2seq():
    tokens = BoxTokens(first=1000, bins=11)
    assert tokens.encode(jnp.array([0.1, 0.2, 0.7, 1.3])).tolist() == [1002, 1001, 1010, 1007]
    assert np.isnan(tokens.decode(jnp.array([1002, 5, 1010, 1007]))).tolist() == [True, False, False, False]
    with pytest.raises(UserError, match="2 bins or more, ids from 0 on; got bins=1, first=0"):
        BoxTokens(0, 1)


def test_the_loss_is_that_of_detr_over_boxes_that_are_boxes():
    found, truth = (
        np.array([[LEFT, FAR], [RIGHT, LEFT]], np.float32),
        np.array([[RIGHT, NOTHING], [RIGHT, FAR]], np.float32),
    )
    batch = Batch.fake(Batch.spec(2, text=4)).replace(labels={"boxes": truth[:, None]})
    means = Boxes()({"boxes": jnp.asarray(found)}, batch)
    losses = [5 * 0.2 + 2 * (1 - 1 / 3), 0.0, 5 * (0.7 + 0.5 + 0.2 + 0.0) + 2 * 1.7]
    np.testing.assert_allclose(means["loss"].value, np.mean(losses), rtol=1e-5)
    np.testing.assert_allclose(means["iou"].value, (1 / 3 + 1 + 0) / 3, rtol=1e-5)
    np.testing.assert_allclose(means["found"].value, 1 / 3, rtol=1e-5)
    null = Boxes()({"boxes": jnp.asarray(found)}, batch.replace(fault=np.array([[1], [0]], np.uint8)))
    assert float(null["loss"].count) == 2
    with pytest.raises(UserError, match=r"tells boxes \(2, 1, 4\), label boxes holds \(2, 1, 2, 4\)"):
        Boxes()({"boxes": found[:, :1]}, batch)


def test_the_head_tells_boxes_inside_out_never():
    x = 5 * np.random.default_rng(0).normal(size=(3, 4, 8)).astype(np.float32)
    head = Head()
    boxes = head.apply(unbox(head.init(jax.random.key(0), x)), x)["boxes"]
    assert boxes.shape == (3, 4, 4) and np.all(boxes[..., 2:] >= boxes[..., :2])
