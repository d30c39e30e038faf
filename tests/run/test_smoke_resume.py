"""The resume smoke recipe: a checkpoint every step, weights that move, and the same end after a stop."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import assert_same_run, metrics, summary


@pytest.mark.slow
def test_the_recipe_goes_on_exactly(tmp_path: Path, lit_rlvr: Callable[..., Any],
                                    monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setenv("LIT_RLVR_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def fit(root: str, steps: int, *more: str) -> None:
        small = ["--data.init_args.evaluation.limit", "8", "--rollout.validate_every_rollouts", "4"]
        shorter = ["--model.init_args.optim.lr_schedule", "constant", "--trainer.max_steps", str(steps)]
        where = ["--trainer.default_root_dir", root]
        result = lit_rlvr("fit", "--config", "smoke/resume", *small, *shorter, *where, *more)
        assert result.status == 0, result.err

    fit("whole", 8)
    fit("parts", 4)
    first = summary(tmp_path / "parts")["weights_sha256"]
    assert len(list((tmp_path / "parts" / "checkpoints").glob("step-*.ckpt"))) == 2
    fit("parts", 8, "--ckpt_path", "last")
    assert_same_run(tmp_path / "parts", tmp_path / "whole", resumed=4)
    assert summary(tmp_path / "whole")["weights_sha256"] != first
    assert all(float(row["train/grad_norm"]) > 0 for row in metrics(tmp_path / "whole")[1:])
