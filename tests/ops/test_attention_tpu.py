"""The TPU kernels, interpreted, give what all pairs give, however rows are laid out and split over devices."""

import jax
import numpy as np
import pytest

from mmjax.core.errors import UserError
from mmjax.core.layout import Layout
from mmjax.core.tokens import Pattern
from mmjax.ops.attention import Auto, Reference, attend
from mmjax.ops.attention_tpu import Splash
from mmjax.ops.target import target
from tests.ops.attention_cases import LAYOUTS, arrays, assert_agree, attended, row, rows


@pytest.mark.parametrize("narrow", [(Pattern(), None), (Pattern(window=6), 2.0)], ids=["full", "window and cap"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_splash_sees_what_the_reference_sees(layout, narrow):
    assert_agree(Splash(), Reference(), LAYOUTS[layout], *narrow)


@pytest.mark.parametrize("window", [None, 150])
def test_splash_leaves_out_tiles_and_nothing_else(window):
    each = (row(200, 100, 60, prefix=30, length=384), row(380, length=384))
    parts, places = arrays(length=384, heads=2, groups=1, width=4), rows(*each)
    pattern = Pattern(window=window)
    fast = jax.jit(lambda *x: attend(*x, places, pattern=pattern, kernel=Splash(block=128)))(*parts)
    np.testing.assert_allclose(fast, attended(*parts, places, pattern=pattern, kernel=Reference()), atol=1e-5)


@pytest.mark.parametrize("kernel", [Splash(block=128), Auto(dense=8)], ids=str)
def test_kernels_run_on_a_mesh(kernel):
    layout = Layout(data=2, tensor=2)
    parts, places = arrays(), LAYOUTS["prefix"]
    expected = attended(*parts, places, kernel=Reference())
    with layout.use(layout.mesh(jax.devices()[:4])):
        assert target() == "cpu"
        got = jax.jit(lambda *x: attend(*x, places, kernel=kernel))(*parts)
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_a_memory_or_a_cache_may_stand_in_for_the_row():
    places, (q, k, v) = LAYOUTS["prefix"], arrays()
    last = jax.tree.map(lambda x: x[:, -9:-4], places)
    got = attended(q[:, :, -9:-4], k, v, last, places, kernel=Splash())
    np.testing.assert_allclose(got, attended(q, k, v, places)[:, :, -9:-4], atol=1e-5)


def test_what_splash_cannot_do_is_refused():
    parts, places = arrays(), LAYOUTS["causal"]
    with pytest.raises(UserError, match=r"Splash cannot hide image from text; choose kernel=Auto\(\)"):
        attended(*parts, places, kernel=Splash(), pattern=Pattern(hidden=(("text", "image"),)))
