"""What was compiled once is found again, and nothing that is wrong with it stops a command or changes what it says."""

import os
import pathlib
import subprocess
import sys

SCRIPT = """
import jax
from mmjax.core.compilation import keep_programs

keep_programs()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
found = []
jax.monitoring.register_event_listener(lambda event, **_: found.append(event.endswith("/cache_hits")))
print(jax.jit(lambda x: (x @ x + 1).sum())(jax.numpy.ones((8, 8))), any(found))
"""


def say(cache: pathlib.Path, **env: str) -> list[str]:
    """The value that a new process computes, and whether it found a program."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_"))}
    env = ours | {"MMJAX_CACHE": str(cache), "JAX_PLATFORMS": "cpu", "PYTHONWARNINGS": "ignore"} | env
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=env, capture_output=True, text=True, check=True)
    return done.stdout.split()


def entries(cache: pathlib.Path) -> list[pathlib.Path]:
    return sorted(cache.glob("programs-*/*-cache"))


def test_the_next_process_finds_what_this_one_compiled_and_says_the_same(tmp_path):
    assert say(tmp_path) == ["576.0", "False"] and entries(tmp_path)
    assert say(tmp_path) == ["576.0", "True"]


def test_an_entry_that_a_kill_has_cut_short_is_compiled_anew(tmp_path):
    say(tmp_path)
    for entry in entries(tmp_path):
        entry.write_bytes(entry.read_bytes()[: entry.stat().st_size // 2])
    assert say(tmp_path) == ["576.0", "False"]


def test_without_a_folder_that_can_be_written_everything_is_compiled(tmp_path):
    (tmp_path / "file").write_text("")
    assert say(tmp_path / "file" / "below") == ["576.0", "False"]


def test_the_folder_that_jax_is_told_of_counts_and_an_empty_one_is_none(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    assert say(tmp_path, JAX_COMPILATION_CACHE_DIR=str(elsewhere)) == ["576.0", "False"]
    assert list(elsewhere.glob("*-cache")) and not entries(tmp_path)
    assert say(tmp_path, JAX_COMPILATION_CACHE_DIR="") == ["576.0", "False"] and not entries(tmp_path)
