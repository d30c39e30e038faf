"""metrics.csv: complete, atomic, and exact across resumes."""

import csv
from pathlib import Path

import pytest

from lit_rlvr.errors import UserError
from lit_rlvr.run.loggers import MetricsFile


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_one_row_a_step_whatever_is_logged_when(tmp_path: Path) -> None:
    log = MetricsFile(tmp_path / "run" / "metrics.csv")
    log.log_metrics({"b": 1.0}, step=2)
    log.log_metrics({"a": 0.1}, step=1)
    log.log_metrics({"c": 3}, step=2)
    log.save()
    assert (tmp_path / "run" / "metrics.csv").read_text().splitlines() == ["step,a,b,c", "1,0.1,,", "2,,1.0,3.0"]
    assert log.rows == {2: {"b": 1.0, "c": 3.0}, 1: {"a": 0.1}}
    assert not list((tmp_path / "run").glob("*.tmp"))


def test_a_resumed_file_drops_later_rows_and_keeps_every_digit(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    value = 0.1 + 0.2
    first = MetricsFile(path)
    for step in range(1, 5):
        first.log_metrics({"x": value * step}, step=step)
    first.finalize("failed")
    again = MetricsFile(path)
    again.resume(2)
    again.log_metrics({"x": -1.0, "new": 5.0}, step=3)
    again.save()
    rows = read(path)
    assert [row["step"] for row in rows] == ["1", "2", "3"]
    assert [float(row["x"]) for row in rows] == [value, value * 2, -1.0]
    assert [row["new"] for row in rows] == ["", "", "5.0"]


def test_nothing_logged_writes_no_file_and_a_missing_one_is_no_error(tmp_path: Path) -> None:
    log = MetricsFile(tmp_path / "metrics.csv")
    log.resume(10)
    log.finalize("success")
    assert not (tmp_path / "metrics.csv").exists() and log.rows == {}


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = MetricsFile(tmp_path / "metrics.csv")
    log.log_metrics({"x": 1.0}, step=1)
    log.save()
    log.log_metrics({"x": 2.0}, step=2)

    def full(self: csv.DictWriter, row: dict[str, float]) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(csv.DictWriter, "writerow", full)
    with pytest.raises(OSError, match="No space"):
        log.save()
    assert [row["x"] for row in read(tmp_path / "metrics.csv")] == ["1.0"]


@pytest.mark.parametrize("line", ["garbage", "2,x", "2,0.5,0.5", "2,\0", "\xff"])
def test_a_broken_line_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "metrics.csv").write_text(f"step,loss\n1,0.5\n{line}\n3,0.5\n", encoding="latin-1")
    with pytest.raises(UserError, match=r"metrics\.csv, line 3: not a row of a run; mend the file"):
        MetricsFile(tmp_path / "metrics.csv").resume(3)
