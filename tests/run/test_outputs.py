"""The picture of a run's curves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from matplotlib import pyplot

from lit_rlvr.run.outputs import PANELS, STALENESS_PANELS, plot_run


@pytest.mark.pictures
@pytest.mark.parametrize("stale", [False, True])
def test_staleness_is_drawn_where_there_is_any(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stale: bool) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(pyplot, "close", drawn.append)
    rows = {step: {"rollout/reward": 0.5, "train/importance_dropped": 0.1} for step in (1, 2)}
    if stale:
        rows[2] |= {"train/staleness/mean": 0.7, "train/staleness/max": 2.0, "train/staleness/ess": 0.8}
    plot_run(rows, tmp_path / "curves.png", "a run")
    lines = {axis.get_title(): [list(line.get_ydata()) for line in axis.lines] for axis in drawn[0].axes}
    assert [*lines] == [title for title, _ in (PANELS + STALENESS_PANELS if stale else PANELS)]
    assert not stale or [*lines.values()][-2:] == [[[0.7], [2.0]], [[0.8], [0.1, 0.1]]]
