"""An `Inspection` as one page in a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rich import box
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text as Line

from data_pipelines.inspection import LISTED, Inspection, Labels, Pictures, Spread, Words

BAR = 28
"""Characters of the longest bar."""


def print_page(facts: Inspection, next_step: str) -> None:
    """Prints the page; `next_step` is the command to run when the verdict is good."""
    plain = Console()
    console = plain if plain.is_terminal else Console(width=120)
    console.print(*_parts(facts), sep="\n")
    if facts.trains:
        console.print(
            f"\nnext: [bold]{escape(next_step)}[/bold]\n", soft_wrap=True, highlight=False
        )  # in one piece, to paste


def _parts(facts: Inspection) -> Iterator[RenderableType]:
    yield Line(f"\n{facts.path}", style="bold")
    yield _overview(facts)
    for name, found in facts.fields.items():
        yield Padding(Group(Line(name, style="bold cyan"), *_field(found)), (1, 0, 0, 0))
    if facts.bad:
        yield Padding(_bad(facts), (1, 0, 0, 0))
    yield Padding(_verdict(facts), (1, 0, 0, 0))


def _facts(rows: Sequence[tuple[str, str]]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", min_width=16)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, escape(value))
    return table


def _overview(facts: Inspection) -> Table:
    looked = "all of them" if facts.looked_at == facts.records else f"{facts.looked_at:,}, evenly spread"
    share = f"{facts.good / facts.looked_at:.1%}" if facts.looked_at else "-"
    return _facts(
        [
            ("kind", facts.kind),
            ("records", f"{facts.records:,}"),
            ("looked at", looked),
            ("schema", facts.schema),
            ("fit the schema", f"{facts.good:,} of {facts.looked_at:,} ({share})"),
        ]
    )


def _field(found: Pictures | Words | Labels) -> Iterator[RenderableType]:
    if isinstance(found, Pictures):
        yield _facts(
            [
                ("pictures", f"{found.count:,}, {found.distinct:,} distinct"),
                ("width x height", f"{_spread(found.width)}  x  {_spread(found.height)} pixels"),
                ("stored as", _counts(found.modes)),
                ("bytes each", _spread(found.bytes_each)),
            ]
        )
        yield _bars("shorter side", {name: count for name, count in found.sizes.items() if count})
    elif isinstance(found, Words):
        yield _facts(
            [
                ("texts", f"{found.count:,}, {found.distinct:,} distinct"),
                ("characters", _spread(found.characters)),
                ("words", _spread(found.words)),
                ("scripts", _counts(found.scripts)),
            ]
        )
    else:
        yield _facts([("values", f"{found.count:,}, {found.distinct:,} distinct")])
        yield _bars("most frequent", dict(list(found.occurrences.items())[:10]))


def _spread(spread: Spread | None) -> str:
    if spread is None:
        return "-"
    if spread.low == spread.high:
        return f"{spread.low:,.0f}"
    return f"{spread.low:,.0f} .. {spread.high:,.0f} (median {spread.median:,.0f})"


def _counts(counts: Mapping[str, int]) -> str:
    shown = [f"{name} {count:,}" for name, count in list(counts.items())[:8]]
    return ", ".join([*shown, *(["..."] if len(counts) > 8 else [])]) or "-"


def _bars(title: str, counts: Mapping[str, int]) -> Table:
    table = _facts([])
    most = max(counts.values(), default=1)
    for number, (name, count) in enumerate(counts.items()):
        bar = Line("█" * max(1, round(BAR * count / most)), style="cyan")
        row = Table.grid(padding=(0, 1))
        row.add_column(min_width=12)
        row.add_column(min_width=BAR)
        row.add_row(escape(name), bar, f"{count:,}")
        table.add_row("" if number else title, row)
    return table


def _bad(facts: Inspection) -> RenderableType:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left", title_style="bold red")
    table.title = f"{len(facts.bad):,} bad records ({_counts(facts.faults)})"
    for column in ("record", "fault", "reason"):
        table.add_column(column, overflow="fold")
    for one in facts.bad[:LISTED]:
        table.add_row(escape(one.where), escape(one.fault.replace("_", " ")), escape(one.reason))
    if len(facts.bad) > LISTED:
        table.add_row("...", "", f"{len(facts.bad) - LISTED:,} more; --json lists all")
    return table


def _verdict(facts: Inspection) -> Panel:
    remarks = [Line(f"- {remark}", style="yellow") for remark in facts.remarks]
    if facts.trains:
        said = remarks or [Line(f"{facts.good:,} usable records, nothing to remark")]
        return Panel(Group(*said), title="this data will train", title_align="left", border_style="green")
    problems = [Line(f"- {problem}") for problem in facts.problems]
    return Panel(Group(*problems, *remarks), title="this data will not train", title_align="left", border_style="red")
