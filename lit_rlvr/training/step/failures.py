"""Optimizer steps that are skipped: not finite, with the groups that show why, or without any reward."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from lit_rlvr.common.files import write_atomically
from lit_rlvr.common.log import log
from lit_rlvr.common.paths import shown
from lit_rlvr.common.resuming import how_to_resume
from lit_rlvr.distributed.collectives import all_max, rank
from lit_rlvr.distributed.sharding import full_tensor
from lit_rlvr.errors import UserError
from lit_rlvr.training.step.plan import StepPlan
from lit_rlvr.types import Rollout


class MicrobatchGradients(NamedTuple):
    """A micro-batch run by itself: its loss, its gradients, and the terms in the loss that are not finite."""

    loss: Tensor
    gradients: Sequence[Tensor | None]
    terms: Sequence[str]


class SavedStep(NamedTuple):
    """The file of a skipped step, and the terms in its loss that are not finite."""

    path: Path
    terms: list[str]


class SkippedSteps:
    """Counts skipped steps, equally on all ranks, and ends the run after too many in a row.

    A skipped step leaves the weights and the optimizer's state unchanged but counts as an optimizer step, and the
    learning-rate schedule advances. So the length of the run stays the same, also after resuming.

    Args:
        limit: how many steps in a row may be skipped.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.total = 0
        self.in_a_row = 0

    def count(self, is_finite: bool, is_unrewarded: bool) -> None:
        """Count a step, which is skipped if it is not finite, or no reward judged its rollout."""
        if not is_finite:
            self.total += 1
            self.in_a_row += 1
        elif is_unrewarded:
            self.total += 1
        else:
            self.in_a_row = 0

    def report(self, number: int, causes: list[str], saved: SavedStep) -> None:
        """Say why a step is skipped that is not finite, and where its groups were saved.

        Args:
            number: of the step in the run, from 1.
            causes: as `find_not_finite` returns it.
            saved: the file with the step's batch, and the terms to blame.

        Raises:
            UserError: more than `limit` steps in a row would be skipped.
        """
        problem = f"step {number}: {' and '.join(causes) or 'loss of another rank'} not finite"
        remedy = "lower model.lr or model.optim.max_grad_norm"
        if saved.terms:
            problem += f" because of {' and '.join(saved.terms)}"
            remedy = "mend the term: its cost and its gradient must be finite for every token"
        if self.in_a_row > self.limit:
            raise UserError(
                f"{problem}, after {self.limit} skipped in a row (model.optim.max_skipped_steps); its batch is in "
                f"{shown(saved.path)}; {remedy}, and {how_to_resume()}"
            )
        log.warning("%s: the step is skipped, its batch is in %s", problem, shown(saved.path))

    def check_end(self, steps: int) -> None:
        """Refuse a run that ends with most of its steps skipped in a row: its model is broken.

        Raises:
            UserError: says how many.
        """
        if 2 * self.in_a_row > steps:
            raise UserError(
                f"the last {self.in_a_row} of {steps} steps were skipped, because their loss or gradient was not "
                "finite; lower model.lr or model.optim.max_grad_norm, and start anew"
            )

    def state_dict(self) -> dict[str, int]:
        return {"total": self.total, "in_a_row": self.in_a_row}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.total = state["total"]
        self.in_a_row = state["in_a_row"]


