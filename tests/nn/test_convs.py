"""Convolutions of groups and series against plain numpy."""

import jax
import numpy as np
import pytest

from mmjax.core.errors import UserError
from mmjax.core.parameters import unbox
from mmjax.nn.convs import Conv, DepthwiseConv, SeriesConv
from tests.drawn import applied

PICTURES = np.random.default_rng(0).normal(2, 3, size=(2, 6, 5, 12)).astype(np.float32)


def run(module, x):
    params = unbox(jax.jit(module.init)(jax.random.key(0), x))
    return np.asarray(applied(module)(params, x)), params["params"]


def test_groups_are_convolutions_of_their_own_channels():
    y, params = run(Conv(8, groups=4, bias=False), PICTURES)
    assert params["kernel"].shape == (3, 3, 3, 8)
    for group in range(4):
        kernel = {"kernel": params["kernel"][..., 2 * group : 2 * group + 2]}
        alone = applied(Conv(2, bias=False))({"params": kernel}, PICTURES[..., 3 * group : 3 * group + 3])
        np.testing.assert_allclose(y[..., 2 * group : 2 * group + 2], alone, atol=1e-5)
    with pytest.raises(UserError, match="5 groups must divide the 12 channels in and 10 out"):
        run(Conv(10, groups=5), PICTURES)


def test_a_depthwise_convolution_keeps_channels_apart():
    y, params = run(DepthwiseConv(stride=2), PICTURES)
    other = PICTURES.copy()
    other[..., 3] += 1
    changed = np.abs(np.asarray(applied(DepthwiseConv(stride=2))({"params": params}, other)) - y).max((0, 1, 2)) > 0
    assert y.shape == (2, 3, 3, 12) and list(np.flatnonzero(changed)) == [3]


@pytest.mark.parametrize("size, stride", [(3, 1), (3, 2), (4, 2)])
def test_a_series_followed_by_zeros_is_the_series(size, stride):
    x = PICTURES[:, :, 0]
    y, params = run(SeriesConv(7, size, stride), x)
    assert y.shape == (2, -(-6 // stride), 7) or size % 2 == 0
    for more in (1, 2, 5):
        longer = np.pad(x, ((0, 0), (0, more), (0, 0)))
        again = applied(SeriesConv(7, size, stride))({"params": params}, longer)
        np.testing.assert_allclose(again[:, : y.shape[1]], y, atol=1e-5)
    kernel = np.asarray(params["kernel"])
    before = (size - 1) // 2
    whole = np.pad(x, ((0, 0), (before, size), (0, 0)))
    first = np.einsum("btc,tco->bo", whole[:, stride : stride + size], kernel) + params["bias"]
    np.testing.assert_allclose(y[:, 1], first, atol=1e-4)
