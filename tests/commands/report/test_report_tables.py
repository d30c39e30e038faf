"""Tables: means and deviations, computed by hand."""

from pathlib import Path

import pytest
from made_runs import make_run

from lit_rlvr.commands.report.groups import RunGroup
from lit_rlvr.commands.report.runs import MISSING, read_run
from lit_rlvr.commands.report.tables import results_table, validation_rows


@pytest.fixture
def groups(tmp_path: Path) -> list[RunGroup]:
    """Two runs of a baseline, an unfinished one and a finished one of its rival, and a group without runs."""
    afters = {"a0": 0.5, "a1": 0.7, "b0": 0.9}
    made = {name: read_run(make_run(tmp_path / name, accuracy_after=after)) for name, after in afters.items()}
    left = make_run(tmp_path / "b1", train_seconds=999.0)
    (left / "summary.json").unlink()
    return [
        RunGroup("a", runs=[made["a0"], made["a1"]], wanted=2, baseline=True),
        RunGroup("b", runs=[made["b0"], read_run(left)], wanted=2),
        RunGroup("c", wanted=1),
    ]


def test_results_are_means_over_seeds(groups: list[RunGroup]) -> None:
    columns, (a, b, c) = results_table(groups)
    row = dict(zip(columns, a["cells"], strict=True))
    assert row == {
        "before": "0.250 ± 0.000", "after": "0.600 ± 0.141", "gain": "+0.350 ± 0.141", "against a": MISSING,
        "runs": "2", "steps": "4", "training (s)": "60 ± 0", "per iteration (s)": "3.25 ± 0.00",
        "memory (GiB)": "2.00 ± 0.00", "engine": "hf",
    }  # fmt: skip
    assert (a["before"], a["after"]) == (0.25, pytest.approx(0.6))
    row = dict(zip(columns, b["cells"], strict=True))
    assert (row["runs"], row["after"], row["against a"]) == ("1 of 2 finished", "0.900", "+0.300")
    assert (row["before"], row["gain"], row["training (s)"]) == ("0.250 ± 0.000", "+0.650", "60")
    assert (c["cells"].count(MISSING), c["before"], c["after"]) == (len(columns) - 1, None, None)
    assert "against a" not in results_table(groups[1:])[0]


def test_validation_is_shown_before_and_after(tmp_path: Path) -> None:
    metrics = [
        {0: {"val/s/accuracy/easy": 0.2, "val/s/length": 10.0}, 4: {"val/s/accuracy/easy": 0.6, "val/s/length": 8.04}},
        {0: {"val/s/accuracy/easy": 0.4}, 2: {"val/s/accuracy/easy": 0.7}, 4: {"rollout/reward": 1.0}},
    ]
    runs = [read_run(make_run(tmp_path / str(k), metrics=values)) for k, values in enumerate(metrics)]
    assert validation_rows([RunGroup("a", runs=runs), RunGroup("b")]) == [
        ("s/accuracy/easy", ["0.300 ± 0.141 → 0.650 ± 0.071", MISSING]),
        ("s/length", ["10.0 → 8.0", MISSING]),
    ]
