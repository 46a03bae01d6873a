"""How this process asks the operating system for memory."""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import os
import platform

# Names and numbers of malloc.h; the values are explained in `keep_pages`.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8


def keep_pages() -> bool:
    """Lets freed memory stay with the process, where the CPU is what computes; says whether it did.

    XLA:CPU takes the whole scratch space of a program anew for each call. glibc hands blocks of that size back to the
    operating system, which has to clear every page again: a quarter of the time of the demo's step (58,000 page faults,
    0.13 of 0.5 CPU seconds). One arena, because only the first can keep blocks of any size. Call it before JAX starts:
    threads that already have an arena stay with it. Does nothing where an accelerator computes (many threads that read
    data do better with arenas of their own), and nothing without glibc."""
    if platform.libc_ver()[0] != "glibc" or _accelerator():
        return False
    libc = ctypes.CDLL(None)
    settings = {_M_ARENA_MAX: 1, _M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: 2**31 - 1, _M_TOP_PAD: 2**26}
    return all(libc.mallopt(name, value) == 1 for name, value in settings.items())


def _accelerator() -> bool:
    """Whether JAX will compute elsewhere than on the CPU, as far as can be told without starting it."""
    asked = os.environ.get("JAX_PLATFORMS", "")
    if asked:
        return asked.split(",")[0] != "cpu"
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    return bool(plugins) or importlib.util.find_spec("libtpu") is not None
