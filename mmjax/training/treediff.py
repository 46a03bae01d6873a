"""Where a saved tree and a wanted one differ, said once and readably: path, saved, wanted, nearest name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from mmjax.core.errors import nearest
from mmjax.training.manifest import Leaf

Table = Mapping[str, Leaf]
Fit = Callable[[Table, Table], list[tuple[str, str, str]]]
"""(saved, wanted) -> rows (path, saved, wanted) that forbid a restore."""

SHOWN = 20


def exact(saved: Table, wanted: Table) -> list[tuple[str, str, str]]:
    """Same paths, same shapes, same formats."""
    rows = [(name, describe(saved.get(name)), describe(wanted.get(name))) for name in {**wanted, **saved}]
    return [row for row in rows if row[1] != row[2]]


def casting(saved: Table, wanted: Table) -> list[tuple[str, str, str]]:
    """Same paths and shapes; numbers are converted to the wanted format."""
    return exact(_shapes(saved), _shapes(wanted))


def _shapes(table: Table) -> Table:
    return {name: (shape, "") for name, (shape, _) in table.items()}


def describe(leaf: Leaf | None) -> str:
    """`float32 [64 8]`, or `-` for a leaf that is not there."""
    if leaf is None:
        return "-"
    shape, dtype = leaf
    return f"{dtype} [{' '.join(map(str, shape))}]".strip()


def report(rows: list[tuple[str, str, str]], saved: Table, wanted: Table) -> str:
    """A table of the differing leaves; a path that one side lacks is followed by the nearest one of the other side."""
    lines = [("path", "saved", "wanted", "")]
    for name, was, want in rows[:SHOWN]:
        lines.append((name, was, want, _near(name, was, want, saved, wanted)))
    widths = [max(len(line[i]) for line in lines) for i in range(3)]
    text = ["  " + "  ".join(line[i].ljust(widths[i]) for i in range(3)) + line[3] for line in lines]
    if len(rows) > SHOWN:
        text.append(f"  ... and {len(rows) - SHOWN} more")
    return "\n".join(line.rstrip() for line in text)


def _near(name: str, was: str, want: str, saved: Table, wanted: Table) -> str:
    if was != "-" and want != "-":
        return ""
    here, there = (saved, wanted) if want == "-" else (wanted, saved)
    found = nearest(name, [other for other in there if other not in here], count=1)
    return f"  ({'now' if want == '-' else 'was'} {found[0]}?)" if found else ""
