"""Several models side by side: one number of each with its interval, beside what it is without a modality and chance.

As a drawing (SVG), as a table (Markdown) and as a page (HTML) that needs no network and no other file.
"""

from __future__ import annotations

import dataclasses

import jinja2
from markupsafe import Markup

from mmjax.report.charts import Frame, canvas, nice_ticks, tag


@dataclasses.dataclass(frozen=True)
class Compared:
    """One model: its score and the interval (shares of 1), the same without a modality, and what the table says of it:
    one text for each of the comparison's columns."""

    name: str
    score: float
    low: float
    high: float
    absent: float
    cells: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Models and what they have in common. lede: what was done, a paragraph; columns: heads of the table, of which the
    first `words` stand over words and the others over numbers."""

    title: str
    lede: str
    columns: tuple[str, ...]
    rows: tuple[Compared, ...]
    chance: float
    words: int = 1
    absent: str = "without the picture"

    def table(self) -> str:
        """Markdown."""
        ruled = ["---"] * self.words + ["---:"] * (len(self.columns) - self.words)
        return "".join(f"| {' | '.join(line)} |\n" for line in (self.columns, ruled, *(row.cells for row in self.rows)))

    def chart(self) -> Markup:
        """A row for each: the interval a line, the score a dot, a ring without the modality; chance runs across."""
        step, width, left = 22, 760.0, 128.0
        ticks = nice_ticks(0.0, max([self.chance, *(row.high for row in self.rows)]))
        height = len(self.rows) * step + 52.0
        frame = Frame(width, height, (ticks[0], ticks[-1]), (len(self.rows), 0), left, right=18.0, top=8.0, bottom=44.0)
        grid = [self._rule(frame, tick, "grid") + self._under(frame, tick, f"{tick * 100:.4g}%") for tick in ticks]
        marks = [self._marks(frame, number + 0.5, row) for number, row in enumerate(self.rows)]
        key = f"dot: score, ring: {self.absent}, dashed: chance without it ({self.chance * 100:.1f}%)"
        parts = [*grid, self._rule(frame, self.chance, "s1", stroke_dasharray="4 4"), *marks]
        parts.append(tag("text", key, class_="tick", x=left, y=height - 8))
        return canvas("chart", width, height, self.title, *parts)

    def drawing(self) -> str:
        """The chart as a file of its own."""
        chart = str(self.chart()).replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1)
        style = _templates().get_template("style.css").render()
        paper = "svg.chart { background: var(--paper); }"
        return chart.replace(">", f"><style>{style}{paper}</style>", 1) + "\n"

    def page(self) -> str:
        """HTML."""
        return _templates().get_template("comparison.html.j2").render(it=self)

    @staticmethod
    def _rule(frame: Frame, value: float, style: str, **attributes: object) -> Markup:
        x, bottom = frame.at(value, frame.y[0])
        return tag("line", class_=style, x1=x, x2=x, y1=frame.top, y2=bottom, **attributes)

    @staticmethod
    def _under(frame: Frame, value: float, text: str) -> Markup:
        x, bottom = frame.at(value, frame.y[0])
        return tag("text", text, class_="tick x", x=x, y=bottom + 16)

    @staticmethod
    def _marks(frame: Frame, place: float, row: Compared) -> Markup:
        (low, y), (high, _) = frame.at(row.low, place), frame.at(row.high, place)
        dot, ring = frame.at(row.score, place)[0], frame.at(row.absent, place)[0]
        told = tag("title", f"{row.name}: {row.score:.3f} [{row.low:.3f}, {row.high:.3f}], {row.absent:.3f}")
        name = tag("text", row.name.replace("_", " "), class_="tick y", x=frame.left - 10, y=y + 4)
        line = tag("line", class_="s0", x1=low, x2=high, y1=y, y2=y, stroke_width=2)
        without = tag("path", class_="s1", d=f"M{ring - 4:.1f} {y:.1f}a4 4 0 1 0 8 0a4 4 0 1 0 -8 0")
        return name + line + without + tag("circle", told, class_="s0", cx=dot, cy=y, r=4.5)


def _templates() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("mmjax.report", "templates"), autoescape=True, undefined=jinja2.StrictUndefined
    )
