"""How differently a model treats the values of a label: best against worst, with an honest interval.

The best and the worst value are named on all cases, and the interval is that of the difference between *these two*,
resampled together. The interval of a maximum minus a minimum would lie above zero even where nothing differs.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mmjax.evals.results import Estimate, Record, number

SMALLEST = 10
"""A value with fewer cases than this is left out of a comparison: its place in the order is noise."""


def gap(estimates: Mapping[str, Estimate], smallest: int = SMALLEST) -> Record | None:
    """The spread of one metric (higher is better) over the values of a label; None where fewer than two compare.

    `gap` = best - worst, `ratio` = worst / best, and the value at each end."""
    large = {name: e for name, e in estimates.items() if e.n >= smallest}
    if len(large) < 2:
        return None
    best = max(large, key=lambda name: large[name].value)
    worst = min(large, key=lambda name: large[name].value)
    top, bottom = large[best], large[worst]
    n = top.n + bottom.n
    interval = top.bootstrap.interval
    ratios = np.where(top.draws > 0, bottom.draws / np.where(top.draws > 0, top.draws, 1), np.nan)
    ratio = bottom.value / top.value if top.value > 0 else float("nan")
    return {
        "best": best,
        "worst": worst,
        "best_value": top.record(),
        "worst_value": bottom.record(),
        "gap": number(top.value - bottom.value, *interval(top.draws - bottom.draws), 0.0, n),
        "ratio": number(ratio, *interval(ratios), 1.0, n),
        "compared": len(large),
        "left_out": sorted(estimates.keys() - large.keys()),
    }
