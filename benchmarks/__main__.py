"""All benchmarks in turn, and whether they meet their targets.                                    python -m benchmarks

Each runs in a process of its own and alone. One table at the end, and one line of JSON for each; the exit code is 0
when every target of those that ran is met. Those that measure against a peer are left out where it is not installed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from typing import Any

from benchmarks.measure import ROOT, table

TORCH = ("numpy", "torch")
BENCHMARKS: dict[str, tuple[str, ...]] = {
    "attention": TORCH,
    "contrastive_memory": (),
    "contrastive_time": TORCH,
    "vocabulary_loss": (),
    "train_step": TORCH,
    "decode": (*TORCH, "transformers"),
    "input_pipeline": (*TORCH, "PIL"),
    "loop_overhead": (),
    "packing": (),
    "packed_step": (),
}
"""What the peers of each need; () is no peer."""


def peers_python() -> str:
    """An environment of the peers' own, where there is one."""
    own = ROOT / ".venv-peers" / "bin" / "python"
    return str(own) if own.exists() else sys.executable


def lacking(python: str, packages: tuple[str, ...]) -> list[str]:
    """Those that the interpreter does not find."""
    ask = "import importlib.util, sys; print(*(n for n in sys.argv[1:] if importlib.util.find_spec(n) is None))"
    return subprocess.run([python, "-c", ask, *packages], capture_output=True, text=True, check=True).stdout.split()


def run(name: str, arguments: list[str]) -> dict[str, Any]:
    """What one benchmark says in its last line; its output is shown while it runs."""
    print(f"\n===== {name}", flush=True)
    lines: list[str] = []
    command = [sys.executable, "-m", f"benchmarks.{name}", *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            lines.append(line)
            if not line.startswith("{"):
                print(line, end="", flush=True)
    try:
        return json.loads(lines[-1])
    except (IndexError, ValueError):
        return {"benchmark": name, "met": False, "failed": process.returncode, "coarse": False, "targets": []}


def verdicts(found: dict[str, Any]) -> list[list[Any]]:
    """Rows of the table."""
    name, note = found["benchmark"], "coarse" if found["coarse"] else ""
    rows = [
        [name, t["name"], float(t["value"]), t["bound"], "met" if t["met"] else "MISSED", note]
        for t in found["targets"]
    ]
    return rows or [[name, "", "", "", f"FAILED ({found['failed']})", ""]]


def main(arguments: list[str]) -> int:
    """The door."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of {', '.join(BENCHMARKS)}; default: all")
    parser.add_argument("--python", default=peers_python(), help="an interpreter that has the peers (mmjax[peers])")
    chosen = parser.parse_args(arguments)
    if unknown := [name for name in chosen.names if name not in BENCHMARKS]:
        parser.error(f"no benchmark is called {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")

    results = []
    for name in chosen.names or BENCHMARKS:
        if missing := lacking(chosen.python, BENCHMARKS[name]):
            print(f"\n===== {name}: left out; {chosen.python} lacks {', '.join(missing)} (pip install 'mmjax[peers]')")
        else:
            results.append(run(name, ["--python", chosen.python] if BENCHMARKS[name] else []))
    print("\n=====")
    rows = [row for found in results for row in verdicts(found)]
    print(table(["benchmark", "figure", "value", "bound", "verdict", "note"], rows))
    for found in results:
        print(json.dumps(found))
    return 0 if all(found["met"] for found in results) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
