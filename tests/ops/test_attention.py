"""Attention kernels agree with a loop over the published formula, under every pattern."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core.tokens import Pattern, Places, visible
from mmjax.ops.attention import Auto, Chunked, Reference, attend
from tests.ops.attention_cases import attended


def places_of(rng, batch=2, length=13, samples=2):
    segment = np.sort(rng.integers(0, samples + 1, (batch, length)))[:, ::-1].copy()
    position = np.broadcast_to(np.arange(length), (batch, length))
    block = np.maximum(position - rng.integers(0, length), 0)
    kind = rng.integers(0, 2, (batch, length))
    return Places(*(jnp.asarray(x) for x in (segment > 0, block, segment, position, kind)))


def arrays(rng, heads=4, groups=2, queries=13, keys=13, width=8):
    shape = lambda n, t: rng.normal(size=(2, n, t, width)).astype(np.float32)  # noqa: E731
    return shape(heads, queries), shape(groups, keys), shape(groups, keys)


def by_hand(q, k, v, seen):
    """softmax(q k / sqrt(K)) v, one query at a time."""
    out = np.zeros_like(q)
    for b, h, t in np.ndindex(q.shape[:3]):
        group = h // (q.shape[1] // k.shape[1])
        keys = np.flatnonzero(seen[b, t])
        if len(keys):
            scores = np.exp(k[b, group, keys] @ q[b, h, t] / np.sqrt(q.shape[-1]))
            out[b, h, t] = scores @ v[b, group, keys] / scores.sum()
    return out


PATTERNS = [Pattern(), Pattern(window=3), Pattern(hidden=(("text", "image"),))]


@pytest.mark.parametrize("pattern", PATTERNS, ids=["full", "window", "hidden"])
@pytest.mark.parametrize("kernel", [Reference(), Chunked(queries=4), Chunked(queries=64), Auto()], ids=str)
def test_kernels_compute_the_formula(kernel, pattern):
    rng = np.random.default_rng(0)
    places, (q, k, v) = places_of(rng), arrays(rng)
    expected = by_hand(q, k, v, np.asarray(visible(places, places, pattern)))
    got = attended(*map(jnp.asarray, (q, k, v)), places, pattern=pattern, kernel=kernel)
    np.testing.assert_allclose(got, expected, atol=2e-6)


def test_chunked_gradients_equal_the_reference():
    rng = np.random.default_rng(1)
    places, parts = places_of(rng), tuple(map(jnp.asarray, arrays(rng)))

    def loss(kernel):
        return jax.jit(jax.grad(lambda p: jnp.sum(jnp.sin(attend(*p, places, kernel=kernel)))))(parts)

    for dense, chunked in zip(loss(Reference()), loss(Chunked(queries=5)), strict=True):
        np.testing.assert_allclose(chunked, dense, atol=1e-5)


def test_a_query_that_sees_nothing_gives_zero_and_finite_gradients():
    rng = np.random.default_rng(2)
    parts = tuple(map(jnp.asarray, arrays(rng)))
    nothing = dataclasses.replace(places_of(rng), valid=jnp.zeros((2, 13), bool))
    loss = lambda *p: (jnp.sum(out := attend(*p, nothing)), out)  # noqa: E731
    slopes, out = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(*parts)
    assert not np.any(out)
    assert all(np.all(np.isfinite(g)) for g in slopes)


def test_cross_attention_uses_the_keys_places():
    rng = np.random.default_rng(3)
    q, k, v = arrays(rng, queries=5, keys=9)
    query, key = Places.all_of("text", 2, 5), places_of(rng, length=9, samples=1)
    key = dataclasses.replace(key, block=jnp.zeros_like(key.block))
    expected = by_hand(q, k, v, np.asarray(visible(query, key)))
    np.testing.assert_allclose(attended(*map(jnp.asarray, (q, k, v)), query, key), expected, atol=2e-6)


def test_chunked_memory_grows_linearly_with_length():
    def temporary(kernel, length):
        q = jax.ShapeDtypeStruct((1, 2, length, 16), jnp.float32)
        loss = lambda q, k, v: jnp.sum(attend(q, k, v, Places.all_of("text", 1, length).causal(), kernel=kernel))  # noqa: E731
        compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(q, q, q).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary(Chunked(128), 4096) < 2.5 * temporary(Chunked(128), 2048)
    assert temporary(Chunked(128), 4096) < temporary(Reference(), 4096) / 8


def test_bfloat16_accumulates_in_float32():
    rng = np.random.default_rng(4)
    q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in arrays(rng, keys=2048))
    exact = attended(*(x.astype(jnp.float32) for x in (q, k, v)))
    assert attended(q, k, v).dtype == jnp.bfloat16
    np.testing.assert_allclose(attended(q, k, v).astype(jnp.float32), exact, atol=0.01)
