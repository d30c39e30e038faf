"""The data types of one training iteration, with the meaning of their shapes.

Shapes: P prompts, G completions per prompt (the group), B = P * G sequences (row p * G + g),
T completion positions, V vocabulary. Masks are bool, True = in the loss.

Reward workers import this package and must not pay for torch, so `rollouts` is imported when one of its names is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lit_rlvr.types.completions import (
    Completion,
    FinishReason,
    ToolResult,
    Turn,
    UntrainedMessage,
    cut_sequences,
)
from lit_rlvr.types.results import (
    STATUSES,
    TURN_REWARDS,
    ExecutionFailed,
    Places,
    RewardResult,
    Status,
    recorded_places,
)
from lit_rlvr.types.samples import Pair, Prompt, Sample

if TYPE_CHECKING:
    from lit_rlvr.types.rollouts import GroupSelection, PromptBatch, Rollout, pad_completions

__all__ = [
    "STATUSES",
    "TURN_REWARDS",
    "Completion",
    "ExecutionFailed",
    "FinishReason",
    "GroupSelection",
    "Pair",
    "Places",
    "Prompt",
    "PromptBatch",
    "RewardResult",
    "Rollout",
    "Sample",
    "Status",
    "ToolResult",
    "Turn",
    "UntrainedMessage",
    "cut_sequences",
    "pad_completions",
    "recorded_places",
]


def __getattr__(name: str) -> Any:
    if name in __all__:  # those of `rollouts`, which needs torch
        return getattr(import_module("lit_rlvr.types.rollouts"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
