"""What a run is doing, from the files in its folder."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from made_runs import make_run, make_study

from lit_rlvr.commands.watch.follow import SILENT_SECONDS, FollowedFolders, find_runs
from lit_rlvr.errors import UserError


def live(**changed: Any) -> str:
    """A `live.json`."""
    now = time.time()
    return json.dumps(
        {
            "stage": "generating", "part": "", "since": now - 10, "done": 61, "total": 128, "tokens_per_second": 212.4,
            "waiting": {}, "step": 3, "steps": 10, "seconds_left": 700.0, "memory_mb": 2048, "host": "here", "pid": 1,
            "engine": "hf", "at": now,
        }
        | changed
    )  # fmt: skip


def unfinished(folder: Path, text: str | None) -> Path:
    make_run(folder)
    (folder / "summary.json").unlink()
    if text is not None:
        (folder / "live.json").write_text(text)
    return folder


@pytest.mark.parametrize(
    ("changed", "state", "line"),
    [
        ({}, "running", "step 3 of 10, generating 61/128, 212 tokens/s, 12 min left, 2.0 GiB at most, engine hf"),
        (
            {"waiting": {"judge": 4.2}, "steps": None, "seconds_left": None},
            "running",
            "step 3, generating 61/128, 212 tokens/s, waiting for judge 4 s, 2.0 GiB at most, engine hf",
        ),
        (
            {"part": "validation sums", "stage": "scoring", "total": 0, "tokens_per_second": 0},
            "running",
            "step 3 of 10, validation sums: scoring, 12 min left, 2.0 GiB at most, engine hf",
        ),
        ({"ago": 7200}, "silent", "no sign of life for 2 h 0 min, while generating: killed, or"),
        ({"stage": "ended"}, "unknown", "unfinished, or killed"),
        ({"step": "three"}, "unknown", "unfinished, or killed"),
    ],
)
def test_a_run_that_has_not_ended(tmp_path: Path, changed: dict[str, Any], state: str, line: str) -> None:
    if "ago" in changed:
        changed = {"at": time.time() - changed["ago"]}
    followed = FollowedFolders([unfinished(tmp_path / "run", live(**changed))])
    now = followed.runs[str(tmp_path / "run")].status
    assert now.state == state and now.line.startswith(line), now.line


def test_a_run_that_has_ended(tmp_path: Path) -> None:
    for name, stopped in (("done", None), ("early", "stopped by SIGTERM")):
        (make_run(tmp_path / name, stopped=stopped) / "live.json").write_text(live(stage="ended"))
    followed = FollowedFolders([tmp_path])
    states = {Path(name).name: (run.status.state, run.status.line) for name, run in followed.runs.items()}
    assert states == {
        "done": ("finished", "finished after 4 steps"),
        "early": ("stopped", "stopped early: stopped by SIGTERM"),
    }


def test_a_resumed_run_is_running_whatever_its_old_summary_says(tmp_path: Path) -> None:
    (make_run(tmp_path / "run") / "live.json").write_text(live())
    assert next(iter(FollowedFolders([tmp_path]).runs.values())).status.state == "running"
    assert SILENT_SECONDS > 5, "a write may be late on a busy machine"


def test_later_runs_are_found(tmp_path: Path) -> None:
    make_run(tmp_path / "first")
    followed = FollowedFolders([tmp_path])
    make_run(tmp_path / "deep" / "second")
    followed.refresh()
    assert [Path(name).name for name in followed.runs] == ["first", "second"]


def test_a_folder_that_goes_leaves_the_others_followed(tmp_path: Path) -> None:
    """The last one to go is still shown, with the words that it is gone."""
    first, second = (unfinished(tmp_path / name, live()) for name in ("first", "second"))
    followed = FollowedFolders([first, second])
    second.rename(tmp_path / "renamed")
    with (first / "metrics.csv").open("a") as file:
        file.write("6,,,,,,,\n")
    followed.refresh()
    assert list(followed.runs) == [str(first)] and max(followed.groups[0].runs[0].metrics) == 6
    first.rename(tmp_path / "renamed too")
    followed.refresh()
    status = followed.runs[str(first)].status
    assert (status.state, status.step) == ("silent", 6) and status.line.startswith("its folder is gone"), status


def test_a_study_is_one_thing_and_other_folders_are_searched(tmp_path: Path) -> None:
    make_run(tmp_path / "all" / "study" / "runs")
    make_study(tmp_path / "all" / "study", [{"name": "grpo", "run": "runs"}])
    assert find_runs(tmp_path / "all") == [tmp_path / "all" / "study"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty holds no run"):
        find_runs(tmp_path / "empty")
    with pytest.raises(UserError, match="there is no such folder"):
        find_runs(tmp_path / "gone")
