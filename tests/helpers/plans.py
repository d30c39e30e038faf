"""Plans of runs that no trainer has."""

from __future__ import annotations

import torch

from lit_rlvr.plan import RunPlan
from lit_rlvr.rollout.preflight.sizes import plan_rollouts
from lit_rlvr.rollout.settings import RolloutSettings
from lit_rlvr.training.module import RLVRModule


def plan_without_trainer(
    rollout: RolloutSettings,
    module: RLVRModule,
    prompts: int,
    ranks: int = 1,
    precision: str = "32-true",
    device: str = "cpu",
) -> RunPlan:
    """Return the plan of a run with some prompts in each rollout."""
    plan = RunPlan(ranks=ranks, precision=precision, device=torch.device(device))
    return plan_rollouts(plan, rollout, module, prompts)
