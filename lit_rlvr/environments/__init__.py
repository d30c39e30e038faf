"""Environments, which answer a model that acts in several turns.

Worker processes import this package, which must not pay for torch.
"""

from lit_rlvr.environments.agent import Agent
from lit_rlvr.environments.base import Environment, EnvironmentReward, Observation, TurnRewards
from lit_rlvr.environments.built_in import Calculator, Crop, Python, SQLShell
from lit_rlvr.environments.episode import EpisodeWorkers
from lit_rlvr.environments.tools import SingleTurn, Tools, WrappedTools, as_environment

__all__ = [
    "Agent",
    "Calculator",
    "Crop",
    "Environment",
    "EnvironmentReward",
    "EpisodeWorkers",
    "Observation",
    "Python",
    "SQLShell",
    "SingleTurn",
    "Tools",
    "TurnRewards",
    "WrappedTools",
    "as_environment",
]
