"""Layouts are judged from shapes: what fits is split as the rules say, what does not is named."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from mmjax.core.errors import UserError
from mmjax.core.layout import AXES, RULES, Layout, batch_axes, constrain
from mmjax.core.parameters import DIMS, Declared
from mmjax.core.pytrees import flatten_names


def box(dims: str, *shape: int) -> Declared:
    return Declared(jax.ShapeDtypeStruct(shape, jnp.float32), tuple(dims.split()))


PARAMS = {
    "attention": {"query": box("width heads head_dim", 64, 8, 16)},
    "mlp": {"up": box("width mlp", 64, 256), "bias": box("mlp", 256)},
    "embedding": box("vocab width", 1000, 64),
    "scale": Declared(jax.ShapeDtypeStruct((), jnp.float32), ()),
}


def test_every_dimension_name_has_a_rule():
    assert set(DIMS) <= {name for name, _ in RULES}
    assert {axis for _, axes in RULES for axis in axes} <= set(AXES)


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        (Layout(), {"attention/query": P(None, None, None), "mlp/up": P(None, None), "scale": P()}),
        (
            Layout(tensor=4),
            {"attention/query": P(None, "tensor", None), "mlp/up": P(None, "tensor"), "mlp/bias": P("tensor")},
        ),
        (Layout(fsdp=8, fsdp_floor=1), {"mlp/up": P(None, "fsdp"), "embedding": P("fsdp", None), "scale": P()}),
        (Layout(fsdp=8, fsdp_floor=10_000), {"mlp/bias": P(None), "mlp/up": P(None, "fsdp")}),
        (Layout(fsdp=2, tensor=4, fsdp_floor=1), {"mlp/up": P("fsdp", "tensor"), "mlp/bias": P(("tensor", "fsdp"))}),
    ],
)
def test_where_parameters_lie(layout, expected):
    found = flatten_names(layout.specs(PARAMS, layout.sizes(8)), is_leaf=lambda x: isinstance(x, P))
    assert {name: found[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("layout", "devices", "message"),
    [
        (Layout(data=3), 8, "data=3 does not divide 8 devices; the product of the axes must be 8"),
        (Layout(data=-1, fsdp=3), 8, "fsdp=3 does not divide 8 devices"),
        (Layout(data=-1, fsdp=-1), 8, "only one axis may be -1; got data and fsdp"),
        (Layout(data=1, tensor=0), 1, "positive.*tensor=0"),
        (Layout(data=1, fsdp=-2), 1, "positive.*fsdp=-2"),
        (Layout(data=2), 1, "1 device;"),
    ],
)
def test_axes_that_cannot_be_dealt_out(layout, devices, message):
    with pytest.raises(UserError, match=message):
        layout.sizes(devices)


@given(st.lists(st.sampled_from([1, 2, 4]), min_size=6, max_size=6), st.integers(0, 5))
def test_sizes_multiply_to_the_devices(sizes, free):
    devices = int(np.prod(sizes))
    asked = [-1 if i == free else size for i, size in enumerate(sizes)]
    layout = Layout(slices=asked[0], data=asked[1], fsdp=asked[2], expert=asked[3], context=asked[4], tensor=asked[5])
    assert list(layout.sizes(devices).values()) == sizes


def test_a_dimension_that_its_axis_does_not_divide_is_named():
    with pytest.raises(
        UserError, match=r"attention/query \(64, 6, 16\): dimension heads=6 .*tensor=4; choose a divisor of 6"
    ):
        Layout(tensor=4).specs(
            {"attention": {"query": box("width heads head_dim", 64, 6, 16)}}, Layout(tensor=4).sizes(8)
        )


def test_two_dimensions_on_one_axis_are_named():
    with pytest.raises(UserError, match=r"odd \(8, 8\): dimensions heads and mlp both go to axis tensor"):
        Layout(tensor=4).specs({"odd": box("heads mlp", 8, 8)}, Layout(tensor=4).sizes(8))


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ((("width", ("tensr",)),), "rule for width: no mesh axis is called 'tensr'; did you mean tensor"),
        ((("wdith", ()),), "p: no rule for dimension is called 'width'; did you mean wdith"),
    ],
)
def test_a_wrong_rule_is_named(rules, message):
    with pytest.raises(UserError, match=message):
        Layout(rules=rules).specs({"p": box("width", 8)}, Layout().sizes(1))


def test_rows_that_cannot_be_dealt_out():
    Layout(fsdp=2).check_rows(16, 8)
    with pytest.raises(UserError, match="12 rows cannot be split over data=4 x fsdp=2; make it a multiple of 8"):
        Layout(fsdp=2).check_rows(12, 8)


@given(
    st.sampled_from(
        [Layout(), Layout(fsdp=4), Layout(tensor=2), Layout(fsdp=2, tensor=2), Layout(fsdp=8, fsdp_floor=1)]
    )
)
def test_no_element_is_lost_or_doubled_where_it_is_split(layout):
    """Shards of the whole mesh, counted once per distinct place, hold every element of every parameter."""
    mesh = layout.mesh()
    for name, sharding in flatten_names(layout.shardings(PARAMS, mesh)).items():
        shape = flatten_names(PARAMS, is_leaf=lambda x: isinstance(x, Declared))[name].value.shape
        places = {
            tuple(s.indices(n) for s, n in zip(i, shape, strict=True))
            for i in sharding.devices_indices_map(shape).values()
        }
        assert sum(np.prod([len(range(*part)) for part in place]) for place in places) == np.prod(shape)


def test_the_batch_lies_over_data_and_fsdp():
    layout = Layout(fsdp=2, tensor=2)
    assert layout.batch_spec(layout.mesh()) == P(("data", "fsdp"))
    assert Layout(tensor=8).batch_spec(Layout(tensor=8).mesh()) == P(None)


def test_inside_use_the_traced_code_knows_the_layout():
    layout = Layout(fsdp=2, tensor=2)
    seen = []

    def function(x):
        seen.append(batch_axes())
        return constrain(x, "batch", "mlp")

    x = jnp.ones((8, 6))
    with layout.use(layout.mesh()):
        y = jax.jit(function)(x)
    assert seen == [("data", "fsdp")] and y.sharding.spec == P(("data", "fsdp"), "tensor")
    assert batch_axes() == () and constrain(x, "batch", "mlp") is x


def test_activations_may_be_ragged():
    layout = Layout(tensor=4)
    with layout.use(layout.mesh()):
        y = jax.jit(lambda x: constrain(x, "batch", "mlp"))(jnp.ones((3, 6)))
    assert np.array_equal(y, np.ones((3, 6)))


def test_explain_counts_what_each_device_holds():
    text = Layout(tensor=4, fsdp_floor=10**9).explain(PARAMS, 8)
    assert "mesh data=2 x tensor=4" in text
    row = next(line for line in text.splitlines() if line.startswith("mlp/up"))
    assert "64x256" in row and "-, tensor" in row and row.endswith("4,096")
