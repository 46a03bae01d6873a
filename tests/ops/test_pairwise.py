"""Pairwise losses: equal to the published formulas in plain numpy, in every execution, layout and mix of presence."""

from __future__ import annotations

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core.errors import UserError
from mmjax.core.layout import Layout
from mmjax.ops.pairwise import Automatic, Chunked, Full, Relation, Ring, Sigmoid, Softmax, pairwise

ROWS, WIDTH = 32, 12
LOSSES = [Softmax(), Sigmoid()]
LAYOUTS = [Layout(data=8), Layout(data=4, fsdp=2), Layout(data=2, fsdp=2, tensor=2)]
CASES = ["own", "alike", "several", "uneven"]


def embeddings(seed=0, rows=ROWS, dtype=jnp.float32):
    left, right = np.random.default_rng(seed).normal(size=(2, rows, WIDTH)).astype(np.float32)
    left, right = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (left, right))
    return jnp.asarray(left, dtype), jnp.asarray(right, dtype), jnp.float32(7.0), jnp.float32(-2.0)


def relation(case, rows=ROWS, seed=1):
    """own: the diagonal; alike: shared pictures or captions ignored, some codes unknown; several: many positives, some
    samples without any; uneven: modalities absent here and there."""
    rng = np.random.default_rng(seed)
    here = np.ones(rows, bool)
    if case == "own":
        return Relation.of(here, here, alike=np.full((2, rows), -1))
    if case == "alike":
        return Relation.of(here, here, alike=rng.integers(-1, 9, (2, rows)))
    if case == "several":
        return Relation.of(here, here, same=rng.integers(-1, 9, rows), alike=rng.integers(-1, 5, (2, rows)))
    left, right = rng.random((2, rows)) < [[0.6], [0.7]]
    return Relation.of(left, right, same=rng.integers(0, 20, rows), alike=rng.integers(0, 6, (2, rows)))


def kinds(relation):
    """(counted and positive, counted and negative) [B B], straight from the definition."""
    same, alike, left, right = (np.asarray(x) for x in (relation.same, relation.alike, relation.left, relation.right))
    rows = len(same)
    positive, negative = np.zeros((2, rows, rows), bool)
    for i in range(rows):
        for j in range(rows):
            if left[i] and right[j]:
                positive[i, j] = same[i] == same[j] and same[i] >= 0
                shared = any(a == b and a >= 0 for a, b in zip(alike[i], alike[j], strict=True))
                negative[i, j] = not positive[i, j] and not shared
    return positive, negative


def formula(loss, left, right, scale, bias, relation):
    """(total, count, left accuracy, right accuracy, mean positive cosine) in float64."""
    cosine = np.asarray(left, np.float64) @ np.asarray(right, np.float64).T
    logit = float(scale) * cosine + float(bias)
    positive, negative = kinds(relation)
    total, hits, asked = 0.0, [0, 0], [0, 0]
    for way, (z, yes, no) in enumerate([(logit, positive, negative), (logit.T, positive.T, negative.T)]):
        for i in range(len(z)):
            if isinstance(loss, Sigmoid):
                total += np.log1p(np.exp(-z[i][yes[i]])).sum() + np.log1p(np.exp(z[i][no[i]])).sum()
            if yes[i].any():
                asked[way] += 1
                hits[way] += z[i][yes[i]].max() > z[i][no[i]].max(initial=-np.inf)
                if isinstance(loss, Softmax):
                    every = np.exp(z[i][yes[i] | no[i]]).sum()
                    total += -np.mean([np.log(np.exp(value) / every) for value in z[i][yes[i]]])
    return total, sum(asked), hits[0] / asked[0], hits[1] / asked[1], cosine[positive].mean()


@functools.cache
def compiled(loss, execution):
    """Compiled once for all cases of a mesh (which is part of jit's own key)."""

    def value(left, right, scale, bias, relation):
        pairs = pairwise(loss, left, right, scale, bias, relation, execution)
        return pairs.loss.value, pairs

    return jax.jit(jax.value_and_grad(value, argnums=(0, 1, 2, 3), has_aux=True))


def gradients(loss, inputs, relation, execution):
    """((value, Pairs), gradients in left, right, scale and bias)."""
    return compiled(loss, execution)(*inputs, relation)


def assert_close(got, expected, tolerance=1e-5):
    """Every leaf within `tolerance` of the largest entry of what is expected."""
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert np.abs(a - b).max() <= tolerance * max(np.abs(b).max(), 1e-2)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("loss", LOSSES, ids=["softmax", "sigmoid"])
@pytest.mark.parametrize("execution", [Full(), Chunked(pairs=ROWS * 5)], ids=["full", "chunked"])
def test_equals_the_published_formula(loss, case, execution):
    inputs, related = embeddings(), relation(case)
    pairs = jax.jit(pairwise, static_argnums=(0, 6))(loss, *inputs, related, execution)
    reported = (mean.value for mean in (pairs.left_accuracy, pairs.right_accuracy, pairs.cosine))
    got = (pairs.loss.total, pairs.loss.count, *reported)
    np.testing.assert_allclose(got, formula(loss, *inputs, related), rtol=2e-5, atol=1e-6)


