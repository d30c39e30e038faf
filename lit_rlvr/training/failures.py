"""Optimizer steps that fail: retried in smaller micro-batches when out of memory, skipped when not finite.

With sharded weights nothing can be retried: the other ranks wait in the next layer for the one that ran out. That rank
writes the smaller token budget to the run folder and ends the run, whose next start uses it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn, TypeVar, cast

import torch
from torch import Tensor

from lit_rlvr.common.files import save_smaller_sizes, smaller_sizes, write_atomically
from lit_rlvr.common.log import log
from lit_rlvr.common.paths import shown
from lit_rlvr.common.resuming import how_to_resume
from lit_rlvr.distributed.collectives import all_max, rank
from lit_rlvr.distributed.sharding import full_tensor
from lit_rlvr.errors import ResumableError, UserError, first_line
from lit_rlvr.options import DEFAULT_TOKENS
from lit_rlvr.training.step import StepPlan
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

    def add(self, number: int, causes: list[str], saved: SavedStep) -> None:
        """Count a step that is not finite, and say where its groups were saved.

        Args:
            number: of the step in the run, from 1.
            causes: as `find_not_finite` returns it.
            saved: the file with the step's batch, and the terms to blame.

        Raises:
            UserError: more than `limit` steps in a row would be skipped.
        """
        self.total = self.total + 1
        self.in_a_row = self.in_a_row + 1
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

    def add_finite(self, is_unrewarded: bool) -> None:
        """Count a step that is finite, which is skipped nevertheless if its rollout has no reward."""
        self.total += is_unrewarded
        if not is_unrewarded:
            self.in_a_row = 0

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
