"""Parameters for tests, and modules as one program: eager code is compiled operation by operation."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.core.parameters import unbox


def drawn(module, *inputs, scale=0.3, seed=0):
    """Variables of a module: random ones, also where it starts with zeros. Nothing is compiled."""
    shapes = unbox(jax.eval_shape(lambda: module.init(jax.random.key(0), *inputs)))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(scale * rng.normal(size=leaf.shape), jnp.float32), shapes)


@functools.cache
def applied(module):
    """`module.apply`, compiled once for each shape of its inputs."""
    return jax.jit(module.apply)
