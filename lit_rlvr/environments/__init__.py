"""Environments, which answer a model that acts in several turns.

Names resolve on first use, because worker processes import this package and must not pay for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_rlvr.environments.base import Environment, Observation
    from lit_rlvr.environments.calculator import Calculator
    from lit_rlvr.environments.crop import Crop
    from lit_rlvr.environments.guess_number import GuessNumber
    from lit_rlvr.environments.python import Python
    from lit_rlvr.environments.reward import EnvironmentReward
    from lit_rlvr.environments.sql_shell import SQLShell
    from lit_rlvr.environments.tools import Tools, WrappedTools, as_environment
    from lit_rlvr.environments.workers import EpisodeWorkers

__all__ = [
    "Calculator",
    "Crop",
    "Environment",
    "EnvironmentReward",
    "EpisodeWorkers",
    "GuessNumber",
    "Observation",
    "Python",
    "SQLShell",
    "Tools",
    "WrappedTools",
    "as_environment",
]

_MODULES = {
    "Calculator": ".calculator",
    "Crop": ".crop",
    "Environment": ".base",
    "EnvironmentReward": ".reward",
    "EpisodeWorkers": ".workers",
    "GuessNumber": ".guess_number",
    "Observation": ".base",
    "Python": ".python",
    "SQLShell": ".sql_shell",
    "Tools": ".tools",
    "WrappedTools": ".tools",
    "as_environment": ".tools",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name], __name__), name)
