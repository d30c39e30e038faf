"""Every smoke recipe runs two steps, with a warm start of two steps and few rows."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import metrics, summary

from lit_rlvr.configs import config_folder, load_config
from lit_rlvr.rewards.sql import extract_sql
from lit_rlvr.types import Completion, Prompt, Sample

WARM = ("--warm_start.steps", "2")
PICTURES = (*WARM, "--data.init_args.pictures", "160", "--data.init_args.held_out", "8")
SQL = ("--rollout.engine", "hf", "--trainer.precision", "32-true", "--data.evaluation.limit", "8")
RECIPES: dict[str, tuple[tuple[str, ...], set[str]]] = {
    "geometry": (PICTURES, {"reward/math_answer"}),
    "smolvlm2": (PICTURES, {"reward/math_answer"}),
    "boxes": (PICTURES, {"reward/boxes"}),
    "instructions": (
        SQL,
        {"reward/instruction_following/prompt_loose", "val/instructions/reward", "train/sums/prompts"},
    ),
    "sums": (WARM, {"reward/open_answer", "val/arithmetic/pass@8"}),
    "sft": ((), {"val/arithmetic/loss"}),
    "mixture": (WARM, {"train/hard/reward", "val/easy/accuracy", "rollout/retired_prompts"}),
    "text_to_sql": (  # completions of bytes
        (*SQL, "--rollout.sampling.max_tokens", "112", "--rollout.evaluation.sampling.max_tokens", "112"),
        {"reward/sql_execution", "val/synthetic_sql/accuracy"},
    ),
    "sql_turns": ((*SQL, "--warm_start.steps", "0"), {"reward/sql_execution", "rollout/turns", "rollout/tool_calls"}),
}
"""Recipe -> what makes it small, and metrics of its own."""
FAST = ("geometry", "text_to_sql")


@pytest.mark.parametrize(
    "recipe", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in RECIPES]
)
def test_a_recipe_runs(
    recipe: str, tmp_path: Path, tiny_model_folder: Path, lit_rlvr: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIT_RLVR_CACHE", str(tmp_path / "cache"))
    small, wanted = RECIPES[recipe]
    replaces_smollm2 = "sql" in recipe or recipe == "instructions"
    model = ("--model.init_args.model", tiny_model_folder) if replaces_smollm2 else ()
    lit_rlvr(
        "fit",
        "--config",
        f"smoke/{recipe}",
        *small,
        *model,
        "--trainer.max_steps",
        "2",
        "--data.prompts_per_rollout",
        "2",
        "--rollout.validate_every_rollouts",
        "1",
        "--trainer.default_root_dir",
        tmp_path / "run",
        status=0,
    )
    assert summary(tmp_path / "run")["steps"] == 2
    assert wanted <= {name for row in metrics(tmp_path / "run") for name, value in row.items() if value}


def test_the_reward_judges_the_prefill_too() -> None:
    options = load_config(config_folder() / "smoke/text_to_sql.yaml")["data"]["init_args"]["chat"]
    prompt = Prompt(
        Sample("a", "?", "SELECT 1"), [], prefill=options["prefill"], score_prefill=options["score_prefill"]
    )
    (judged,) = prompt.for_rewards([Completion(" 1\n```\nIt selects 1.", (1,), "stop")])
    assert extract_sql(judged.text) == "SELECT 1"
