"""Default settings of an evaluation, taken from the run or the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from lit_rlvr.datamodules.reading.rows import lookup
from lit_rlvr.evaluation.protocols import TURNS
from lit_rlvr.export import is_run, run_config
from lit_rlvr.policy.loading import load_config
from lit_rlvr.policy.precision import compute_dtype
from lit_rlvr.types import Sampling

MAX_TOKENS = 2048
"""Default completion length for models without a run."""

Found = tuple[Any, str]
"""A value and its origin."""


def find_dtype(asked: str, model: str, folder: str) -> Found:
    """The data type to compute in: the requested one, else the run's, else that of the model's weights.

    Args:
        asked: float32, bfloat16 or auto.
        model: the model as the user named it.
        folder: the folder of its weights.
    """
    if asked != "auto":
        return getattr(torch, asked), "--dtype"
    if is_run(model):
        return compute_dtype(
            str(lookup(run_config(Path(model).expanduser()), "trainer.precision"))
        ), "the run's precision"
    config = load_config(folder)
    found = getattr(config, "dtype", None) or getattr(config.get_text_config(), "dtype", None)
    if not isinstance(found, torch.dtype):
        return torch.float32, "by default"
    return torch.float32 if found.itemsize >= 4 else torch.bfloat16, f"its config.json: {found}"


def find_limits(max_tokens: int, model: str) -> Sampling:
    """The limits of a completion, and with a run those of its episodes and its stop texts."""
    if not is_run(model):
        return Sampling(max_tokens=max_tokens)
    config = run_config(Path(model).expanduser())
    found: dict[str, Any] = {}
    for name in (*TURNS, "stop"):
        for place in ("eval_sampling", "sampling"):
            value = lookup(config, f"rollout.{place}.{name}")
            if value is not None and name not in found:
                found[name] = tuple(value) if name == "stop" else value
    return Sampling(max_tokens=max_tokens, **found)


def find_environment(model: str) -> Any:
    """The environment in a run's config; None if it has none."""
    return lookup(run_config(Path(model).expanduser()), "rollout.environment") if is_run(model) else None


def find_max_tokens(asked: int | None, model: str) -> Found:
    """The longest completion: the requested length, else the run's validation length, else `MAX_TOKENS`."""
    if asked is not None:
        return asked, "--max_tokens"
    if is_run(model):
        config = run_config(Path(model).expanduser())
        for name in ("rollout.eval_sampling.max_tokens", "rollout.sampling.max_tokens"):
            if isinstance(found := lookup(config, name), int):
                return found, f"the run's {name}"
    return MAX_TOKENS, "by default"
