"""Rewards: callables that judge one completion of one sample.

Names resolve on first use, because worker processes import this package and must not pay for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_rlvr.rewards.base import Reward
    from lit_rlvr.rewards.choice import Choice
    from lit_rlvr.rewards.code import CodeTests
    from lit_rlvr.rewards.combine import Scores, score_rollout
    from lit_rlvr.rewards.format import Format
    from lit_rlvr.rewards.function import FunctionReward, as_rewards
    from lit_rlvr.rewards.judges.pairwise import PairwiseJudge
    from lit_rlvr.rewards.judges.reward_model import RewardModel, RewardModelServer
    from lit_rlvr.rewards.judges.rubric import PointwiseJudge, RubricJudge
    from lit_rlvr.rewards.length import LCPO, CosineScaled, Overlong, RelativeLength
    from lit_rlvr.rewards.math import MathAnswer
    from lit_rlvr.rewards.open_answer import OpenAnswer
    from lit_rlvr.rewards.repetition import RepetitionPenalty
    from lit_rlvr.rewards.sql import SQLExecution
    from lit_rlvr.workers.pool import WorkerPool, shared_pool
    from lit_rlvr.workers.process import Outcome

__all__ = [
    "LCPO",
    "Choice",
    "CodeTests",
    "CosineScaled",
    "Format",
    "FunctionReward",
    "MathAnswer",
    "OpenAnswer",
    "Outcome",
    "Overlong",
    "PairwiseJudge",
    "PointwiseJudge",
    "RelativeLength",
    "RepetitionPenalty",
    "Reward",
    "RewardModel",
    "RewardModelServer",
    "RubricJudge",
    "SQLExecution",
    "Scores",
    "WorkerPool",
    "as_rewards",
    "score_rollout",
    "shared_pool",
]

_MODULES = {
    "Choice": ".choice",
    "CodeTests": ".code",
    "CosineScaled": ".length",
    "Format": ".format",
    "FunctionReward": ".function",
    "LCPO": ".length",
    "MathAnswer": ".math",
    "OpenAnswer": ".open_answer",
    "Outcome": "..workers.process",
    "Overlong": ".length",
    "RelativeLength": ".length",
    "PairwiseJudge": ".judges.pairwise",
    "PointwiseJudge": ".judges.rubric",
    "RewardModel": ".judges.reward_model",
    "RewardModelServer": ".judges.reward_model",
    "RubricJudge": ".judges.rubric",
    "RepetitionPenalty": ".repetition",
    "Reward": ".base",
    "SQLExecution": ".sql",
    "Scores": ".combine",
    "WorkerPool": "..workers.pool",
    "as_rewards": ".function",
    "score_rollout": ".combine",
    "shared_pool": "..workers.pool",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name], __name__), name)
