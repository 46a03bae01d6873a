"""From traced programs to executables, with the compiler options that pay on each platform; kept for later commands.

Options change how fast a program is, not what it computes: one that another version of the compiler does not know is
left out.
"""

from __future__ import annotations

import functools
import hashlib
import os
import pathlib
import re
from collections.abc import Callable, Mapping
from platform import machine, processor
from typing import Any

import jax

from mmjax.core.folders import cache_path

Options = Mapping[str, Mapping[str, Any]]  # by platform

# XLA:CPU gives convolutions, products and reductions to its new library by default. That takes twice as long for the
# gradient of a convolution's kernel as the one it replaces: the step of the towers takes 0.21 s with these kinds of
# fusion and 0.28 s with all (2 cores).
STEPS: Options = {
    "cpu": {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_DOT,LIBRARY_FUSION_TYPE_REDUCE"},
}
"""For programs that see many rows at once."""

# A call into it costs more than the small reductions of one token: eight rows of 64 tokens took 1.59 s without, 1.66 s
# with it (GPT-2; SmolLM 1.90 and 2.02).
TOKENS: Options = {
    "cpu": {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_DOT,LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"},
}
"""For programs that read all parameters for each token of a few rows."""

# The first state of the demo: 3.4 s instead of 6.8 s to compile, .05 s to run as before.
ONCE: Options = {"cpu": {"xla_backend_optimization_level": 1, "xla_cpu_use_fusion_emitters": False}}
"""For programs that run once."""


def keep_programs() -> None:
    """Lets later commands find again what took more than a second to compile (the step of the demo: half a minute).

    It is kept in the cache folder, apart for each kind of processor: on one that lacks an instruction it would end the
    process. JAX_COMPILATION_CACHE_DIR names another folder, or none when it is empty. What cannot be read or written
    is compiled anew, with a warning of JAX."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ and not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str(cache_path() / f"programs-{_processor()}"))


def _processor() -> str:
    """Some digits that differ between processors for which programs differ."""
    told = machine() + processor()
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = re.findall(r"^(?:model name|flags|Features|CPU part)\s*:.*", cpuinfo.read_text(), re.MULTILINE)
        told += "".join(sorted(set(lines)))
    return hashlib.sha256(told.encode()).hexdigest()[:8]


def executable(lowered: jax.stages.Lowered, platform: str) -> jax.stages.Compiled:
    """Compiles a `lowered` step for `platform`."""
    return _with_what_is_known(lambda options: lowered.compile(compiler_options=options), STEPS.get(platform))


def _with_what_is_known(build: Callable[[Mapping[str, Any] | None], Any], options: Mapping[str, Any] | None) -> Any:
    try:
        return build(options)
    except jax.errors.JaxRuntimeError as error:
        if "No such compile option" not in str(error):
            raise
        return build(None)


class Jitted:
    """`jax.jit(function, **given)` with `options`, which do not count where it is traced as part of something larger.
    The platform is asked for at the first call, not at import."""

    def __init__(self, function: Callable[..., Any], options: Options, **given: Any) -> None:
        functools.update_wrapper(self, function)
        self._options = options
        self._build = functools.partial(jax.jit, function, **given)

    def __call__(self, *args: Any, **named: Any) -> Any:
        traced = any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves((args, named)))
        return (self._plain if traced else self._jitted)(*args, **named)

    @property
    def compiled(self) -> int:
        """How often it was compiled."""
        return self._jitted._cache_size()

    @functools.cached_property
    def _plain(self) -> Any:
        return self._build()

    @functools.cached_property
    def _jitted(self) -> Any:
        def build(options: Mapping[str, Any] | None) -> Any:
            jax.jit(lambda x: x, compiler_options=options).lower(0.0).compile()  # are they known?
            return self._build(compiler_options=options)

        return _with_what_is_known(build, self._options.get(jax.default_backend()))
