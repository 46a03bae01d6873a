"""Rows, arrays and a comparison that the tests of exact attention kernels share."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.core.tokens import Pattern, Places
from mmjax.ops.attention import attend
from mmjax.ops.attention_dense import weigh

LENGTH = 40

attended = jax.jit(attend, static_argnames=("pattern", "kernel", "softcap"))


def row(*lengths, prefix=0, length=LENGTH):
    """Samples of these lengths, then padding: each a prefix that sees itself, then causal."""
    segment, position = np.zeros(length, int), np.zeros(length, int)
    start = 0
    for number, size in enumerate(lengths):
        segment[start : start + size], position[start : start + size] = number + 1, np.arange(size)
        start += size
    return segment > 0, np.maximum(position - prefix + 1, 0), segment, position, np.zeros(length, int)


def rows(*each):
    return Places(*(jnp.asarray(np.stack(x)) for x in zip(*each, strict=True)))


LAYOUTS = {
    "causal": rows(row(17, 9, 11), row(LENGTH)),
    "prefix": rows(row(23, 15, prefix=9), row(5, 30, prefix=7)),
    "bidirectional": rows(row(17, 9, 11, prefix=99), row(30, prefix=99)),
}
HOLES = LAYOUTS["prefix"].replace(valid=LAYOUTS["prefix"].valid.at[:, 3:6].set(False))
LAYOUTS["holes"] = HOLES
LAYOUTS["not in order"] = jax.tree.map(lambda x: x[:, np.random.default_rng(0).permutation(LENGTH)], HOLES)


def arrays(seed=0, heads=4, groups=2, length=LENGTH, width=8, batch=2):
    rng = np.random.default_rng(seed)
    return tuple(jnp.asarray(rng.normal(size=(batch, n, length, width)), jnp.float32) for n in (heads, groups, groups))


@dataclasses.dataclass(frozen=True)
class AllPairs:
    """What a kernel with a visibility of its own has to equal."""

    kernel: object
    blocks: int | None = None

    def __call__(self, q, k, v, query, key, pattern, scale, softcap):
        see = self.kernel.see(pattern) if self.blocks is None else self.kernel.see(pattern, self.blocks)
        return weigh(q, k, v, see(query, key), scale, softcap)


@functools.cache
def compiled(kernel, pattern=Pattern(), softcap=None):
    """(arrays, places) -> outputs and gradients."""

    def loss(parts, places):
        out = attend(*parts, places, pattern=pattern, kernel=kernel, softcap=softcap)
        return jnp.sum(jnp.sin(3 * out)), out

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def assert_agree(kernel, reference, places, pattern=Pattern(), softcap=None):
    (_, out), slopes = compiled(kernel, pattern, softcap)(arrays(), places)
    (_, expected), expected_slopes = compiled(reference, pattern, softcap)(arrays(), places)
    np.testing.assert_allclose(out, expected, atol=1e-5)
    assert not np.any(np.asarray(out).swapaxes(1, 2)[~np.asarray(places.valid)])
    for got, wanted in zip(slopes, expected_slopes, strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-5)
