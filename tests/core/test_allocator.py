"""A process that computes on the CPU keeps the memory it has freed."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

TOUCH = """
import resource, sys
import numpy as np
from mmjax.core.allocator import keep_pages
kept = keep_pages()
for _ in range(3):
    np.ones(32 << 20, np.uint8)  # written and freed
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    np.ones(32 << 20, np.uint8)
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

STEP = """
import resource, sys
import jax, jax.numpy as jnp
from mmjax.core.allocator import keep_pages
if "keep" in sys.argv:
    keep_pages()
product = jax.jit(lambda x: jnp.tanh(x @ x.T) @ x)  # x @ x.T is 138 MiB of scratch space
x = jax.block_until_ready(jnp.ones((6016, 8)))
for _ in range(3):
    product(x).block_until_ready()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    product(x).block_until_ready()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def told(platforms: str, code: str, *words: str) -> list[str]:
    """What a process of its own prints."""
    environment = {"JAX_PLATFORMS": platforms, "PATH": ""}
    command = [sys.executable, "-c", code, *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout.split()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_blocks_that_come_again_cost_no_page_faults_on_a_cpu():
    kept, count = told("cpu", TOUCH)
    assert kept == "True"
    assert int(count) < 100


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_the_scratch_space_of_a_program_is_kept_between_calls():
    (kept,), (without,) = told("cpu", STEP, "keep"), told("cpu", STEP)
    # A block may still be held when the next call asks for its own: then there are two, once and for all.
    assert 4 * int(kept) < int(without)


def test_nothing_changes_where_an_accelerator_computes():
    kept, count = told("tpu", TOUCH)
    assert kept == "False"
    assert int(count) > 100
