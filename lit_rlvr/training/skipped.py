"""Skips, counts and records optimizer steps whose loss or gradient is not finite."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_rlvr.distributed.collectives import all_max, rank
from lit_rlvr.distributed.sharding import whole
from lit_rlvr.errors import UserError, shown
from lit_rlvr.files import write_atomically
from lit_rlvr.training.step import Step

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
