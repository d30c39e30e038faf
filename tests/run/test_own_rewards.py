"""Runs with a reward of the user's own: it works alone, it fails where its file is named, and it ends no run."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny import threads
from tiny_rewards import judged_as_is
from tiny_runs import CLI, FIT, completions, fit, metrics

from lit_rlvr.rewards import shared_pool

SHORT = ("--trainer.max_steps", 1, "--trainer.limit_val_batches", 0, "--trainer.num_sanity_val_steps", 0)
SOURCE = """import os
import sys

def length(completion, sample):
    return len(completion.token_ids) - 7

def even(completion, sample):
    return completion.token_ids[0] % 2 == 0

def column(completion, sample):
    return sample.row["colour"]

def nothing(completion, sample):
    print(completion)

def ends(completion, sample):
    os._exit(0) if completion.token_ids[0] % 2 else None
    return True

def leaves(*_):
    sys.exit(0)

def moves(completion, sample):
    os.makedirs("elsewhere", exist_ok=True)
    os.chdir("elsewhere")
    return completion.token_ids[0] % 2 == 0
"""

EVEN = "{class_path: FunctionReward, init_args: {path: own_rewards.even, truncated_is_wrong: false}}"


@pytest.fixture(autouse=True)
def task(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`own_rewards` in the current directory, which workers learn of when they start."""
    monkeypatch.delitem(sys.modules, "own_rewards", raising=False)
    (run_folder / "own_rewards.py").write_text(SOURCE)
    (run_folder / "ends_at_once.py").write_text("import sys\nsys.exit(0)\n")
    shared_pool().close()


def rewards(*names: str) -> tuple[str, str]:
    return "--rollout.rewards", f"[{', '.join(names)}]"


def test_a_plain_function_works_alone(run_folder: Path, lit_rlvr: CLI) -> None:
    said = fit(lit_rlvr, *SHORT, *rewards("own_rewards.length")).err
    assert said.count("own_rewards.length: runs in this process") == 1
    assert said.count("'length' reports no `correct`") == 1
    assert all(row["correct"] == (row["reward"] == 1) for row in completions(run_folder / "run"))


def test_a_reward_that_fails_is_named_by_file_and_line(lit_rlvr: CLI) -> None:
    said = lit_rlvr(*FIT, *SHORT, *rewards("own_rewards.column")).refusal
    assert "reward 'column' failed on 16 of 16" in said and ": own_rewards.py:11: KeyError: 'colour';" in said
    said = lit_rlvr(*FIT, *SHORT, *rewards("own_rewards.nothing"), "--overwrite", "true").refusal
    assert "rollout.rewards: nothing: no reward for any of the 16 completions of iteration 1, so" in said


@pytest.mark.slow
def test_a_reward_that_ends_its_process_fails_alone_where_it_is_isolated(run_folder: Path, lit_rlvr: CLI) -> None:
    isolated = "{class_path: FunctionReward, init_args: {path: own_rewards.ends, isolate: true}}"
    said = fit(lit_rlvr, *SHORT, *rewards(isolated), "--rollout.safeguards.max_failure_rate", 0.99).err
    assert "runs in this process" not in said
    assert {row["status"] for row in completions(run_folder / "run")} == {"ok", "error"}


@pytest.mark.parametrize(
    ("option", "value", "line"),
    [
        ("--rollout.rewards", "[ends_at_once.score]", "ends_at_once.py:2: sys.exit(0) ended the run"),
        ("--model.init_args.advantage", "own_rewards.leaves", "own_rewards.py:21: sys.exit(0) ended the run"),
    ],
)
def test_sys_exit_in_own_code_is_no_success(option: str, value: str, line: str, lit_rlvr: CLI) -> None:
    assert lit_rlvr(*FIT, *SHORT, option, value).refusal == f"lit-rlvr: error: {line}"


def test_a_reward_that_changes_the_directory_does_not_split_the_run(run_folder: Path, lit_rlvr: CLI) -> None:
    fit(lit_rlvr, *rewards("own_rewards.moves"), "--trainer.logger", "CSVLogger", "--trainer.max_steps", 2)
    written = {path.name for path in (run_folder / "run").iterdir()}
    assert {"summary.json", "metrics.csv", "tensorboard", "lightning_logs", "checkpoints", "live.json"} <= written
    assert not [path for path in (run_folder / "elsewhere").rglob("*") if path.is_file()]
    saved = yaml.safe_load((run_folder / "run" / "config.yaml").read_text())
    assert saved["trainer"]["default_root_dir"] == "run", "it can move, with its config"


