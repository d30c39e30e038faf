"""Several processes answer the questions of one evaluation."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny import make_prompt
from tiny_rewards import judged_as_is
from tiny_runs import CLI, child_environment

from lit_rlvr.engines.hf import HFEngine
from lit_rlvr.errors import UserError
from lit_rlvr.evaluation import processes as devices
from lit_rlvr.evaluation.processes import Share, check_devices, run_shares
from lit_rlvr.evaluation.records import Records
from lit_rlvr.rewards.combine import Scores
from lit_rlvr.types import Completion, RewardResult

PROMPTS = [make_prompt([1], name) for name in "abcde"]
SUITE = {
    "data": {"class_path": "TextMath", "init_args": {"test": "data.jsonl"}},
    "rewards": [judged_as_is("first_token")],
}


def answer(records: Records, *prompts: int) -> None:
    right = torch.ones(1, 1)
    for p in prompts:
        result = {"math": RewardResult(1.0, True, "ok", "4")}
        judged = Scores(right, right, right.bool(), {"math": right}, [["ok"]], ~right.bool(), ~right.bool(), [[result]])
        records.add("x", PROMPTS[p], [Completion('4 "sample": 0, "samples": 4', (7,), "stop")], judged)


@pytest.fixture
def command(run_folder: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, ...]:
    """Evaluates a suite of nine questions."""
    rows = [{"problem": f"{i}?", "answer": str(i), "unique_id": f"q{i}"} for i in range(9)]
    (run_folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run_folder / "suite.yaml").write_text(yaml.safe_dump(SUITE))
    monkeypatch.setenv("PYTHONPATH", child_environment()["PYTHONPATH"])
    return ("evaluate", "--model", tiny_model_folder, "--suite", "suite.yaml", "--max_tokens", 6, "--engine", "hf",
            "-n", 4)  # fmt: skip


def told(out: str) -> tuple[str, list[str]]:
    return Path(out, "results.json").read_text(), sorted(Path(out, "completions.jsonl").read_text().splitlines())


def test_results_do_not_depend_on_the_number_of_processes(command: tuple[Any, ...], lit_rlvr: CLI, forks: None) -> None:
    assert lit_rlvr(*command, "--out", "one").status == 0
    lit_rlvr(*command, "--out", "two", "--devices", 2, status=0)
    assert told("two") == told("one")
    assert sorted(os.listdir("two")) == ["completions.jsonl", "results.json", "results.md", "settings.json"]
    lines = Path("one/completions.jsonl").read_text().splitlines(keepends=True)
    Path("cut").mkdir()
    Path("cut/settings.json").write_text(Path("one/settings.json").read_text())
    Path("cut/completions-0-of-3.jsonl").write_text("".join(lines[:9]))  # as three processes that were killed leave it
    Path("cut/completions-2-of-3.jsonl").write_text("".join(lines[20:30])[:-5])
    lit_rlvr(*command, "--out", "cut", "--devices", 2, status=0)
    assert told("cut") == told("one")


def test_files_of_several_processes_are_merged_once_they_have_ended(tmp_path: Path) -> None:
    answer(Records(tmp_path, {}), 0)
    first, second = (Records(tmp_path, {}, share=Share(k, 2).file) for k in range(2))
    assert first.missing("x", PROMPTS) == PROMPTS[1:]
    answer(first, 2, 3)
    answer(second, 1, 3)  # one of them twice
    assert Records(tmp_path, {}, share=Share(0, 3).file).missing("x", PROMPTS) == PROMPTS[1:], "they may be running"
    torn = second.path.read_text()
    second.path.write_text(torn + torn[:20])
    merged = Records(tmp_path, {})
    assert merged.missing("x", PROMPTS) == PROMPTS[4:]
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["completions.jsonl", "settings.json"]
    assert len(merged.path.read_text().splitlines()) == 4
    assert Records(tmp_path, {}).missing("x", PROMPTS) == PROMPTS[4:]


def test_each_process_has_its_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    seen: list[tuple[str, str]] = []

    class Ended:
        def __init__(self, line: list[str], env: dict[str, str], **options: Any) -> None:
            assert line[:4] == [sys.executable, "-m", "lit_rlvr", "evaluate"] and line[4:] == ["--x"]
            seen.append((env["LIT_RLVR_SHARE"], env["CUDA_VISIBLE_DEVICES"]))

        def poll(self) -> int:
            return 0

        def terminate(self) -> None:
            pass

        wait = terminate

    monkeypatch.setattr(devices.subprocess, "Popen", Ended)
    for visible, wanted in (("", ["0", "1"]), ("5,GPU-3", ["5", "GPU-3"])):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        run_shares(["--x"], 2, tmp_path, lambda: None)
        assert seen == [("0/2", wanted[0]), ("1/2", wanted[1])]
        seen.clear()


def test_devices_among_which_questions_cannot_be_shared_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Elsewhere(HFEngine):
        in_process = False

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check_devices(2, HFEngine(), True)
    check_devices(1, Elsewhere(), False)
    for count, engine, samples, said in (
        (3, HFEngine(), True, r"--devices: 3, but this machine has 2 GPU\(s\)"),
        (2, HFEngine(), False, "uses no GPU; leave it at 1"),
        (2, Elsewhere(), True, "elsewhere runs on its own GPUs; leave it at 1"),
    ):
        with pytest.raises(UserError, match=said):
            check_devices(count, engine, samples)
