"""Charts: ticks are round, and every point stands where it should."""

import random

from lit_rlvr.commands.report.charts import (
    BOTTOM,
    CHART_HEIGHT,
    CHART_WIDTH,
    LEFT,
    RIGHT,
    TOP,
    Curve,
    chart,
    nice_ticks,
)


def test_ticks_enclose_the_values() -> None:
    draw = random.Random(0)
    for _ in range(2000):
        low = draw.uniform(-1, 1) * 10 ** draw.uniform(-8, 8)
        high = low + abs(draw.gauss(0, 1)) * 10 ** draw.uniform(-3, 6)
        ticks = nice_ticks(low, high)
        slack = 1e-6 * (ticks[-1] - ticks[0])
        assert ticks[0] <= low + slack, (low, high, ticks)
        assert ticks[-1] >= high - slack, (low, high, ticks)
        assert 2 <= len(ticks) <= 7, (low, high, ticks)


def test_points_stand_where_they_should() -> None:
    drawn = chart("Accuracy", [None, Curve([0, 10], [0.0, 0.5], [0.0, 0.25], [0.0, 1.0])], [3, 7])
    bottom, middle, right = CHART_HEIGHT - BOTTOM, (CHART_HEIGHT - BOTTOM + TOP) / 2, CHART_WIDTH - RIGHT
    quarter = bottom - (bottom - TOP) / 4
    assert (drawn["y_ticks"][0], drawn["y_ticks"][2], drawn["y_ticks"][4]) == (
        (bottom, "0"),
        (middle, "0.5"),
        (TOP, "1"),
    )
    assert drawn["x_ticks"][0] == (LEFT, "0") and drawn["x_ticks"][-1] == (right, "10")
    (line,) = drawn["lines"]
    assert (line["group"], line["path"]) == (7, f"M{LEFT:.1f},{bottom:.1f}L{right:.1f},{middle:.1f}")
    assert (
        line["band"]
        == f"M{LEFT:.1f},{bottom:.1f}L{right:.1f},{TOP:.1f}L{right:.1f},{quarter:.1f}L{LEFT:.1f},{bottom:.1f}Z"
    )
    assert line["points"][1] == (right, middle, "step 10: 0.5 (0.25 to 1)")
    assert drawn["summary"] == "0 \N{RIGHTWARDS ARROW} 0.5"


def test_one_point_at_step_0_can_be_drawn() -> None:
    drawn = chart("t", [Curve([0], [0.0], [0.0], [0.0]), Curve([0], [0.0], [0.0], [0.0])], [0, 1])
    assert len(drawn["lines"]) == 2 and drawn["summary"] == ""
