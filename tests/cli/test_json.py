"""`--json`: stdout is one JSON document that holds what is printed for people without it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_runs import CLI, CONSOLE_SCRIPT, FIT, child_environment

from lit_rlvr.commands.registry import COMMANDS, WITHOUT_RESULT
from lit_rlvr.common.terminal import results_as_json, show_result


def test_a_result_is_printed_for_people_or_as_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    result = {"a": [1, (2.5, float("nan"))], 3: Path("x"), "none": None, "yes": True, "text": "größer\n"}
    show_result(result, lambda: print("a table"))
    assert capsys.readouterr().out == "a table\n"
    with results_as_json():
        print("on the way")
        show_result(result, lambda: print("a table"))
    out, err = capsys.readouterr()
    plain = {"a": [1, [2.5, None]], "3": "x", "none": None, "yes": True, "text": "größer\n"}
    assert json.loads(out) == plain and err == "on the way\n"
    show_result(result, lambda: print("a table"))
    assert capsys.readouterr().out == "a table\n"


@pytest.mark.parametrize("command", WITHOUT_RESULT)
def test_a_command_without_a_result_refuses_it(lit_rlvr: CLI, command: str) -> None:
    done = lit_rlvr(command, "--json")
    assert (done.status, f"--json: {command} has no result" in done.err, done.out) == (2, True, "")
    assert command in COMMANDS


def test_every_command_s_document_is_described() -> None:
    table = (Path(__file__).parents[2] / "docs/commands.md").read_text()
    rows = {name for line in table.splitlines() if line.startswith("| `") for name in re.findall(r"`([\w ]+)", line)}
    assert set(COMMANDS) - set(WITHOUT_RESULT) <= rows


def test_an_error_prints_no_document(run_folder: Path, lit_rlvr: CLI) -> None:
    done = lit_rlvr("fit", "--config", "tiny.yaml", "--json", "--rollout.group_size", "0")
    assert done.refusal and not done.out


@pytest.mark.slow
def test_every_command_of_a_run_prints_json(run_folder: Path, lit_rlvr: CLI) -> None:
    """Each command with and without `--json` on the same run."""

    def document(*arguments: Any) -> Any:
        return json.loads(lit_rlvr(*arguments, "--json", status=0).out)

    def printed(*arguments: Any) -> str:
        return str(lit_rlvr(*arguments, status=0).out)

    config = ("--config", "tiny.yaml")
    trained = document("fit", *config, "--trainer.max_steps", 2, "--trainer.limit_val_batches", 1)
    assert trained == json.loads(Path("run/summary.json").read_text()) and trained["steps"] == 2
    measured = document("validate", *config, "--ckpt_path", "last")
    assert measured["val/accuracy"] == measured["val/arithmetic/accuracy"]

    seen, shown = document("preview", *config, "--prompts", 2), printed("preview", *config, "--prompts", 2)
    assert len(seen["prompts"]) == 2 and seen["summary"] in shown
    assert all(prompt["text"] in shown and prompt["id"] in shown for prompt in seen["prompts"])

    plan, shown = document("plan", *config, "--gpus", "2x80GB"), printed("plan", *config, "--gpus", "2x80GB")
    assert len(plan["strategies"]) == sum(line.rstrip().endswith(" yes") for line in shown.splitlines())
    assert all(line in " ".join(shown.split()) for line in plan["advice"])
    assert f"{plan['strategies'][0]['needs']:.1f}" in shown and plan["proposal"]["name"] in shown

    assert document("split", *config, "--out", "parts")["files"] == ["parts/train.jsonl", "parts/validation.jsonl"]
    assert printed("split", *config, "--out", "others") == "others/train.jsonl\nothers/validation.jsonl\n"
    every = ("--samples", 1, "--lowest", 0, "--highest", 1, "--out")
    kept = document("filter", *config, *every, "kept.jsonl")
    assert kept == {"file": "kept.jsonl", "kept": 16, "option": "--data.init_args.train"}

    exported = document("export", "run", "--to", "exported")
    assert exported == {"folder": "exported", "dtype": "float32"} and Path("exported/config.json").is_file()
    assert document("report", "run") == {"page": "run/report.html"}
    group, shown = document("explain", "run"), printed("explain", "run")
    assert group["group"]["id"] in shown and f"step {group['step']}" in shown
    assert document("doctor")["findings"][-1] in printed("doctor").replace("\n", " ") + printed("doctor")

    Path("mine.jsonl").write_text('{"question": "What is 1 + 1?", "answer": "2"}\n')
    Path("said.jsonl").write_text('{"id": "mine:1", "completion": "2"}\n')
    given = ("evaluate", "--suite", "mine=mine.jsonl", "--completions", "said.jsonl", "--out")
    scores = document(*given, "results")
    assert scores == json.loads(Path("results/results.json").read_text()) and "mine" in printed(*given, "others2")


def test_parity_prints_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lit_rlvr: CLI) -> None:
    monkeypatch.chdir(tmp_path)
    rewards = np.array([[1.0, 0.0]])
    arrays = {"logp": -np.ones((2, 3)), "old_logp": -np.ones((2, 3)), "mask": np.ones((2, 3), bool)}
    np.savez("batch.npz", rewards=rewards, correct=rewards, **arrays)  # type: ignore[arg-type]
    Path("losses.yaml").write_text("algorithms: {ours: GRPO}")
    done = lit_rlvr("parity", "batch.npz", "--config", "losses.yaml", "--out", "out.npz", "--json")
    found = json.loads(done.out)["ours"]
    assert set(found) == {"loss", "mean_advantage", "gradient", "zero_gradient"}
    assert found["mean_advantage"] == pytest.approx(1, abs=1e-5) and found["zero_gradient"] == 0


@pytest.mark.parametrize(
    "arguments",
    [("--version",), pytest.param((*FIT, "--json"), marks=pytest.mark.exhaustive)],
    ids=["version", "fit"],
)
def test_a_reader_that_has_gone_ends_a_command_without_a_word(run_folder: Path, arguments: tuple[str, ...]) -> None:
    """As `lit-rlvr ... | head`, whose `head` has exited; the run is complete."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [str(CONSOLE_SCRIPT), *arguments]
    try:
        done = subprocess.run(
            command, env=child_environment(), stdout=writer, stderr=subprocess.PIPE, text=True, check=False
        )
    finally:
        os.close(writer)
    assert done.returncode == 128 + signal.SIGPIPE, done.stderr
    if "fit" not in arguments:
        assert not done.stderr
        return
    assert "Traceback" not in done.stderr and done.stderr.count("Results: run") == 1
    assert (run_folder / "run/checkpoints/step-000006.ckpt").is_file()


@pytest.mark.parametrize(
    "arguments", ["--version", pytest.param("preview --config tiny.yaml --json", marks=pytest.mark.exhaustive)]
)
def test_an_output_that_cannot_be_written_is_one_line(run_folder: Path, arguments: str) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [str(CONSOLE_SCRIPT), *arguments.split()],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            env=child_environment(),
        )
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].endswith(" cannot be written: No space left on device")
    assert "Traceback" not in done.stderr and done.stderr.count("error") == 1


def test_an_output_that_is_closed() -> None:
    command = ["bash", "-c", '"$@" <&- >&- 2>&-', "-", str(CONSOLE_SCRIPT), "--version"]
    done = subprocess.run(command, env=child_environment(), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