def test_sigmoid_on_own_pairs_is_equation_1_of_siglip():
    left, right, scale, bias = embeddings()
    z = 2 * np.eye(ROWS) - 1
    expected = -np.log(1 / (1 + np.exp(z * (-scale * np.asarray(left) @ np.asarray(right).T - bias)))).sum() / ROWS
    got = pairwise(Sigmoid(), left, right, scale, bias, relation("own"), Full()).loss.value
    np.testing.assert_allclose(got, expected, rtol=1e-5)


@pytest.mark.parametrize("loss", LOSSES, ids=["softmax", "sigmoid"])
def test_gradients_of_the_full_form_are_finite_differences(loss):
    inputs, related = embeddings(), relation("uneven")
    _, slopes = gradients(loss, inputs, related, Full())
    rng = np.random.default_rng(5)
    for i, (x, slope) in enumerate(zip(inputs, slopes, strict=True)):
        direction = rng.normal(size=x.shape)

        def mean(step, i=i, x=x, direction=direction):
            moved = [np.asarray(y, np.float64) for y in inputs]
            moved[i] = np.asarray(x, np.float64) + step * direction
            total, count, *_ = formula(loss, *moved, related)
            return total / count

        expected = (mean(1e-5) - mean(-1e-5)) / 2e-5
        assert abs(np.sum(np.asarray(slope) * direction) - expected) <= 1e-4 * max(1.0, abs(expected))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("loss", LOSSES, ids=["softmax", "sigmoid"])
def test_chunks_of_any_size_equal_the_full_form(loss, case):
    inputs, related = embeddings(), relation(case)
    expected = gradients(loss, inputs, related, Full())
    for pairs in (1, ROWS * 5, ROWS * ROWS):  # row by row; a ragged last chunk; all at once
        assert_close(gradients(loss, inputs, related, Chunked(pairs)), expected)


@pytest.mark.parametrize("loss", LOSSES, ids=["softmax", "sigmoid"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=["data8", "data4-fsdp2", "data2-fsdp2-tensor2"])
def test_the_ring_equals_the_full_form(layout, loss):
    """What is right under a mesh without being asked for, and a ring that takes a few rows at a time."""
    for case in ("several", "uneven"):
        inputs, related = embeddings(), relation(case)
        expected = gradients(loss, inputs, related, Full())
        with layout.use(layout.mesh()):
            assert_close(gradients(loss, inputs, related, Automatic()), expected)
            assert_close(gradients(loss, inputs, related, Ring(pairs=6)), expected)


@pytest.mark.parametrize("loss", LOSSES, ids=["softmax", "sigmoid"])
@pytest.mark.parametrize("execution", [Full(), Chunked(pairs=ROWS * 5)], ids=["full", "chunked"])
def test_what_is_absent_has_no_gradient_even_when_it_is_nan(loss, execution):
    left, right, scale, bias = embeddings()
    related = relation("uneven")
    (_, expected), slopes = gradients(loss, (left, right, scale, bias), related, execution)
    broken = jnp.where(related.left[:, None], left, jnp.nan), jnp.where(related.right[:, None], right, jnp.nan)
    (_, pairs), again = gradients(loss, (*broken, scale, bias), related, execution)
    assert_close((pairs, again), (expected, slopes), 0)
    assert not np.any(np.asarray(again[0])[~np.asarray(related.left)])
    assert not np.any(np.asarray(again[1])[~np.asarray(related.right)])


@pytest.mark.parametrize("loss", LOSSES, ids=["softmax", "sigmoid"])
@pytest.mark.parametrize("execution", [Full(), Chunked(pairs=ROWS * 5)], ids=["full", "chunked"])
def test_a_batch_without_any_pair_counts_nothing_and_stays_finite(loss, execution):
    here = np.ones(ROWS, bool)
    (value, pairs), slopes = gradients(loss, embeddings(), Relation.of(here, ~here), execution)
    assert float(value) == 0.0 and float(pairs.loss.count) == 0.0
    assert all(not np.any(np.asarray(slope)) for slope in slopes)


@pytest.mark.parametrize("loss", LOSSES, ids=["softmax", "sigmoid"])
def test_the_order_of_rows_does_not_matter(loss):
    (left, right, scale, bias), related = embeddings(), relation("uneven")
    order = np.random.default_rng(3).permutation(ROWS)
    _, slopes = gradients(loss, (left, right, scale, bias), related, Chunked(ROWS * 5))
    moved = jax.tree.map(lambda x: x[order], related)
    _, again = gradients(loss, (left[order], right[order], scale, bias), moved, Chunked(ROWS * 5))
    assert_close(again, (slopes[0][order], slopes[1][order], *slopes[2:]))


@pytest.mark.parametrize("loss", LOSSES, ids=["softmax", "sigmoid"])
def test_bfloat16_embeddings_are_summed_in_float32(loss):
    left, right, scale, bias = embeddings(dtype=jnp.bfloat16)
    exact = left.astype(jnp.float32), right.astype(jnp.float32), scale, bias
    (value, _), slopes = gradients(loss, (left, right, scale, bias), relation("uneven"), Chunked(ROWS * 5))
    (expected, _), reference = gradients(loss, exact, relation("uneven"), Full())
    assert slopes[0].dtype == slopes[1].dtype == jnp.bfloat16 and value.dtype == jnp.float32
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert_close(slopes[:2], reference[:2], 2**-8)  # one rounding to bfloat16 at the end
    assert_close(slopes[2:], reference[2:])


@pytest.mark.parametrize("scale", [0.01, 100.0, 1e4])
def test_extreme_temperatures_stay_finite_and_equal(scale):
    left, right, _, bias = embeddings()
    inputs = left, right, jnp.float32(scale), bias
    expected = gradients(Softmax(), inputs, relation("uneven"), Full())
    known = max(1e-5, scale * np.finfo(np.float32).eps)  # a logit of 1e4 is itself known to 1e-3 in float32
    assert_close(gradients(Softmax(), inputs, relation("uneven"), Chunked(ROWS * 5)), expected, known)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(expected))


