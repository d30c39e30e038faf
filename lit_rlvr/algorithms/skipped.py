"""Optimizer steps whose loss or gradient is not finite are left out, shown and counted."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lit_rlvr.algorithms.step import Step
from lit_rlvr.distributed import all_max, rank
from lit_rlvr.errors import UserError
from lit_rlvr.run.files import write_atomically
from lit_rlvr.sharding import whole

if TYPE_CHECKING:
    from lit_rlvr.algorithms.base import RLVRModule

_log = logging.getLogger("lit_rlvr")


class SkippedSteps:
    """Counts them, over all ranks alike, and ends the run after too many in a row.

    A skipped step leaves the weights and AdamW's state as they are. It counts as an optimizer step all the same, and
    the learning rate moves on: so the run has as many steps as it was given, and a resumed one ends like it.

    Args:
        limit: skipped steps in a row that are borne.
    """

    def __init__(self, limit: int) -> None:
        if limit < 0:
            raise UserError(f"model.max_skipped_steps: {limit} is negative")
        self.limit = limit
        self.total, self.in_a_row = 0, 0

    def skips(self, module: RLVRModule, step: Step, loss: Tensor | None, norm: Tensor) -> bool:
        """Whether to leave this step out; then its groups are in `skipped/` of the run folder.

        Args:
            loss: this rank's; None = no row was run. norm: of the gradient over all ranks, before clipping.

        Raises:
            UserError: it is one too many.
        """
        wrong = [name for name, value in (("loss", loss), ("gradient", norm)) if not _is_finite(value)]
        if not all_max(len(wrong), module.device):
            self.in_a_row = 0
            return False
        self.total, self.in_a_row = self.total + 1, self.in_a_row + 1
        number = module.updates + 1
        path = skipped_folder(module.trainer.default_root_dir) / f"step-{number:06d}-rank-{rank()}.json"
        record = {"step": number, "wrong": wrong, "microbatches": _microbatches(module, step), "groups": _groups(step)}
        write_atomically(path, json.dumps(record, ensure_ascii=False))
        said = f"step {number}: {' and '.join(wrong) or 'loss of another rank'} not finite"
        if self.in_a_row > self.limit:
            raise UserError(
                f"{said}, after {self.limit} skipped in a row (model.max_skipped_steps); its batch is in {path}; "
                "lower model.lr or model.max_grad_norm, and go on with --ckpt_path last"
            )
        _log.warning("%s: the step is skipped, its batch is in %s", said, path)
        return True

    def state_dict(self) -> dict[str, int]:
        return {"total": self.total, "in_a_row": self.in_a_row}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.total, self.in_a_row = state["total"], state["in_a_row"]


def skipped_folder(run: str | Path) -> Path:
    return Path(run) / "skipped"


def _is_finite(value: Tensor | None) -> bool:
    return value is None or bool(whole(torch.isfinite(value).all()))


def _microbatches(module: RLVRModule, step: Step) -> list[dict[str, Any]]:
    """Each micro-batch run once more by itself: its rows, its loss, and whether loss and gradient are finite."""
    found = []
    optimizer: Any = module.optimizers()
    parameters: Sequence[Tensor] = optimizer.param_groups[0]["params"]
    for k, rows in enumerate(step.microbatches):
        optimizer.zero_grad()
        loss, _ = module.loss(step.inputs(k, module.policy, module.entropy_coef != 0)[0])
        with module.gradients_apart():
            module.manual_backward(loss)
        loss = loss.detach()
        finite = [_is_finite(value) for value in (loss, *(parameter.grad for parameter in parameters))]
        if k < step.real:
            found.append({"rows": rows, "loss": float(loss), "finite": all(finite)})
    return found


def _groups(step: Step) -> list[dict[str, Any]]:
    """The groups that were run, with all that is needed to run them again."""
    rollout, size = step.frozen.rollout, step.frozen.rollout.group_size
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
                    "advantage": float(step.frozen.advantages[p * size + g]),
                }
                for g, completion in enumerate(rollout.completions[p])
            ],
        }
        for p in sorted({row // size for rows in step.microbatches[: step.real] for row in rows})
    ]
