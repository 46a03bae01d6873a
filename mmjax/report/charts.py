"""Charts as inline SVG: no script, no network; colours come from the page's style sheet."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup, escape


@dataclasses.dataclass(frozen=True)
class Series:
    """One line: `y` at `x`; points that are not finite are left out."""

    name: str
    x: Sequence[float]
    y: Sequence[float]

    def finite(self) -> Series:
        """Without points that cannot be drawn."""
        x, y = np.asarray(self.x, float), np.asarray(self.y, float)
        keep = np.isfinite(x) & np.isfinite(y)
        return Series(self.name, x[keep].tolist(), y[keep].tolist())


@dataclasses.dataclass(frozen=True)
class Frame:
    """Where a chart's numbers lie on its canvas (user units; the page scales it)."""

    width: float
    height: float
    x: tuple[float, float]
    y: tuple[float, float]
    left: float = 46.0
    right: float = 12.0
    top: float = 10.0
    bottom: float = 24.0

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Canvas position of a number pair."""
        across = (x - self.x[0]) / ((self.x[1] - self.x[0]) or 1)
        up = (y - self.y[0]) / ((self.y[1] - self.y[0]) or 1)
        wide, high = self.width - self.left - self.right, self.height - self.top - self.bottom
        return self.left + across * wide, self.height - self.bottom - up * high


def tag(name: str, *inside: str, **attributes: object) -> Markup:
    """An element, escaped: `class_` is written class, `fill_opacity` fill-opacity, floats with one digit."""
    rows = ((key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items())
    cut = ((key, f"{value:.1f}" if isinstance(value, float) else value) for key, value in rows)
    written = Markup("").join(Markup(' {}="{}"').format(key, value) for key, value in cut)
    return Markup("<{}{}>{}</{}>").format(Markup(name), written, Markup("").join(map(escape, inside)), Markup(name))


def canvas(style: str, width: float, height: float, label: str, *parts: Markup) -> Markup:
    """A drawing of `parts`; the page's style sheet knows its `style`, and `label` says what it shows."""
    attributes = {"class_": style, "viewBox": f"0 0 {width:g} {height:g}", "role": "img", "aria_label": label}
    return tag("svg", *parts, **attributes)


def line_chart(
    series: Sequence[Series], title: str, width: float = 640, height: float = 240, percent: bool = False
) -> Markup:
    """Lines over steps. One series is drawn raw and, where it shakes, smoothed; several are named at their ends."""
    drawn = [one for one in (each.finite() for each in series) if one.x]
    if not drawn:
        return Markup("")
    values = np.concatenate([one.y for one in drawn])
    ticks = nice_ticks(float(values.min()), float(values.max()))
    steps = np.concatenate([one.x for one in drawn])
    named = len(drawn) > 1
    across, up = (float(steps.min()), float(steps.max())), (ticks[0], ticks[-1])
    frame = Frame(width, height, across, up, right=150 if named else 12)
    if named:
        lines = [_line(frame, one, f"line s{i % 5}") for i, one in enumerate(drawn)] + [_names(frame, drawn)]
    elif shaky(drawn[0].y):
        lines = [_line(frame, _thinned(drawn[0], 400), "line raw"), _line(frame, smooth(drawn[0]), "line s0")]
    else:
        lines = [_line(frame, _thinned(drawn[0], 400), "line s0")]
    label = f"{title}: {_span(drawn[0], percent)}"
    return canvas("chart", width, height, label, _axes(frame, ticks, percent), *lines)


def shaky(y: Sequence[float]) -> bool:
    """Whether a curve turns so often that its course is better seen smoothed; a schedule is not."""
    slopes = np.sign(np.diff(y))
    return len(y) > 8 and float(np.mean(slopes[1:] * slopes[:-1] < 0)) > 0.15


