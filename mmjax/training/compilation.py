"""From a traced program to an executable, with the options that pay on each platform."""

from __future__ import annotations

import jax

OPTIONS = {
    # XLA:CPU gives convolutions to its new library by default, which takes twice as long for the gradient of a kernel
    # as the one it replaces; the demo's step takes 0.24 s with these two kinds of fusion and 0.34 s with all (2 cores).
    "cpu": {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_DOT,LIBRARY_FUSION_TYPE_REDUCE"},
}
"""Compiler options by platform."""


def executable(lowered: jax.stages.Lowered, platform: str) -> jax.stages.Compiled:
    """Compiles `lowered` for `platform`. Options that another version of the compiler does not know are left out: they
    change how fast a program is, not what it computes."""
    try:
        return lowered.compile(compiler_options=OPTIONS.get(platform))
    except jax.errors.JaxRuntimeError as error:
        if "No such compile option" not in str(error):
            raise
        return lowered.compile()
