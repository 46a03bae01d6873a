"""All benchmarks in turn, and whether they meet their targets.                                    python -m benchmarks

Each runs in a process of its own and alone. One table at the end, and one line of JSON for each; the exit code is 0
when every target of those that ran is met. Those that measure against PyTorch are left out where there is none.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from typing import Any

from benchmarks.measure import ROOT, table

BENCHMARKS = {
    "contrastive_memory": False,
    "contrastive_time": True,
    "vocabulary_loss": False,
    "train_step": True,
    "input_pipeline": True,
    "loop_overhead": False,
    "packing": False,
}
"""Whether each needs an interpreter with PyTorch."""


def peers_python() -> str:
    """An environment of the peers' own, where there is one."""
    own = ROOT / ".venv-peers" / "bin" / "python"
    return str(own) if own.exists() else sys.executable


def has_torch(python: str) -> bool:
    """Whether that interpreter can play the peer."""
    return subprocess.run([python, "-c", "import torch, numpy, PIL"], capture_output=True).returncode == 0


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

    results, torch = [], has_torch(chosen.python)
    for name in chosen.names or BENCHMARKS:
        if BENCHMARKS[name] and not torch:
            print(f"\n===== {name}: left out; {chosen.python} has no PyTorch (pip install 'mmjax[peers]', or --python)")
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
