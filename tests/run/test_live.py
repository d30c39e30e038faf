"""`live.json` of a real run: what it is doing, while it does it."""

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import CLI

from lit_rlvr.commands.watch.follow import FollowedFolders
from lit_rlvr.common.terminal import Activity
from lit_rlvr.run import live


@pytest.mark.slow
def test_it_follows_a_run_from_its_start_to_its_end(
    run_folder: Path, lit_rlvr: CLI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a reward that takes its time; each of the stages waits until it was seen."""
    monkeypatch.setattr(live, "WRITE_SECONDS", 0.001)
    begin, unseen = Activity.begin, {"starting the engine", "generating", "scoring", "training", "saving a checkpoint"}
    seen: list[dict[str, Any]] = []

    def begin_slowly(self: Activity, stage: str, total: int = 0) -> None:
        begin(self, stage, total)
        deadline = time.monotonic() + 60
        while stage in unseen and time.monotonic() < deadline:
            unseen.difference_update(state["stage"] for state in seen)
            time.sleep(0.01)

    monkeypatch.setattr(Activity, "begin", begin_slowly)
    (run_folder / "slow_judge.py").write_text(
        "import time\n\ndef judge(completion, sample):\n    time.sleep(0.02)\n    return 1.0\n"
    )
    over = threading.Event()

    def refresh() -> None:
        while not over.wait(0.001):
            path = run_folder / "run" / live.LIVE
            if path.is_file():
                seen.append(json.loads(path.read_text()))

    thread = threading.Thread(target=refresh, daemon=True)
    thread.start()
    result = lit_rlvr("fit", "--config", "tiny.yaml", "--rollout.rewards", '["slow_judge.judge"]')
    over.set()
    thread.join()
    assert result.status == 0, result.err
    assert not unseen, unseen
    assert any(state["part"].startswith("validation") for state in seen)
    assert any("slow_judge.judge" in name for state in seen for name in state["waiting"])
    generating = [state for state in seen if state["stage"] == "generating" and not state["part"]]
    assert {state["total"] for state in generating} == {state["total"] for state in generating if state["total"] > 1}
    last = json.loads((run_folder / "run" / live.LIVE).read_text())
    assert (last["stage"], last["part"], last["waiting"]) == ("ended", "", {})
    assert (last["step"] == last["steps"] > 0, last["seconds_left"], last["engine"]) == (True, 0, "hf")
    assert next(iter(FollowedFolders([run_folder / "run"]).runs.values())).status.state == "finished"


def test_a_failed_run_says_that_it_ended(run_folder: Path, lit_rlvr: CLI) -> None:
    (run_folder / "bad_judge.py").write_text("def judge(completion, sample):\n    raise SystemExit(3)\n")
    assert lit_rlvr("fit", "--config", "tiny.yaml", "--rollout.rewards", '["bad_judge.judge"]').status != 0
    assert json.loads((run_folder / "run" / live.LIVE).read_text())["stage"] == "ended"
