"""From the same start, every algorithm learns the same tiny task, from a fixed seed."""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import summary, to

from lit_rlvr import algorithms

CLI = Callable[..., Any]
SAMPLES, QUESTIONS = 32, 20
NAMES = [name for name in algorithms.__all__ if name != "RLVRModule"]
AGRAE = ("--model", "GRPO", "--model.init_args.advantage", "agrae")
OPD = ("--model", "OPD", "--model.init_args.teacher.model", "teacher")


@pytest.mark.slow
@pytest.mark.parametrize("name", [*NAMES, "A-GRAE"])
def test_accuracy_rises_clearly(run_folder: Path, lit_rlvr: CLI, name: str) -> None:
    """The share of right samples on held-out prompts rises by more than 5 standard errors of the difference.

    A sample is right when its first token's number is divisible by 3. Both shares come from 640 samples, so that
    without learning one of the 12 runs would pass with a chance below 1 in 270,000. OPD learns from GRPO's model alone.
    """
    model = {"A-GRAE": AGRAE, "OPD": OPD}.get(name, ("--model", name))
    shape = ("--trainer.max_steps", "30", "--model.init_args.lr", "0.003", "--rollout.group_size", "8")
    judge = (
        "--rollout.evaluation.samples",
        SAMPLES,
        "--rollout.evaluation.sampling.temperature",
        "1",
        "--seed_everything",
        0,
    )
    command = ("fit", "--config", "tiny.yaml", *shape, *judge, "--rollout.validate_every_rollouts", "30")
    if name == "OPD":
        assert lit_rlvr(*command, *to("taught")).status == 0
        assert lit_rlvr("export", "taught", "--to", "teacher").status == 0
    result = lit_rlvr(*command, *model)
    assert result.status == 0, result.err
    before, after = (summary(run_folder / "run")[f"accuracy_{when}"] for when in ("before", "after"))
    n = SAMPLES * QUESTIONS
    error = sqrt(before * (1 - before) / n + after * (1 - after) / n)
    assert after - before > 5 * error, (before, after, error)
