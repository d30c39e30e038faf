"""Runs of several turns from the command line: training, exact resume, evaluation, and what is shown of them."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import CLI, fit as run

TURNS = (
    "--rollout.environment",
    "tiny_environments.Echo",
    "--rollout.sampling.max_turns",
    3,
    "--rollout.sampling.max_observation_tokens",
    40,
    "--rollout.rewards",
    "null",
)
ONE = ("--trainer.max_steps", 1, "--trainer.limit_val_batches", 0)


@pytest.mark.slow
def test_a_run_is_evaluated_in_its_environment_and_another_model_like_it(
    run_folder: Path, lit_rlvr: CLI, tiny_model_folder: Path
) -> None:
    run(lit_rlvr, *TURNS, *ONE)
    (run_folder / "sums.jsonl").write_text(
        "".join(f'{{"question": "{a}+1?", "answer": "{a + 1}"}}\n' for a in range(6))
    )
    options = ("--suite", "sums.jsonl", "-n", 4, "--temperature", 1.0, "--engine", "hf")
    command = ("evaluate", "--model", "run", *options)
    lit_rlvr(*command, "--out", "found", status=0)
    rows = [json.loads(line) for line in (run_folder / "found" / "completions.jsonl").read_text().splitlines()]
    assert {len(row["turns"]) for row in rows if row["part"] == "sums/sampled"} > {1}
    found = json.loads((run_folder / "found" / "settings.json").read_text())
    settings = found["suites"]["sums"]
    assert settings["environment"].startswith("Echo ") and settings["sampled"]["max_turns"] == 3
    lit_rlvr("evaluate", "--model", tiny_model_folder, "--like", "run", *options, "--out", "before", status=0)
    assert json.loads((run_folder / "before" / "settings.json").read_text()) == found | {
        "model": str(tiny_model_folder)
    }
    lit_rlvr(*command, "--out", "found", "--max_turns", 2, status=2, says="max_turns was 3, is 2")


def test_prompts_are_filtered_in_their_environment(run_folder: Path, lit_rlvr: CLI) -> None:
    lit_rlvr(
        "filter",
        "--config",
        "tiny.yaml",
        *TURNS,
        "--samples",
        4,
        "--lowest",
        0,
        "--highest",
        1,
        "--out",
        "kept.jsonl",
        status=0,
    )
    rows = (run_folder / "kept.samples" / "completions.jsonl").read_text().splitlines()
    assert max(len(json.loads(row)["turns"]) for row in rows) > 1


@pytest.mark.first_case_fast
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--rollout.sampling.max_turns", 2], "rollout.sampling.max_turns: 2 turns need an environment"),
        (["--rollout.environment", "Calculator"], "rollout.sampling.max_turns: Calculator answers between turns"),
        (["--rollout.environment", "no.Such"], "rollout.environment: 'no.Such' cannot be imported"),
        (["--rollout.environment", "5"], "rollout.environment: there is no environment '5'; give the dotted path of a"),
        (["--rollout.environment", "Calculater"], "there is no environment 'Calculater'; did you mean 'Calculator'?"),
        (["--rollout.environment", "{class_path: Calculater}"], "rollout.environment"),
        (["--rollout.environment", "{shop: no.Such}"], "rollout.environment: 'no.Such' cannot be imported"),
        (
            ["--rollout.rewards", "[trl_environments.reward_func]"],
            "rollout.rewards: trl_environments.reward_func gets `environments`, but there is no rollout.environment",
        ),
        (
            [*TURNS, "--rollout.sampling.max_episode_tokens", 4],
            "sampling.max_episode_tokens: 4 must be >= max_tokens=8",
        ),
    ],
)
def test_turns_without_an_environment_and_environments_without_turns_are_refused(
    run_folder: Path, lit_rlvr: CLI, options: list[Any], said: str
) -> None:
    refused = run(lit_rlvr, *options, status=2, says=said)
    assert len(refused.err.strip().splitlines()) == 1, refused.err


def test_a_broken_environment_stops_the_run_with_its_error(run_folder: Path, lit_rlvr: CLI) -> None:
    broken = ("--rollout.environment", "tiny_environments.Broken", "--rollout.rewards", "null")
    refusal = run(lit_rlvr, *broken, *ONE, status=2).refusal
    assert "environment: " in refusal and "no way in" in refusal
