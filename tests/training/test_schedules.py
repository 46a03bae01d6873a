"""Learning rates at points worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mmjax.core.errors import UserError
from mmjax.training.schedules import Constant, Cosine, Linear, ReduceOnPlateau, Rsqrt, StepDecay


@pytest.mark.parametrize(
    ("schedule", "steps", "points"),
    [
        (Constant(2.0), 10, {0: 2.0, 9: 2.0}),
        (Constant(2.0, warmup=4), 10, {0: 0.5, 1: 1.0, 3: 2.0, 9: 2.0}),
        (Cosine(1.0), 8, {0: 1.0, 4: 0.5, 2: 0.5 + math.sqrt(0.125), 8: 0.0}),
        (Cosine(1.0, warmup=2, end=0.2), 10, {0: 0.5, 2: 1.0, 6: 0.6, 10: 0.2}),
        (Linear(3.0, warmup=2, end=1.0), 10, {1: 3.0, 2: 3.0, 6: 2.0, 10: 1.0}),
        (Rsqrt(1.0, timescale=5), 100, {0: 1.0, 15: 0.5, 75: 0.25}),
        (Rsqrt(1.0, timescale=4, cooldown=10), 20, {12: 0.5 * 0.8, 20: 0.0}),
        (StepDecay(1.0, (3, 6), factor=0.1), 10, {2: 1.0, 3: 0.1, 6: 0.01, 9: 0.01}),
        (ReduceOnPlateau(Constant(0.3)), 10, {5: 0.3}),
    ],
)
def test_points(schedule, steps, points):
    rate = schedule.build(steps)
    for step, value in points.items():
        np.testing.assert_allclose(rate(step), value, rtol=1e-5, atol=1e-7, err_msg=str(step))


def test_a_schedule_longer_than_the_run_is_refused():
    with pytest.raises(UserError, match="10 steps of warmup and cooldown do not fit into a run of 10"):
        Cosine(1.0, warmup=10).build(10)
    with pytest.raises(UserError, match="boundary 12 lies beyond the last of 10 steps"):
        StepDecay(1.0, (5, 12)).build(10)
