"""One process, eight virtual CPU devices, one persistent compilation cache: set before JAX starts."""

import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
FLAGS = (
    "--xla_force_host_platform_device_count=8",
    # Most of the suite is compilation: of its CPU seconds .58 are left by the first two, .6 of those by the third.
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_use_fusion_emitters=false",
    # Without fusion emitters and with this scheduler, collectives that do not depend on each other run in another order
    # on one virtual device than on the others, which wait for ever: every other time on a busy machine, never since.
    "--xla_cpu_enable_concurrency_optimized_scheduler=false",
)
os.environ.setdefault("XLA_FLAGS", " ".join(FLAGS))
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", "")  # programs that tests start leave nothing in the user's cache
CACHE = pathlib.Path(__file__).parent.parent / ".cache" / "jax"

import jax  # noqa: E402
import pytest  # noqa: E402

from tests.golden.refresh import write_pictures  # noqa: E402

jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.fixture(scope="session")
def user(tmp_path_factory) -> pathlib.Path:
    """Where a user's pictures lie."""
    folder = tmp_path_factory.mktemp("home")
    write_pictures(folder / "my_pictures")
    return folder


@pytest.fixture
def at_home(user, monkeypatch) -> None:
    """Experiments are called there."""
    monkeypatch.chdir(user)
