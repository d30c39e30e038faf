"""A step that runs out of memory is tried again in smaller pieces."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import torch

from lit_rlvr.distributed import all_max, rank
from lit_rlvr.errors import UserError, in_one_line
from lit_rlvr.types import Rollout

if TYPE_CHECKING:
    from lit_rlvr.algorithms.base import RLVRModule

T = TypeVar("T")
CPU_MESSAGES = ("DefaultCPUAllocator", "not enough memory")

_log = logging.getLogger("lit_rlvr")


def is_out_of_memory(error: Exception) -> bool:
    """Whether torch could not get memory, of a GPU or (where it has no class for that) of the machine."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(m in str(error) for m in CPU_MESSAGES)


def within_memory(module: RLVRModule, rollout: Rollout, run: Callable[[], T]) -> T | None:
    """`run()`; None when memory ran out on any rank, after which `module.tokens_per_microbatch` is half of what it was.

    `run` may not wait for other ranks.

    Raises:
        UserError: micro-batches cannot be smaller, or the weights are sharded.
    """
    found, trouble = _try(run)
    if trouble is not None:
        _check_smaller(module, rollout, trouble)
    if not all_max(trouble is not None, module.device):
        return found
    module.tokens_per_microbatch //= 2
    if rank() == 0:
        _log.warning(
            "out of memory in a micro-batch (%s): this step again, and from now on at most %d tokens at once",
            trouble or "on another rank", module.tokens_per_microbatch,
        )  # fmt: skip
    return None


def _try(run: Callable[[], T]) -> tuple[T | None, str | None]:
    """The result, or how memory ran out; what the attempt held is free again when this returns."""
    try:
        return run(), None
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return None, in_one_line(error)


def _check_smaller(module: RLVRModule, rollout: Rollout, trouble: str) -> None:
    shortest = min(
        len(prompt.token_ids) + len(completion.token_ids)
        for prompt, group in zip(rollout.prompts, rollout.completions, strict=True)
        for completion in group
    )
    if module.device_mesh is not None:
        raise UserError(
            f"{trouble}; with sharded weights a step cannot be tried again, lower model.tokens_per_microbatch"
        )
    if module.tokens_per_microbatch < shortest:
        raise UserError(
            f"{trouble}, with one completion at a time; use model.gradient_checkpointing, a smaller model, or a lower "
            "rollout.sampling.max_tokens"
        )
