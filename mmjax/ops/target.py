"""What a program that is being traced will run on."""

from __future__ import annotations

import jax


def target() -> str:
    """The platform: that of the mesh in use, whose devices need not be here (a program may be compiled ahead of time
    for others), else JAX's default."""
    device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
    return jax.default_backend() if device is None else device.platform