def smooth(series: Series, points: int = 120) -> Series:
    """Means of neighbours: a bucket each, so that the line says where the curve goes and not how it shakes."""
    x, y = np.asarray(series.x), np.asarray(series.y)
    if len(x) > 8:
        kernel = np.hanning(max(3, len(x) // 24 * 2 + 1) + 2)[1:-1]
        y = np.convolve(y, kernel, "same") / np.convolve(np.ones(len(y)), kernel, "same")
    edges = np.linspace(0, len(x), min(points, len(x)) + 1).astype(int)
    pairs = [(float(x[a:b].mean()), float(y[a:b].mean())) for a, b in itertools.pairwise(edges)]
    return Series(series.name, *map(list, zip(*pairs, strict=True)))


def _thinned(series: Series, points: int) -> Series:
    kept = np.unique(np.linspace(0, len(series.x) - 1, min(points, len(series.x))).round().astype(int))
    return Series(series.name, [series.x[i] for i in kept], [series.y[i] for i in kept])


def nice_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers that enclose [low, high]."""
    if high - low < 1e-12 * max(abs(high), 1e-12):
        pad = abs(high) * 0.1 or 1.0
        low, high = low - pad, high + pad
    rough = (high - low) / count
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def short(value: float) -> str:
    """A tick's text: 1500 -> 1.5k, 0.00025 -> 2.5e-4."""
    size = abs(value)
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size >= unit:
            return f"{value / unit:.3g}{name}"
    if value != 0 and size < 1e-3:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:.4g}"


def _axes(frame: Frame, ticks: Sequence[float], percent: bool) -> Markup:
    rows = []
    for tick in ticks:
        _, y = frame.at(frame.x[0], tick)
        text = f"{tick * 100:.4g}%" if percent else short(tick)
        rows.append(tag("line", class_="grid", x1=frame.left, x2=float(frame.width - frame.right), y1=y, y2=y))
        rows.append(tag("text", text, class_="tick y", x=frame.left - 7, y=y + 3.5))
    span = frame.x[1] - frame.x[0]
    inside = [tick for tick in nice_ticks(*frame.x) if frame.x[0] <= tick <= frame.x[1]] if span else [frame.x[0]]
    for tick in inside:
        x, _ = frame.at(tick, frame.y[0])
        rows.append(tag("text", short(tick), class_="tick x", x=x, y=float(frame.height - 7)))
    return Markup("").join(rows)


def _line(frame: Frame, series: Series, style: str) -> Markup:
    points = [frame.at(x, y) for x, y in zip(series.x, series.y, strict=True)]
    line = tag("path", class_=style, d="M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points))
    if style.endswith("raw"):
        return line
    return line + tag("circle", class_=style.replace("line", "dot"), cx=points[-1][0], cy=points[-1][1], r=2.6)


def _names(frame: Frame, series: Sequence[Series]) -> Markup:
    """Each line's name beside its last point, pushed apart where they would overlap."""
    ends = sorted((frame.at(one.x[-1], one.y[-1])[1], i, one.name) for i, one in enumerate(series))
    place, rows = -math.inf, []
    for y, i, name in ends:
        place = max(y, place + 15)
        rows.append(tag("text", name, class_=f"name s{i % 5}", x=float(frame.width - frame.right + 8), y=place + 4))
    return Markup("").join(rows)


def _span(series: Series, percent: bool) -> str:
    first, last = (f"{v * 100:.1f} %" if percent else short(v) for v in (series.y[0], series.y[-1]))
    return f"from {first} to {last}"


# ------------------------------------------------------------------------------------------------------------ heat map


def heat_map(cosine: Sequence[Sequence[float]], captions: Sequence[str], pictures: Sequence[str]) -> Markup:
    """Captions (rows) by pictures (columns; data URIs or ""): the darker, the more alike. Pairs lie on the diagonal."""
    size, cell, left, top = len(cosine), 38, 244, 46
    values = np.asarray(cosine, float)
    low, high = (float(np.quantile(values, q)) for q in (0.05, 1.0)) if values.size else (0.0, 1.0)
    shades = np.clip((values - low) / ((high - low) or 1), 0, 1) ** 1.5
    parts = [
        tag("image", href=uri, x=left + column * cell + 2, y=4, width=cell - 4, height=cell - 4)
        for column, uri in enumerate(pictures)
        if uri
    ]
    for row, caption in enumerate(captions):
        y = top + row * cell
        parts.append(tag("text", _cut(caption, 27), class_="caption", x=left - 10, y=y + cell // 2 + 4))
        for column in range(size):
            title = tag("title", f"{caption}: {values[row, column]:.3f}")
            place = {"x": left + column * cell + 1, "y": y + 1, "width": cell - 2, "height": cell - 2}
            style = "cell pair" if row == column else "cell"
            parts.append(
                tag("rect", title, class_=style, fill_opacity=f"{0.04 + 0.96 * shades[row, column]:.3f}", **place)
            )
    side = size * cell + 4
    return canvas("heat", left + side, top + side, "cosines of captions and pictures", *parts)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"
