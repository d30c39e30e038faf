"""Retries a step that runs out of memory with smaller micro-batches."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import torch

from lit_rlvr.distributed.collectives import all_max, rank
from lit_rlvr.errors import UserError, first_line
from lit_rlvr.types import Rollout

T = TypeVar("T")
MESSAGES = ("DefaultCPUAllocator", "not enough memory", "OutOfMemoryError")
"""Substrings of out-of-memory errors that have no exception class."""

_log = logging.getLogger("lit_rlvr")


def is_out_of_memory(error: Exception) -> bool:
    """Return whether torch ran out of memory; on a CPU and in its compiler only the message tells."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(m in str(error) for m in MESSAGES)


def within_memory(
    run: Callable[[], T], rollout: Rollout, budget: int, sharded: bool, device: torch.device
) -> tuple[T | None, int]:
    """Call `run`, and halve the token budget if any rank runs out of memory. Collective: call it on every rank.

    Args:
        run: must not wait for other ranks, unless the weights are sharded.
        budget: maximum tokens per micro-batch (`model.tokens_per_microbatch`).
        sharded: whether the weights are sharded, so that a step cannot be retried.

    Returns:
        The result of `run` and the budget, or None and half the budget if any rank ran out of memory.

    Raises:
        UserError: memory ran out, and micro-batches cannot get smaller or the weights are sharded.
    """
    found, trouble = _try(run)
    if trouble is not None:
        _check_smaller(rollout, budget, sharded, trouble)
    if not all_max(trouble is not None, device):
        return found, budget
    if rank() == 0:
        _log.warning(
            "out of memory in a micro-batch (%s): retrying this step, with at most %d tokens at once from now on",
            trouble or "on another rank", budget // 2,
        )  # fmt: skip
    return None, budget // 2


def _try(run: Callable[[], T]) -> tuple[T | None, str | None]:
    """Return the result, or how memory ran out; a failed attempt's memory is free by then."""
    try:
        return run(), None
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return None, first_line(error)


def _check_smaller(rollout: Rollout, budget: int, sharded: bool, trouble: str) -> None:
    if sharded:
        raise UserError(f"{trouble}; with sharded weights a step cannot be retried; lower model.tokens_per_microbatch")
    # Above this, completions of one token, which take no place after their prompt, may share a micro-batch.
    if budget < min(len(prompt.token_ids) for prompt in rollout.prompts):
        raise UserError(
            f"{trouble}, with one completion at a time; use model.gradient_checkpointing, a smaller model, or a lower "
            "rollout.sampling.max_tokens"
        )
