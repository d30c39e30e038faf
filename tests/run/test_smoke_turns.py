"""The smoke recipe of SQL in several turns, with a tiny model, as far as that can go."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import metrics

CLI = Callable[..., Any]


def test_the_sql_recipe_runs(
    tmp_path: Path, tiny_model_folder: Path, lit_rlvr: CLI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    small = ("--data.init_args.eval_limit", "8", "--data.init_args.prompts_per_step", "2", "--trainer.max_steps", "2")
    result = lit_rlvr("fit", "--config", "smoke/sql_turns", "--model.init_args.model", tiny_model_folder, *small,
                      "--rollout.engine", "hf", "--trainer.precision", "32-true", "--trainer.accelerator", "cpu",
                      "--warm_start.steps", "0", "--trainer.default_root_dir", tmp_path / "run",
                      "--trainer.val_check_interval", "1")  # fmt: skip
    assert result.status == 0, result.err
    names = {name for row in metrics(tmp_path / "run") for name, value in row.items() if value}
    assert {"reward/sql_execution", "rollout/turns", "rollout/tool_calls"} <= names