def test_changed_code_validation_answers_and_threads_are_named_on_resuming(
    run_folder: Path, lit_rlvr: CLI, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, held_out = run_folder / "train.jsonl", run_folder / "held_out.jsonl"
    train.write_text("".join(f'{{"prompt": "{k} + 1", "answer": "{k + 1}"}}\n' for k in range(2, 10)))
    held_out.write_text('{"prompt": "1 + 1", "answer": "2"}\n')
    config = yaml.safe_load((run_folder / "tiny.yaml").read_text())
    files = {"train": str(train), "validation": str(held_out), "prompts_per_rollout": 4}
    config["data"] = {"class_path": "TextMath", "init_args": files}
    (run_folder / "tiny.yaml").write_text(yaml.safe_dump(config))
    code = run_folder / "rewards_to_change.py"  # a name that no other run of this process imports
    code.write_text(SOURCE)
    options = rewards(EVEN.replace("own_rewards", code.stem))
    assert fit(lit_rlvr, *options, "--trainer.max_steps", 1).status == 0
    unchanged = fit(lit_rlvr, *options, "--trainer.max_steps", 2, "--ckpt_path", "last")
    assert unchanged.status == 0 and "resumed with changed" not in unchanged.err, unchanged.err
    assert "torch's threads" not in unchanged.err
    held_out.write_text('{"prompt": "1 + 1", "answer": "3"}\n')
    code.write_text(SOURCE + "\n")
    monkeypatch.delitem(sys.modules, code.stem)
    count = torch.get_num_threads()
    with threads(count + 1):
        changed = fit(lit_rlvr, *options, "--trainer.max_steps", 3, "--ckpt_path", "last")
    assert changed.status == 0, changed.err
    assert "resumed with changed code of your own: rewards_to_change" in changed.err
    assert "resumed with changed validation data: " in changed.err
    assert f"resumed with a different number of torch's threads: {count} -> {count + 1}; " in changed.err
    assert f"OMP_NUM_THREADS={count} keeps them" in changed.err


OPENED = (
    "--rollout.rewards",
    json.dumps([judged_as_is("opened")]),
    "--trainer.max_steps",
    "1",
    "--data.init_args.chat.prefill",
    "<think>\n",
)


def test_rewards_get_the_prefill_in_training_and_validation(run_folder: Path, lit_rlvr: Callable[..., Any]) -> None:
    result = lit_rlvr("fit", "--config", "tiny.yaml", *OPENED, "--rollout.validate_every_rollouts", "1", status=0)
    lines = Path("opened").read_text().splitlines()
    assert len(lines) > 16 and all(line.startswith("'<think>\\n' ") for line in lines), lines[:3]
    (row,) = (row for row in metrics(run_folder / "run") if row["reward/opened/parse_fail"])
    assert float(row["reward/opened/parse_fail"]) == float(row["reward/status/parse_fail"]) == 1.0
    assert "step 1: Answers cannot be read: opened found no answer in 100% of the completions" in result.err
    Path("opened").unlink()
    lit_rlvr(
        "fit",
        "--config",
        "tiny.yaml",
        *OPENED,
        "--data.init_args.chat.score_prefill",
        "true",
        "--overwrite",
        "true",
        status=0,
    )
    lines = Path("opened").read_text().splitlines()
    assert set(lines) == {"'' '<think>'"}


def test_a_format_that_the_prefill_has_is_refused_before_weights_load(
    run_folder: Path, lit_rlvr: Callable[..., Any]
) -> None:
    form = ("--rollout.rewards", json.dumps([{"class_path": "Format", "init_args": {"pattern": "^<think>.*</think>"}}]))
    result = lit_rlvr(
        "fit", "--config", "tiny.yaml", *OPENED, *form, status=2, says="'format' asks for <think> in the text"
    )
    assert "set data.init_args.chat.score_prefill: true" in result.err
    ours = ("--rollout.rewards", json.dumps(["trl.rewards.think_format_reward"]))
    result = lit_rlvr("fit", "--config", "tiny.yaml", *OPENED, *ours)
    assert "reward 'think_format_reward': its code names <think>, which the chat template or" in result.err
