"""Rewards: callables that judge one completion of one sample.

Worker processes import this package and must not pay for torch, so `combine` is not imported here.
"""

from lit_rlvr.rewards.base import Reward
from lit_rlvr.rewards.choice import Choice
from lit_rlvr.rewards.code import CodeTests
from lit_rlvr.rewards.format import Format
from lit_rlvr.rewards.function import FunctionReward, as_rewards
from lit_rlvr.rewards.instructions.reward import InstructionFollowing
from lit_rlvr.rewards.judges.group import GroupJudge
from lit_rlvr.rewards.judges.pairwise import PairwiseJudge
from lit_rlvr.rewards.judges.reward_model import RewardModel, RewardModelServer
from lit_rlvr.rewards.judges.rubric import PointwiseJudge, RubricJudge
from lit_rlvr.rewards.length import LCPO, CosineScaled, Overlong, RelativeLength
from lit_rlvr.rewards.math import MathAnswer
from lit_rlvr.rewards.open_answer import OpenAnswer
from lit_rlvr.rewards.places.boxes import Boxes
from lit_rlvr.rewards.places.points import Points
from lit_rlvr.rewards.repetition import RepetitionPenalty
from lit_rlvr.rewards.sql import SQLExecution
from lit_rlvr.workers.pool import WorkerPool, shared_pool
from lit_rlvr.workers.process import Outcome

__all__ = [
    "LCPO",
    "Boxes",
    "Choice",
    "CodeTests",
    "CosineScaled",
    "Format",
    "FunctionReward",
    "GroupJudge",
    "InstructionFollowing",
    "MathAnswer",
    "OpenAnswer",
    "Outcome",
    "Overlong",
    "PairwiseJudge",
    "Points",
    "PointwiseJudge",
    "RelativeLength",
    "RepetitionPenalty",
    "Reward",
    "RewardModel",
    "RewardModelServer",
    "RubricJudge",
    "SQLExecution",
    "WorkerPool",
    "as_rewards",
    "shared_pool",
]
