"""A step that runs out of memory is tried again in smaller pieces."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import torch

from lit_rlvr.distributed.collectives import all_max, rank
from lit_rlvr.errors import UserError, first_line
from lit_rlvr.types import Rollout

T = TypeVar("T")
CPU_MESSAGES = ("DefaultCPUAllocator", "not enough memory")

_log = logging.getLogger("lit_rlvr")


def is_out_of_memory(error: Exception) -> bool:
    """Whether torch could not get memory, of a GPU or (where it has no class for that) of the machine."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(m in str(error) for m in CPU_MESSAGES)


def within_memory(
    run: Callable[[], T], rollout: Rollout, budget: int, sharded: bool, device: torch.device
) -> tuple[T | None, int]:
    """`run()` and the tokens that micro-batches may have; when memory ran out on any rank, None and half as many.

    Args:
        run: may not wait for other ranks.
        budget: tokens that a micro-batch had at most (`model.tokens_per_microbatch`).
        sharded: whether the weights are, so that a step cannot be tried again.

    Raises:
        UserError: micro-batches cannot be smaller, or the weights are sharded.
    """
    found, trouble = _try(run)
    if trouble is not None:
        _check_smaller(rollout, budget, sharded, trouble)
    if not all_max(trouble is not None, device):
        return found, budget
    if rank() == 0:
        _log.warning(
            "out of memory in a micro-batch (%s): this step again, and from now on at most %d tokens at once",
            trouble or "on another rank", budget // 2,
        )  # fmt: skip
    return None, budget // 2


def _try(run: Callable[[], T]) -> tuple[T | None, str | None]:
    """The result, or how memory ran out; what the attempt held is free again when this returns."""
    try:
        return run(), None
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return None, first_line(error)


def _check_smaller(rollout: Rollout, budget: int, sharded: bool, trouble: str) -> None:
    shortest = min(
        len(prompt.token_ids) + len(completion.token_ids)
        for prompt, group in zip(rollout.prompts, rollout.completions, strict=True)
        for completion in group
    )
    if sharded:
        raise UserError(
            f"{trouble}; with sharded weights a step cannot be tried again, lower model.tokens_per_microbatch"
        )
    if budget < shortest:
        raise UserError(
            f"{trouble}, with one completion at a time; use model.gradient_checkpointing, a smaller model, or a lower "
            "rollout.sampling.max_tokens"
        )