class UnrewardedRollouts:
    """Counts rollouts without any reward, equally on all ranks, and ends the run after too many in a row.

    Args:
        limit: how many in a row are skipped.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.in_a_row = 0
        self.has_rewarded = False
        self._said = ""  # of the last one

    def count(self, rollout: Rollout, number: int, completions: int) -> None:
        """Count a rollout; say so if none of its completions has a reward.

        Args:
            rollout: says whether one has, and names its rewards.
            number: of the iteration, from 1.
            completions: over all ranks.

        Raises:
            UserError: more than `limit` rollouts in a row have no reward.
        """
        if not rollout.is_unrewarded:
            self.in_a_row = 0
            self.has_rewarded = True
            return
        self.in_a_row += 1
        self._said = (
            f"rollout.rewards: {', '.join(rollout.parts)}: no reward for any of the {completions} completions of "
            f"iteration {number}, so there is nothing to train on"
        )
        if self.in_a_row > self.limit:
            self._end()
        if rank() == 0:
            log.warning("%s: it is skipped (None and a failed check leave a completion out)", self._said)

    def check_any_rewarded(self) -> None:
        """Refuse a whole run without a reward.

        Raises:
            UserError: the run had rollouts, and none had a reward.
        """
        if self.in_a_row and not self.has_rewarded:
            self._end()

    def _end(self) -> NoReturn:
        raise UserError(
            f"{self._said}, after {self.in_a_row - 1} such iterations in a row (model.optim.max_skipped_steps="
            f"{self.limit}); return a number, a bool or a RewardResult (None leaves a completion out)"
        )

    def state_dict(self) -> dict[str, int]:
        return {"in_a_row": self.in_a_row, "has_judged": int(self.has_rewarded)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.in_a_row = state["in_a_row"]
        self.has_rewarded = bool(state["has_judged"])


def find_not_finite(loss: Tensor | None, norm: Tensor) -> list[str] | None:
    """Return which of this rank's loss and gradient is not finite; None if they are finite on every rank.

    Collective: call it on every rank.

    Args:
        loss: None = this rank ran no row.
        norm: of the gradient over all ranks, before clipping.
    """
    causes = []
    for name, value in (("loss", loss), ("gradient", norm)):
        if not _is_finite(value):
            causes.append(name)
    if all_max(len(causes), norm.device):
        return causes
    return None


def save_step(
    run_folder: Path,
    number: int,
    causes: list[str],
    plan: StepPlan,
    microbatch_gradients: Callable[[StepPlan, int], MicrobatchGradients],
) -> SavedStep:
    """Write the groups of a skipped step, and which of its micro-batches is not finite by itself.

    Collective: call it on every rank.

    Args:
        run_folder: the run's folder.
        number: of the step in the run, from 1.
        causes: as `find_not_finite` returns it.
        plan: the step.
        microbatch_gradients: runs micro-batch k of a plan by itself.
    """
    path = run_folder / "skipped" / f"step-{number:06d}-rank-{rank()}.json"
    # As many on all ranks if the weights are sharded.
    microbatches = []
    terms = dict[str, None]()
    for k in range(len(plan.microbatches)):
        alone = microbatch_gradients(plan, k)
        microbatches.append(_microbatch(plan, k, alone))
        terms.update(dict.fromkeys(alone.terms))
    record = {
        "step": number,
        "wrong": causes,
        "microbatches": microbatches[: plan.num_counted],
        "groups": _groups(plan),
    }
    write_atomically(path, json.dumps(record, ensure_ascii=False))
    return SavedStep(path, [*terms])


def _is_finite(value: Tensor | None) -> bool:
    return value is None or bool(full_tensor(torch.isfinite(value).all()))


def _microbatch(plan: StepPlan, k: int, alone: MicrobatchGradients) -> dict[str, Any]:
    """Return what a micro-batch run by itself gave: its rows, its loss, and whether loss and gradient are finite."""
    finite = []
    for value in (alone.loss, *alone.gradients):
        finite.append(_is_finite(value))
    return {"rows": plan.microbatches[k], "loss": float(alone.loss), "finite": all(finite)}


def _groups(plan: StepPlan) -> list[dict[str, Any]]:
    """Return the groups of the step, with everything needed to run them again."""
    rollout = plan.prepared.rollout
    rows = chain(*plan.microbatches[: plan.num_counted])
    groups = []
    for p in sorted({row // rollout.group_size for row in rows}):
        prompt = rollout.prompts[p]
        completions = []
        for g, completion in enumerate(rollout.completions[p]):
            advantage = None
            if rollout.advantages is not None:
                advantage = float(rollout.advantages[p, g])
            completions.append(
                {
                    "text": completion.text,
                    "token_ids": completion.token_ids,
                    "engine_logprobs": completion.logprobs,
                    "reward": float(rollout.rewards[p, g]),
                    "advantage": advantage,
                }
            )
        groups.append(
            {
                "group": p,
                "id": prompt.sample.id,
                "source": prompt.sample.source,
                "prompt": prompt.sample.prompt,
                "prompt_token_ids": prompt.token_ids,
                "completions": completions,
            }
        )
    return groups