@pytest.mark.parametrize("loss", LOSSES, ids=["softmax", "sigmoid"])
def test_the_ring_composes_with_a_model_on_both_sides(loss):
    """As in exact gradient accumulation: vjp through the loss first, then the cotangents through the model."""
    (left, right, scale, bias), related = embeddings(), relation("several")
    kernel = jnp.asarray(np.random.default_rng(9).normal(size=(WIDTH, WIDTH)), jnp.float32) / WIDTH**0.5

    def model(kernel):
        return tuple(x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (left @ kernel, right @ kernel.T))

    def value(embedded, execution):
        return pairwise(loss, *embedded, scale, bias, related, execution).loss.value

    def in_two_steps(kernel):
        embedded, back = jax.vjp(model, kernel)
        return back(jax.grad(value)(embedded, Ring()))[0]

    expected = jax.grad(lambda kernel: value(model(kernel), Full()))(kernel)
    layout = Layout(data=2, fsdp=2, tensor=2)
    with layout.use(layout.mesh()):
        assert_close(jax.jit(in_two_steps)(kernel), expected)
        assert_close(jax.jit(jax.grad(lambda kernel: value(model(kernel), Ring())))(kernel), expected)


def compiled_ring(loss, devices, rows):
    """The compiled value and gradients with `rows` rows on each of `devices` devices."""
    layout = Layout()
    mesh = layout.mesh(jax.devices()[:devices])
    batch, whole = layout.batch_sharding(mesh), jax.NamedSharding(mesh, jax.P())

    def leaf(shape, dtype, sharding):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    count = rows * devices
    side, scalar = leaf((count, WIDTH), jnp.float32, batch), leaf((), jnp.float32, whole)
    here = leaf((count,), jnp.bool_, batch)
    codes = Relation(leaf((count,), jnp.int32, batch), leaf((count, 1), jnp.int32, batch), here, here)

    def value(left, right, scale, bias, relation):
        return pairwise(loss, left, right, scale, bias, relation, Ring()).loss.value

    shardings = (whole, (batch, batch, whole, whole))
    step = jax.jit(jax.value_and_grad(value, argnums=(0, 1, 2, 3)), out_shardings=shardings)
    with layout.use(mesh):
        return step.lower(side, side, scalar, scalar, codes).compile()


@pytest.mark.parametrize("loss", LOSSES, ids=["softmax", "sigmoid"])
def test_the_ring_needs_the_same_memory_on_any_number_of_devices_and_gathers_nothing(loss):
    programs = [compiled_ring(loss, devices, rows=256) for devices in (2, 4, 8)]
    memory = [program.memory_analysis().temp_size_in_bytes for program in programs]
    assert max(memory) <= 1.02 * min(memory)
    for program in programs:
        text = program.as_text()
        assert not re.search(r"all-gather|all-to-all", text)
        assert "collective-permute" in text


def test_the_chunked_form_holds_one_chunk_of_pairs():
    def memory(execution, rows):
        inputs = embeddings(rows=rows)
        step = jax.jit(jax.grad(lambda *xs: pairwise(Softmax(), *xs, relation("own", rows), execution).loss.value))
        return step.lower(*inputs).compile().memory_analysis().temp_size_in_bytes

    pairs = 2**16
    assert memory(Full(), 2048) >= 4 * 2048**2
    assert memory(Chunked(pairs), 2048) <= 2**21 + 12 * 4 * pairs


def test_faults_are_told():
    left, right, scale, bias = embeddings()
    with pytest.raises(UserError, match=r"left \(32, 12\) and right \(31, 12\)"):
        pairwise(Softmax(), left, right[1:], scale, bias, relation("own"))
    with pytest.raises(UserError, match="a ring needs rows split over devices"):
        pairwise(Softmax(), left, right, scale, bias, relation("own"), Ring())
    layout = Layout(data=8)
    with layout.use(layout.mesh()), pytest.raises(UserError, match="30 rows cannot be dealt to the 8 devices of data"):
        cut = dataclasses.replace(relation("own", 30))
        pairwise(Softmax(), left[:30], right[:30], scale, bias, cut)
