"""How everything here is measured. Standard library only, so that a peer's environment can import it too.

Two ways of doing one thing are timed in processes of their own (thread pools of two libraries in one process fight), in
turns (A, B, A, B, ..., so that a slow minute hits both), on the same cores; minimum and median are given, and process
CPU time beside wall time. A run says how busy the machine was and how far the rounds of one side lay apart: above 10 %,
or with other work on the machine, its timings are coarse, and it says so.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
STEADY = 0.10  # rounds of one side may differ by this much
QUIET_LOAD = 1.5


def machine() -> dict[str, Any]:
    """What a figure depends on: processor, cores, memory, load, Python."""
    cpu = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    models = [line.split(":", 1)[1].strip() for line in cpu.splitlines() if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
    }


# ----------------------------------------------------------------------------------------------------- inside a process


def time_calls(call: Callable[[], Any], calls: int, warmup: int = 2) -> dict[str, list[float]]:
    """Wall and CPU seconds of each of `calls` calls; `call` must return only when its work is done."""
    for _ in range(warmup):
        call()
    found: dict[str, list[float]] = {"wall_s": [], "cpu_s": []}
    for _ in range(calls):
        wall, cpu = time.perf_counter(), time.process_time()
        call()
        found["wall_s"].append(time.perf_counter() - wall)
        found["cpu_s"].append(time.process_time() - cpu)
    return found


def peak_mib() -> float:
    """Largest resident memory of this process so far."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def hand_over(found: Mapping[str, Any]) -> None:
    """Gives a result to the process that started this one: the last line of its output."""
    print(json.dumps(found), flush=True)


# ---------------------------------------------------------------------------------------------------- between processes


@dataclasses.dataclass(frozen=True)
class Timing:
    """All calls of one side over all rounds."""

    wall_s: float  # minimum
    median_s: float
    cpu_s: float  # minimum
    spread: float  # how far the rounds' minima lie apart, relative to the least
    facts: dict[str, Any]  # whatever else the last round handed over

    @classmethod
    def of(cls, rounds: Sequence[Mapping[str, Any]]) -> Timing:
        """From what each round handed over."""
        walls = [second for found in rounds for second in found["wall_s"]]
        least = [min(found["wall_s"]) for found in rounds]
        cpu = min(second for found in rounds for second in found["cpu_s"])
        facts = {key: value for key, value in rounds[-1].items() if key not in ("wall_s", "cpu_s")}
        return cls(min(walls), statistics.median(walls), cpu, max(least) / min(least) - 1, facts)

    @property
    def steady(self) -> bool:
        """Whether the rounds agree."""
        return self.spread <= STEADY


def run_once(command: Sequence[str], threads: int, timeout_s: float = 900) -> dict[str, Any]:
    """Runs one side in a process of its own on `threads` cores. Raises RuntimeError with its output when it fails."""
    count = str(threads)
    limits = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), count)
    environment = os.environ | limits | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "MMJAX_BENCH_THREADS": count}
    cores = set(sorted(os.sched_getaffinity(0))[:threads])
    done = subprocess.run(
        list(command),
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )
    if done.returncode:
        raise RuntimeError(
            f"{' '.join(command)} failed ({done.returncode}):\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        )
    return json.loads(done.stdout.strip().splitlines()[-1])


def interleave(sides: Mapping[str, Sequence[str]], rounds: int, threads: int) -> dict[str, Timing]:
    """Times every side in turns, `rounds` times."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    for number in range(rounds):
        for name, command in sides.items():
            turn = f"  round {number + 1} of {rounds}, {threads} thread{'s' * (threads > 1)}: {name}"
            print(turn, end=" ", file=sys.stderr, flush=True)
            found[name].append(run_once(command, threads))
            print(f"{min(found[name][-1]['wall_s']):.4g} s", file=sys.stderr)
    return {name: Timing.of(each) for name, each in found.items()}


def timing_options(about: str, calls: int, threads: int | list[int]) -> argparse.ArgumentParser:
    """A command line that says how long and on how many threads to time; given several threads, each in turn."""
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--calls", type=int, default=calls, help="timed calls in each round")
    several = {"nargs": "+"} if isinstance(threads, list) else {}
    parser.add_argument("--threads", type=int, default=threads, **several)
    return parser


# ------------------------------------------------------------------------------------------------------------ reporting


@dataclasses.dataclass(frozen=True)
class Target:
    """A figure and the bound it has to keep."""

    name: str
    value: float
    bound: float
    met: bool
    sign: str

    @classmethod
    def at_most(cls, name: str, value: float, bound: float) -> Target:
        """value <= bound."""
        return cls(name, value, bound, value <= bound, "<=")

    @classmethod
    def at_least(cls, name: str, value: float, bound: float) -> Target:
        """value >= bound."""
        return cls(name, value, bound, value >= bound, ">=")


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Aligned columns; floats to four significant digits."""
    text = [[f"{x:.4g}" if isinstance(x, float) else str(x) for x in row] for row in [head, *rows]]
    widths = [max(len(row[i]) for row in text) for i in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in text
    )


def conclude(
    benchmark: str, figures: Mapping[str, Any], targets: Sequence[Target], timings: Sequence[Timing] = ()
) -> int:
    """Prints the verdicts and, as the last line, everything as JSON. The exit code: 0 when every target is met."""
    facts = machine()
    coarse = bool(timings) and (facts["load"] > QUIET_LOAD + facts["cores"] or not all(t.steady for t in timings))
    print()
    for target in targets:
        verdict = "met   " if target.met else "MISSED"
        print(f"{verdict} {target.name}: {target.value:.4g} (target {target.sign} {target.bound:g})")
    if coarse:
        print("note: the machine was busy or the rounds differ by more than 10 %; the timings are coarse")
    verdicts = [{"name": t.name, "value": t.value, "bound": t.bound, "met": t.met} for t in targets]
    line = {"benchmark": benchmark, "met": all(t.met for t in targets), "coarse": coarse, "targets": verdicts}
    print(json.dumps(line | {"figures": figures, "machine": facts}))
    return 0 if line["met"] else 1
