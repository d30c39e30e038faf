"""The text-to-SQL smoke recipe, with a tiny model, as far as that can go."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import metrics, summary

from lit_rlvr.configs import config_folder, load_config
from lit_rlvr.rewards.sql import extract_sql
from lit_rlvr.types import Completion, Prompt, Sample


def test_the_recipe_runs(tmp_path: Path, tiny_model_folder: Path, lit_rlvr: Callable[..., Any],
                         monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    small = ["--data.evaluation.limit", "8", "--data.prompts_per_rollout", "2", "--trainer.max_steps", "2"]
    result = lit_rlvr("fit", "--config", "smoke/text_to_sql", "--model.init_args.model", tiny_model_folder, *small,
                      "--rollout.engine", "hf", "--trainer.precision", "32-true", "--trainer.accelerator", "cpu",
                      "--rollout.sampling.max_tokens", "112",  # of bytes
                      "--rollout.evaluation.sampling.max_tokens", "112", "--rollout.validate_every_rollouts", "1",
                      "--trainer.default_root_dir", tmp_path / "run")  # fmt: skip
    assert result.status == 0, result.err
    assert summary(tmp_path / "run")["steps"] == 2
    names = {name for row in metrics(tmp_path / "run") for name, value in row.items() if value}
    assert {"reward/sql_execution", "val/synthetic_sql/accuracy"} <= names
    assert {name for name in names if name.startswith("val/synthetic_sql/accuracy/")}


def test_the_reward_judges_the_prefill_too() -> None:
    options = load_config(config_folder() / "smoke/text_to_sql.yaml")["data"]["init_args"]
    prompt = Prompt(
        Sample("a", "?", "SELECT 1"), [], prefill=options["prefill"], score_prefill=options["score_prefill"]
    )
    (judged,) = prompt.as_judged([Completion(" 1\n```\nIt selects 1.", (1,), "stop")])
    assert extract_sql(judged.text) == "SELECT 1"
