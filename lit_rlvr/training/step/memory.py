"""The most tokens in a micro-batch, and what happens when memory runs out: smaller micro-batches.

With sharded weights nothing can be retried: the other ranks wait in the next layer for the one that ran out. That rank
writes the smaller token budget to the run folder and ends the run, whose next start uses it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import torch

from lit_rlvr.common.files import save_smaller_sizes, smaller_sizes
from lit_rlvr.common.log import log
from lit_rlvr.common.resuming import how_to_resume
from lit_rlvr.distributed.collectives import all_max, rank
from lit_rlvr.errors import ResumableError, UserError, first_line
from lit_rlvr.options import DEFAULT_TOKENS
from lit_rlvr.types import Rollout

MESSAGES = ("DefaultCPUAllocator", "not enough memory", "OutOfMemoryError")
"""Substrings of out-of-memory errors that have no exception class."""
_T = TypeVar("_T")


def is_out_of_memory(error: Exception) -> bool:
    """Return whether torch ran out of memory; on a CPU and in its compiler only the message tells."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(m in str(error) for m in MESSAGES)


class TokenBudget:
    """The most input tokens in a micro-batch: what the settings give, until memory runs out.

    Attributes:
        given: the setting (`model.compute.tokens_per_microbatch`).
        tokens: what is left of it; `DEFAULT_TOKENS` until `auto` is chosen.
        device: of the training.
        sharded: whether each rank has a part of each weight.
    """

    def __init__(self, given: int | Literal["auto"]) -> None:
        self.given = given
        if given == "auto":
            self.tokens = DEFAULT_TOKENS
        else:
            self.tokens = given
        self.device = torch.device("cpu")
        self.sharded = False
        self._run_folder: Path | None = None

    def begin(self, run_folder: Path, device: torch.device, sharded: bool) -> None:
        """Take what an earlier start of the run left of the budget: it is saved where weights are sharded.

        Collective: call it on every rank.

        Args:
            run_folder: the run's folder.
            device: of the training.
            sharded: whether each rank has a part of each weight.
        """
        if self.given == "auto":  # nobody has chosen it
            self.choose(self.tokens)
        self._run_folder = run_folder
        self.device = device
        self.sharded = sharded
        saved = int(all_max(-(self.saved(run_folder) or self.tokens), device))
        if -saved < self.tokens:
            self.lower(-saved, "an earlier start ran out of memory")

    def choose(self, tokens: int) -> None:
        """Replace the setting, which was `auto`."""
        self.given = self.tokens = tokens

    def lower(self, left: int, reason: str) -> None:
        """Take a smaller budget from now on, and say so."""
        self.tokens = left
        if rank() == 0:
            log.warning(
                "%s: at most %d tokens at once from now on; to try more, change model.compute.tokens_per_microbatch",
                reason,
                left,
            )

    def save(self, left: int) -> None:
        """Write the budget with which the next start in this run folder begins, if its settings give the same one."""
        assert isinstance(self.given, int) and self._run_folder is not None, "`auto` is chosen before a run begins"
        save_smaller_sizes(self._run_folder, given=self.given, left=left)

    def saved(self, run_folder: Path) -> int | None:
        """Return the budget that an earlier start of the run saved; None if there is none for the given setting."""
        sizes = smaller_sizes(run_folder)
        if sizes.get("given") == self.given:
            return int(sizes["left"])
        return None

    def state_dict(self) -> list[Any]:
        return [self.given, self.tokens]

    def load_state_dict(self, state: list[Any]) -> None:
        given, left = state
        if given == self.given:
            self.tokens = left


def retry_smaller(budget: TokenBudget, rollout: Rollout, function: Callable[[], _T]) -> _T:
    """Return the result of a function; call it again with half the token budget as long as a rank runs out of memory.

    The function must not wait for other ranks once it computes. With sharded weights it does, so nothing is called
    again: the budget for the next start is saved, and the run ends.

    Collective: call it on every rank.

    Args:
        budget: the function reads it anew in each call.
        rollout: what the function computes on.
        function: what may run out of memory.

    Raises:
        UserError: memory ran out, and micro-batches cannot get smaller or the weights are sharded.
    """
    while True:
        result, trouble = _try(function)
        left = budget.tokens // 2
        if trouble is not None:
            _check_smaller(rollout, budget.tokens, trouble)
            if budget.sharded:
                budget.save(left)
                raise ResumableError(
                    f"{trouble}; with sharded weights the step cannot be retried here, but the next start uses at "
                    f"most {left} tokens at once instead of {budget.tokens} "
                    f"(model.compute.tokens_per_microbatch): {how_to_resume()}"
                )
        if not all_max(trouble is not None, budget.device):
            return cast(_T, result)
        budget.lower(left, f"out of memory in a micro-batch ({trouble or 'on another rank'}), trying again")


def _try(run: Callable[[], _T]) -> tuple[_T | None, str | None]:
    """Return the result, or how memory ran out; a failed attempt's memory is free by then."""
    try:
        return run(), None
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return None, first_line(error)


def _check_smaller(rollout: Rollout, budget: int, trouble: str) -> None:
    # A larger budget may still be too large: completions of one token add nothing to their prompt's, so several fit.
    if budget < min(len(prompt.token_ids) for prompt in rollout.prompts):
        raise UserError(
            f"{trouble}, with one completion at a time; use model.compute.gradient_checkpointing, a smaller model, or "
            "a lower rollout.sampling.max_tokens"
        )
