"""Linear and low-rank attention: by hand, packed as unpacked, and near to softmax where that is what they are for."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core.errors import UserError
from mmjax.core.tokens import Pattern, Places, visible
from mmjax.ops.attention import Reference, attend
from mmjax.ops.attention_blocks import BigBird, BlockSparse
from mmjax.ops.attention_linear import Elu, Favor, Linear
from mmjax.ops.attention_lowrank import Nystrom, Pooled
from mmjax.ops.attention_sliding import Sliding
from tests.ops.attention_cases import attended

LENGTH = 40


def sample(number, size, prefix):
    """Places of one sample: a prefix that sees itself, then causal."""
    position = np.arange(size)
    segment = np.full(size, number)
    return Places(
        *map(jnp.asarray, (segment > 0, np.maximum(position - prefix + 1, 0), segment, position, 0 * segment))
    )


def packed(*samples):
    """One row of them."""
    return jax.tree.map(lambda *x: jnp.concatenate(x)[None], *samples)


ROWS = {
    "causal": packed(sample(1, 17, 0), sample(2, 9, 0), sample(0, 5, 0), sample(3, 9, 0)),
    "prefix": packed(sample(1, 25, 13), sample(2, 10, 4), sample(0, 5, 0)),
    "bidirectional": packed(sample(1, 17, 99), sample(2, 19, 99), sample(0, 4, 0)),
}
HOLES = ROWS["prefix"].replace(valid=ROWS["prefix"].valid.at[:, 7:12].set(False))
ROWS["holes"] = HOLES
ROWS["not in order"] = jax.tree.map(lambda x: x[:, ::-1], HOLES)


def arrays(seed=0, heads=4, groups=2, length=LENGTH, width=8, scale=1.0):
    rng = np.random.default_rng(seed)
    made = (rng.normal(size=(1, n, length, width)) * scale for n in (heads, groups, groups))
    return tuple(jnp.asarray(x, jnp.float32) for x in made)


def by_hand(q, k, v, seen):
    """sum phi(q) phi(k) v / sum phi(q) phi(k), with phi(x) = elu(x) + 1."""
    k, v = (jnp.repeat(x, q.shape[1] // x.shape[1], axis=1) for x in (k, v))
    phi = lambda x: jnp.where(x > 0, x + 1, jnp.exp(x))  # noqa: E731
    weights = jnp.where(seen[:, None], jnp.einsum("bhqk,bhsk->bhqs", phi(q), phi(k)), 0)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    return jnp.einsum("bhqs,bhsk->bhqk", weights, v) / jnp.where(total > 0, total, 1)


@functools.cache
def compiled(kernel, pattern=Pattern()):
    """(arrays, places) -> outputs and gradients; `kernel` None is the formula by hand."""

    def loss(parts, places):
        if kernel is None:
            out = by_hand(*parts, visible(places, places))
        else:
            out = attend(*parts, places, pattern=pattern, kernel=kernel)
        return jnp.sum(jnp.sin(3 * out)), out

    grad = jax.jit(jax.value_and_grad(loss, has_aux=True))

    def run(parts, places):
        (_, out), slopes = grad(parts, places)
        return out, slopes

    return run


@pytest.mark.parametrize("name", ROWS)
def test_linear_attention_is_the_formula_under_every_order(name):
    (out, slopes), (expected, wanted) = (compiled(kernel)(arrays(), ROWS[name]) for kernel in (Linear(chunk=4), None))
    np.testing.assert_allclose(out, expected, atol=1e-5)
    assert not np.any(np.asarray(out).swapaxes(1, 2)[~np.asarray(ROWS[name].valid)])
    for a, b in zip(slopes, wanted, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_linear_attention_continues_a_row_that_a_cache_holds():
    places, (q, k, v) = ROWS["causal"], arrays()
    whole = attended(q, k, v, places, kernel=Linear(chunk=4))
    last = jax.tree.map(lambda x: x[:, -1:], places)
    np.testing.assert_allclose(attended(q[:, :, -1:], k, v, last, places, kernel=Linear()), whole[:, :, -1:], atol=1e-5)


def error(kernel, places, parts):
    """Relative to the reference, root mean square."""
    got, exact = (np.asarray(attended(*parts, places, kernel=each)) for each in (kernel, Reference()))
    return float(np.linalg.norm(got - exact) / np.linalg.norm(exact))


def test_the_performer_comes_near_to_softmax_with_more_features():
    parts = (np.concatenate([x, x]) for x in arrays(scale=0.4))  # the variance grows as exp(|q + k|^2)
    parts, places = tuple(parts), jax.tree.map(lambda *x: np.concatenate(x), ROWS["causal"], ROWS["bidirectional"])

    def mean(features):
        return np.mean([error(Linear(Favor(features, seed), chunk=8), places, parts) for seed in range(2)])

    few, more, many = mean(16), mean(256), mean(4096)
    assert more < few / 2 and many < more / 3 and many < 0.02


def test_the_performers_directions_are_orthogonal_and_fixed_by_the_seed():
    drawn = Favor(20, seed=3).directions(8)
    products = drawn[:8] @ drawn[:8].T
    np.testing.assert_allclose(products - np.diag(np.diag(products)), 0, atol=1e-5)
    assert drawn.shape == (20, 8)
    many = Favor(20_000).directions(8)
    np.testing.assert_allclose(many.mean(axis=0), 0, atol=0.03)
    np.testing.assert_allclose(many.T @ many / 20_000, np.eye(8), atol=0.03)
    np.testing.assert_array_equal(drawn, Favor(20, seed=3).directions(8))
    assert np.any(drawn != Favor(20, seed=4).directions(8))


def test_favor_estimates_the_exponential():
    q, k, _ = arrays(heads=2, groups=2, length=6, scale=0.5)
    features, valid = Favor(20_000), jnp.ones((1, 6), bool)
    phi = features.queries(q, 0.25)
    got = jnp.einsum("bhqm,bhsm->bhqs", phi, features.keys(k, valid, 0.25))
    exact = jnp.exp(jnp.einsum("bhqk,bhsk->bhqs", q, k) * 0.25)
    got, exact = (x / jnp.sum(x, axis=-1, keepdims=True) for x in (got, exact))
    np.testing.assert_allclose(got, exact, rtol=0.1)


def test_as_many_means_as_places_lose_nothing():
    assert error(Pooled(landmarks=19, samples=3), ROWS["bidirectional"], arrays()) < 1e-5
    errors = [error(Pooled(landmarks=n), ROWS["bidirectional"], arrays()) for n in (2, 6, 18)]
    assert errors[0] > errors[1] > errors[2] > 1e-3


def test_as_many_landmarks_as_places_and_a_converged_inverse_lose_nothing():
    kernels = [Nystrom(landmarks=19, iterations=n, samples=3) for n in (2, 6, 24)]
    errors = [error(kernel, ROWS["bidirectional"], arrays()) for kernel in kernels]
    assert errors[0] > errors[1] > errors[2] and errors[2] < 1e-3
    assert error(Nystrom(landmarks=4), ROWS["bidirectional"], arrays()) < 1


@pytest.mark.parametrize("kernel", [Pooled(4), Nystrom(4)], ids=str)
@pytest.mark.parametrize("name", ["causal", "prefix", "not in order"])
def test_low_rank_attention_never_sees_ahead_of_causal_order(kernel, name):
    assert error(kernel, ROWS[name], arrays()) < 1e-5


@pytest.mark.parametrize("kernel", [Pooled(4, samples=1), Nystrom(4, samples=1)], ids=str)
def test_low_rank_attention_with_more_samples_than_there_is_room_for_is_exact(kernel):
    assert error(kernel, ROWS["bidirectional"], arrays()) < 1e-5


ALL = [
    Sliding(leading=2, queries=4),
    BlockSparse(BigBird(), size=4),
    Linear(chunk=4),
    Linear(Favor(64), chunk=4),
    Pooled(4),
    Nystrom(4),
]


PATTERN = {Sliding: Pattern(window=6)}


@pytest.mark.parametrize("prefix", [0, 5, 99])
@pytest.mark.parametrize("kernel", ALL, ids=str)
def test_packed_samples_are_as_by_themselves(kernel, prefix):
    run, sizes, parts = compiled(kernel, PATTERN.get(type(kernel), Pattern())), (17, 9, 14), arrays()
    starts = [sum(sizes[:i]) for i in range(len(sizes))]

    def thrice(x):
        return np.concatenate([x] * 3)  # as many rows as there are samples: one program for both

    def apart(x):
        """[3 . 40 K] -> the same: each sample in a row of its own, and padding."""
        each = [np.asarray(x)[:1, :, s : s + n] for s, n in zip(starts, sizes, strict=True)]
        return np.concatenate([np.pad(y, ((0, 0), (0, 0), (0, LENGTH - y.shape[2]), (0, 0))) for y in each])

    together = packed(*(sample(i + 1, n, prefix) for i, n in enumerate(sizes)))
    out, slopes = run(tuple(map(thrice, parts)), jax.tree.map(thrice, together))
    assert np.all(np.isfinite(out)) and np.any(out)
    alone = [packed(sample(1, n, prefix), sample(0, LENGTH - n, 0)) for n in sizes]
    by_themselves, wanted = run(tuple(map(apart, parts)), jax.tree.map(lambda *x: np.concatenate(x), *alone))
    np.testing.assert_allclose(apart(out), by_themselves, atol=1e-5)
    for a, b in zip(slopes, wanted, strict=True):
        np.testing.assert_allclose(apart(a), b, atol=1e-5 * max(1, np.abs(b).max()))


@pytest.mark.parametrize("kernel", ALL, ids=str)
def test_queries_that_see_nothing_give_zeros_and_finite_gradients(kernel):
    places = ROWS["causal"].replace(valid=jnp.zeros((1, LENGTH), bool))
    out, slopes = compiled(kernel, PATTERN.get(type(kernel), Pattern()))(arrays(), places)
    assert not np.any(out)
    assert all(np.all(np.isfinite(x)) for x in slopes)


@pytest.mark.parametrize("kernel", [Linear(Elu()), Linear(Favor()), Pooled(), Nystrom()], ids=str)
def test_what_they_cannot_do_is_refused(kernel):
    name, parts = type(kernel).__name__, arrays()
    with pytest.raises(UserError, match=rf"{name} cannot keep to a window \(8\); choose kernel=Auto\(\), which can"):
        attended(*parts, ROWS["causal"], pattern=Pattern(window=8), kernel=kernel)
    with pytest.raises(UserError, match=f"{name} cannot hide image from text"):
        attended(*parts, ROWS["causal"], pattern=Pattern(hidden=(("text", "image"),)), kernel=kernel)
