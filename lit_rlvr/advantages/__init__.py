"""Advantage estimators and their registry: (P, G) rewards of groups in, (P, G) advantages out.

P prompts (over all ranks), G completions per prompt. An advantage is a constant: no gradient flows through it.
"""

from lit_rlvr.advantages.aapo import AAPOAdvantage
from lit_rlvr.advantages.agrae import AGRAE
from lit_rlvr.advantages.base import (
    EQUAL_SPREAD,
    REGISTRY,
    Advantage,
    AdvantageFunction,
    GroupBatch,
    ReferenceCompletions,
    register,
    resolve_advantage,
)
from lit_rlvr.advantages.composed import (
    Composed,
    EasyFocused,
    HardFocused,
    NegativeDominant,
    PositiveDominant,
)
from lit_rlvr.advantages.group import (
    DrGRPOAdvantage,
    GDPOAdvantage,
    GPGAdvantage,
    GRPOAdvantage,
    GRPOLeadAdvantage,
    MaxRLAdvantage,
    NoAdvantage,
    OPOAdvantage,
    ReinforceAdvantage,
    RLOOAdvantage,
)
from lit_rlvr.advantages.pass_at_k import GRPOPassKAdvantage, PassAtKAdvantage
from lit_rlvr.advantages.reinforce_pp import ReinforcePPAdvantage
from lit_rlvr.advantages.turns import GiGPOAdvantage, StepReturns

__all__ = [
    "AGRAE",
    "EQUAL_SPREAD",
    "REGISTRY",
    "AAPOAdvantage",
    "Advantage",
    "AdvantageFunction",
    "Composed",
    "DrGRPOAdvantage",
    "EasyFocused",
    "GDPOAdvantage",
    "GPGAdvantage",
    "GRPOAdvantage",
    "GRPOLeadAdvantage",
    "GRPOPassKAdvantage",
    "GiGPOAdvantage",
    "GroupBatch",
    "HardFocused",
    "MaxRLAdvantage",
    "NegativeDominant",
    "NoAdvantage",
    "OPOAdvantage",
    "PassAtKAdvantage",
    "PositiveDominant",
    "RLOOAdvantage",
    "ReferenceCompletions",
    "ReinforceAdvantage",
    "ReinforcePPAdvantage",
    "StepReturns",
    "register",
    "resolve_advantage",
]
