"""Optimizer steps that fail: retried in smaller micro-batches when out of memory, skipped when not finite.

With sharded weights nothing can be retried: the other ranks wait in the next layer for the one that ran out. That rank
writes the smaller token budget to the run folder and ends the run, whose next start uses it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from lit_rlvr.distributed.collectives import all_max, rank
from lit_rlvr.distributed.sharding import whole
from lit_rlvr.errors import UserError, first_line, shown
from lit_rlvr.files import write_atomically
from lit_rlvr.training.step import Step
from lit_rlvr.types import Rollout

_log = logging.getLogger("lit_rlvr")

RunAlone = Callable[[int], tuple[Tensor, Sequence[Tensor | None]]]


class SkippedSteps:
    """Counts skipped steps, equally on all ranks, and ends the run after too many in a row.

    A skipped step leaves the weights and the optimizer's state unchanged but counts as an optimizer step, and the
    learning-rate schedule advances. So the length of the run stays the same, also after resuming.

    Args:
        limit: how many steps in a row may be skipped.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.total, self.in_a_row = 0, 0

    def skips(
        self, step: Step, number: int, loss: Tensor | None, norm: Tensor, run_alone: RunAlone, folder: Path
    ) -> bool:
        """Return whether to skip this step; if so, its groups are written to `folder`. Collective: call it on every
        rank.

        Args:
            number: of the step in the run, from 1.
            loss: this rank's; None = no row was run. norm: of the gradient over all ranks, before clipping.
            run_alone: runs micro-batch k by itself and returns its loss and gradients.

        Raises:
            UserError: more than `limit` steps in a row would be skipped.
        """
        wrong = [name for name, value in (("loss", loss), ("gradient", norm)) if not _is_finite(value)]
        if not all_max(len(wrong), norm.device):
            self.in_a_row = 0
            return False
        self.total, self.in_a_row = self.total + 1, self.in_a_row + 1
        path = folder / f"step-{number:06d}-rank-{rank()}.json"
        # As many on all ranks if the weights are sharded.
        found = [_microbatch(step, k, *run_alone(k)) for k in range(len(step.microbatches))]
        record = {
            "step": number,
            "wrong": wrong,
            "microbatches": found[: step.num_microbatches],
            "groups": _groups(step),
        }
        write_atomically(path, json.dumps(record, ensure_ascii=False))
        said = f"step {number}: {' and '.join(wrong) or 'loss of another rank'} not finite"
        if self.in_a_row > self.limit:
            raise UserError(
                f"{said}, after {self.limit} skipped in a row (model.max_skipped_steps); its batch is in "
                f"{shown(path)}; lower model.lr or model.max_grad_norm, and resume with --ckpt_path last"
            )
        _log.warning("%s: the step is skipped, its batch is in %s", said, shown(path))
        return True

    def state_dict(self) -> dict[str, int]:
        return {"total": self.total, "in_a_row": self.in_a_row}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.total, self.in_a_row = state["total"], state["in_a_row"]


def skipped_folder(run: str | Path) -> Path:
    return Path(run) / "skipped"


def _is_finite(value: Tensor | None) -> bool:
    return value is None or bool(whole(torch.isfinite(value).all()))


def _microbatch(step: Step, k: int, loss: Tensor, gradients: Sequence[Tensor | None]) -> dict[str, Any]:
    """Return what a micro-batch run by itself gave: its rows, its loss, and whether loss and gradient are finite."""
    finite = [_is_finite(value) for value in (loss, *gradients)]
    return {"rows": step.microbatches[k], "loss": float(loss), "finite": all(finite)}


def _groups(step: Step) -> list[dict[str, Any]]:
    """Return the groups of the step, with everything needed to run them again."""
    rollout, size = step.prepared.rollout, step.prepared.rollout.group_size
    return [
        {
            "group": p,
            "id": rollout.prompts[p].sample.id,
            "source": rollout.prompts[p].sample.source,
            "prompt": rollout.prompts[p].sample.prompt,
            "prompt_token_ids": rollout.prompts[p].token_ids,
            "completions": [
                {
                    "text": completion.text,
                    "token_ids": completion.token_ids,
                    "engine_logprobs": completion.logprobs,
                    "reward": float(rollout.rewards[p, g]),
                    "advantage": float(step.prepared.advantages[p * size + g]),
                }
                for g, completion in enumerate(rollout.completions[p])
            ],
        }
        for p in sorted({row // size for rows in step.microbatches[: step.num_microbatches] for row in rows})
    ]


T = TypeVar("T")
MESSAGES = ("DefaultCPUAllocator", "not enough memory", "OutOfMemoryError")
"""Substrings of out-of-memory errors that have no exception class."""


def is_out_of_memory(error: Exception) -> bool:
    """Return whether torch ran out of memory; on a CPU and in its compiler only the message tells."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(m in str(error) for m in MESSAGES)


def within_memory(
    run: Callable[[int], T], rollout: Rollout, budget: int, device: torch.device, lower: Callable[[int], None] | None
) -> tuple[T, int]:
    """Call `run` with a token budget, which is halved as long as a rank runs out of memory. Collective: call it on
    every rank.

    Args:
        run: does not wait for other ranks once it computes, unless the weights are sharded.
        budget: maximum tokens per micro-batch (`model.tokens_per_microbatch`).
        lower: with sharded weights, keeps half the budget for the next start; None = `run` can be repeated.

    Returns:
        The result of `run`, and the budget it had.

    Raises:
        UserError: memory ran out, and micro-batches cannot get smaller or the weights are sharded.
    """
    while True:
        result, trouble = _try(partial(run, budget))
        if trouble is not None:
            _check_smaller(rollout, budget, trouble)
            if lower is not None:
                lower(budget // 2)
                raise UserError(
                    f"{trouble}; with sharded weights the step cannot be retried here, but the next start uses at most "
                    f"{budget // 2} tokens at once instead of {budget} (model.tokens_per_microbatch): resume with "
                    "--ckpt_path last, or start runs with --supervise N, which does so"
                )
        if not all_max(trouble is not None, device):
            return cast(T, result), budget
        budget //= 2
        if rank() == 0:
            _log.warning(
                "out of memory in a micro-batch (%s): trying again, with at most %d tokens at once from now on",
                trouble or "on another rank", budget,
            )  # fmt: skip


def _try(run: Callable[[], T]) -> tuple[T | None, str | None]:
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
            f"{trouble}, with one completion at a time; use model.gradient_checkpointing, a smaller model, or a lower "
            "rollout.sampling.max_tokens"
        )


BUDGET = "memory.json"
"""File of the run folder with the token budget that a run is to begin with, because it ran out of memory."""


def lower_budget(run: str | Path, given: int, left: int) -> None:
    """Write the token budget with which the next run in this folder begins, if its settings give the same budget.

    Args:
        given: the budget in the settings (`model.tokens_per_microbatch`). left: what remains of it.
    """
    write_atomically(Path(run, BUDGET), json.dumps({"given": given, "left": left}))


def lowered_budget(run: str | Path, given: int) -> int | None:
    """Return the token budget that an earlier start of the run left; None if there is none for the given budget.

    Raises:
        UserError: the file cannot be read.
    """
    path = Path(run, BUDGET)
    if not path.exists():
        return None
    try:
        saved = json.loads(path.read_text())
        return int(saved["left"]) if saved["given"] == given else None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{shown(path)} is not what a run of lit-rlvr wrote ({first_line(error)}); delete it"
        ) from error
