"""Environments, which answer a model that acts in several turns.

Names resolve on first use, because worker processes import this package and must not pay for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_rlvr.environments.base import Environment, EnvironmentReward, Observation
    from lit_rlvr.environments.built_in import Calculator, Crop, Python, SQLShell
    from lit_rlvr.environments.episode import EpisodeWorkers
    from lit_rlvr.environments.tools import SingleTurn, Tools, WrappedTools, as_environment

__all__ = [
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
    "WrappedTools",
    "as_environment",
]

_MODULES = {
    "Calculator": ".built_in",
    "Crop": ".built_in",
    "Environment": ".base",
    "EnvironmentReward": ".base",
    "EpisodeWorkers": ".episode",
    "Observation": ".base",
    "Python": ".built_in",
    "SQLShell": ".built_in",
    "SingleTurn": ".tools",
    "Tools": ".tools",
    "WrappedTools": ".tools",
    "as_environment": ".tools",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name], __name__), name)
