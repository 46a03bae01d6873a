"""How this process asks the operating system for memory."""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import os
import platform

import jax

# Names and numbers of malloc.h; the values are explained in `keep_pages`.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def keep_pages() -> bool:
    """Lets freed memory stay with the process, where the CPU is what computes; says whether it did.

    XLA:CPU takes the whole scratch space of a program anew for each call. glibc hands blocks of that size back to the
    operating system, which has to clear every page again: 128,000 page faults for each step of the demo, a quarter of
    its CPU time. Only the arena of the main thread can keep blocks of any size, so the thread that calls a program also
    has to run it: no asynchronous dispatch. All other threads keep arenas of their own. In one for all, every block
    that kernels take and free for a moment would be searched for among the tens of thousands that tracing and compiling
    have left, under one lock: the step took 0.62 s instead of 0.36 s.

    Call it from the main thread, before JAX opens its devices. Does nothing where an accelerator computes, and nothing
    without glibc."""
    if platform.libc_ver()[0] != "glibc" or _accelerator():
        return False
    libc = ctypes.CDLL(None)
    settings = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: 2**31 - 1, _M_TOP_PAD: 2**26}
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    return all(libc.mallopt(name, value) == 1 for name, value in settings.items())


def _accelerator() -> bool:
    """Whether JAX will compute elsewhere than on the CPU, as far as can be told without starting it."""
    asked = os.environ.get("JAX_PLATFORMS", "")
    if asked:
        return asked.split(",")[0] != "cpu"
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    return bool(plugins) or importlib.util.find_spec("libtpu") is not None
