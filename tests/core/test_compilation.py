"""Compiler options change how fast a program is, never whether it runs or what it says."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from mmjax.core import compilation


def lowered(x: np.ndarray):
    """A convolution, its gradient and a reduction: what the options are about."""

    def loss(kernel, x):
        y = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return (y**2).mean()

    return jax.jit(jax.grad(loss)).lower(KERNEL, x)


RNG = np.random.default_rng(0)
KERNEL = RNG.normal(size=(3, 3, 4, 8)).astype(np.float32)
PICTURES = RNG.normal(size=(2, 8, 8, 4)).astype(np.float32)


@pytest.mark.parametrize("name", ["STEPS", "TOKENS"])
def test_the_options_are_known_to_this_compiler_and_change_no_number(name):
    compiled = lowered(PICTURES).compile(compiler_options=getattr(compilation, name)["cpu"])
    np.testing.assert_allclose(compiled(KERNEL, PICTURES), lowered(PICTURES).compile()(KERNEL, PICTURES), rtol=1e-4)


def test_an_option_that_this_compiler_does_not_know_is_left_out(monkeypatch):
    monkeypatch.setitem(compilation.STEPS, "cpu", {"xla_of_another_year": True})
    compiled = compilation.executable(lowered(PICTURES), "cpu")
    np.testing.assert_allclose(compiled(KERNEL, PICTURES), lowered(PICTURES).compile()(KERNEL, PICTURES), rtol=1e-4)


def test_a_wrong_value_is_an_error_all_the_same(monkeypatch):
    wrong = {"xla_cpu_experimental_ynn_fusion_type": "NO_SUCH_FUSION"}
    monkeypatch.setitem(compilation.STEPS, "cpu", wrong)
    with pytest.raises(jax.errors.JaxRuntimeError, match="NO_SUCH_FUSION"):
        compilation.executable(lowered(PICTURES), "cpu")


def double(x, times=2):
    return x * times


def test_a_function_that_is_jitted_keeps_its_name_and_counts_its_compilations():
    function = compilation.Jitted(double, compilation.TOKENS, static_argnames="times")
    assert [float(function(x)) for x in (1.0, 2.0)] == [2, 4] and function.compiled == 1
    assert float(function(1.0, times=3)) == 3 and function.compiled == 2
    assert function.__name__ == "double"
    assert float(jax.jit(lambda x: function(x) + 1)(1.0)) == 3 and function.compiled == 2


def test_jitting_leaves_out_what_this_compiler_does_not_know_and_refuses_wrong_values():
    assert float(compilation.Jitted(double, {"cpu": {"xla_of_another_year": True}})(1.0)) == 2
    wrong = {"cpu": {"xla_cpu_experimental_ynn_fusion_type": "NO_SUCH_FUSION"}}
    with pytest.raises(jax.errors.JaxRuntimeError, match="NO_SUCH_FUSION"):
        compilation.Jitted(double, wrong)(1.0)
