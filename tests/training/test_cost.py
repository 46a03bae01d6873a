"""FLOPs are those the compiler counts where nothing is scanned, and the same number where something is."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core.batch import Batch
from mmjax.core.layout import Layout
from mmjax.core.parameters import declare
from mmjax.training import cost

ROWS, WIDTH, DEPTH = 4, 8, 3


class Layer(nn.Module):
    """Nothing but one matrix product, so that the compiler's count has nothing else in it."""

    @nn.compact
    def __call__(self, x, _=None):
        return x @ declare(self, "kernel", nn.initializers.ones, width=WIDTH, width_=WIDTH), None


class Scanned(nn.Module):
    @nn.compact
    def __call__(self, x):
        layers = nn.scan(
            nn.remat(Layer, prevent_cse=False), {"params": 0}, split_rngs={"params": True}, length=DEPTH,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )  # fmt: skip
        return layers(name="stack")(x, None)[0]


class Unrolled(nn.Module):
    @nn.compact
    def __call__(self, x):
        for _ in range(DEPTH):
            x, _ = Layer()(x)
        return x


class Towers(nn.Module):
    """`image` [B N H W 3] pooled to [B WIDTH], `text` ids as numbers: two components and a product of neither."""

    stack: type[nn.Module]

    @nn.compact
    def __call__(self, batch, train=False):
        x = batch.image.pixels.astype(jnp.float32).mean((1, 2, 3))
        image = self.stack(name="image")(jnp.pad(x, ((0, 0), (0, WIDTH - 3))))
        text = Layer(name="text")(batch.text.ids.astype(jnp.float32))[0]
        return {"similar": image @ text.T}


def compiled_flops(function, *arguments) -> float:
    return jax.jit(function).lower(*arguments).compile().cost_analysis()["flops"]


def shaped(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


CONVOLUTION = {"window_strides": (2, 2), "padding": "VALID", "dimension_numbers": ("NHWC", "HWIO", "NHWC")}


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (lambda a, b: a @ b, (shaped(3, 5), shaped(5, 7))),
        (lambda a, b: jnp.einsum("bthd,bshd->bhts", a, b), (shaped(2, 5, 3, 4), shaped(2, 6, 3, 4))),
        (lambda a, b: jnp.einsum("btd,dhk->bthk", a, b), (shaped(2, 5, 4), shaped(4, 3, 2))),
        (lambda a, b: jax.lax.conv_general_dilated(a, b, **CONVOLUTION), (shaped(2, 9, 9, 3), shaped(3, 3, 3, 5))),
        (
            lambda a, b: jax.lax.conv_general_dilated(a, b, feature_group_count=3, **CONVOLUTION),
            (shaped(2, 9, 9, 3), shaped(3, 3, 1, 6)),
        ),
    ],
)
def test_products_are_what_the_compiler_counts(function, arguments):
    assert sum(cost.flops(function, *arguments).values()) == compiled_flops(function, *arguments)


def test_a_scanned_stack_counts_like_an_unrolled_one():
    counts = {}
    for stack in (Scanned(), Unrolled()):
        params = jax.eval_shape(lambda x, m=stack: nn.unbox(m.init(jax.random.key(0), x)), shaped(ROWS, WIDTH))
        counts[type(stack)] = cost.flops(stack.apply, params, shaped(ROWS, WIDTH))
        exact = compiled_flops(stack.apply, params, shaped(ROWS, WIDTH))
    assert counts[Scanned] == counts[Unrolled] == {cost.REST: exact} == {cost.REST: 2 * ROWS * WIDTH**2 * DEPTH}


def test_custom_gradients_remat_and_jit_count_once():
    @jax.custom_vjp
    def square(x):
        return x @ x

    square.defvjp(lambda x: (x @ x, x), lambda x, g: (g @ x.T + x.T @ g,))
    one = cost.flops(lambda x: x @ x, shaped(6, 6))
    assert cost.flops(square, shaped(6, 6)) == one
    assert cost.flops(jax.checkpoint(jax.jit(square)), shaped(6, 6)) == one
    assert sum(cost.flops(jax.grad(lambda x: square(x).sum()), shaped(6, 6)).values()) == 3 * sum(one.values())


def test_shards_add_up_to_the_whole():
    mesh = Layout().mesh()
    spec = jax.P("data")
    split = jax.shard_map(lambda a, b: a @ b, mesh=mesh, in_specs=(spec, jax.P()), out_specs=spec)
    arguments = shaped(16, 5), shaped(5, 7)
    assert cost.flops(split, *arguments) == cost.flops(jnp.matmul, *arguments)


def test_the_dearest_branch_counts():
    def either(yes, x):
        return jax.lax.cond(yes, lambda x: x @ x @ x, lambda x: x @ x, x)

    assert sum(cost.flops(either, jax.ShapeDtypeStruct((), bool), shaped(5, 5)).values()) == 2 * 2 * 5**3


@pytest.mark.parametrize("stack", [Scanned, Unrolled])
def test_a_models_cost_by_component_and_row(stack):
    spec = Batch.spec(ROWS, text=WIDTH, image=(1, 4, 4))
    model = Towers(stack)
    boxed = jax.eval_shape(lambda b: model.init(jax.random.key(0), b)["params"], spec)
    params = nn.unbox(boxed)
    assert cost.parameters(boxed) == {"image": DEPTH * WIDTH**2, "text": WIDTH**2}
    product = 2 * WIDTH**2
    expected = {"image": DEPTH * product, "text": product, cost.REST: 2 * WIDTH * ROWS}
    assert cost.model_flops(model, params, spec) == expected


def test_a_wrapped_model_is_opened_until_it_branches():
    inner = {"image": {"kernel": np.ones((2, 3))}, "text": {"kernel": np.ones(4)}}
    assert cost.parameters({"base": {"model": inner}}) == {"image": 6, "text": 4}
    assert cost.parameters({"only": {"kernel": np.ones(5)}}) == {"kernel": 5}


def test_bytes_per_device_follow_the_shardings():
    mesh = Layout(fsdp=4).mesh()
    split = jax.sharding.NamedSharding(mesh, jax.P("fsdp"))
    tree = {"split": jax.ShapeDtypeStruct((16, 3), jnp.bfloat16, sharding=split), "whole": shaped(5), "none": None}
    assert cost.device_bytes(tree) == 4 * 3 * 2 + 5 * 4
