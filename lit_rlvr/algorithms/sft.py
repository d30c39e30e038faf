"""Supervised fine-tuning: the log-likelihood of completions that the data hold."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from lit_rlvr.common.arguments import check_within
from lit_rlvr.distributed.collectives import all_sum
from lit_rlvr.errors import UserError
from lit_rlvr.objectives import LossInputs, Stats, masked_sum
from lit_rlvr.options import KL, AutoLR, Importance, Loss, Teacher
from lit_rlvr.training.loss import EstimatedAdvantages
from lit_rlvr.training.module import RLVRModule
from lit_rlvr.training.step.microbatches import logprobs_in_microbatches
from lit_rlvr.training.terms import InitialLogprobs
from lit_rlvr.training.validation import Validation
from lit_rlvr.types import PromptBatch, Rollout


class SFT(RLVRModule):
    """`-(1/N) sum_t log p` over the N tokens of a step that the data show the model to write: supervised fine-tuning.

    An iteration is one optimizer step, on `data.prompts_per_rollout` rows. With a `teacher` the divergence from it on
    these tokens is added (offline distillation).

    Example:
        ```yaml
        model: {class_path: SFT, init_args: {target: solution, lr: 2.0e-5}}
        ```

    Args:
        nll_coef: weight of -log p; 0 = the divergence from the teacher alone.
        target: column of the data with what the model is to write: a text, messages, or with an environment a list of
            texts, one for each of its turns. null: the assistant's turns of a conversation, else the answer, else the
            column `completion`.
        target_empty_thoughts: `mask` leaves the empty thoughts that a chat template writes around an answer without
            any, such as "<think>\\n\\n</think>", out of the loss; `train` trains on them.
        kwargs: the options of `RLVRModule`.
    """

    demonstrates = True
    has_ratio = False

    def __init__(
        self,
        target: str | None = None,
        lr: float | Literal["auto"] | AutoLR = 2e-5,
        loss: Loss = Loss(aggregation="token_mean"),
        teacher: Teacher | None = None,
        nll_coef: float = 1.0,
        target_empty_thoughts: Literal["mask", "train"] = "mask",
        **kwargs: Any,
    ) -> None:
        check_within("[0, inf)" if teacher is not None else "(0, inf)", "model", nll_coef=nll_coef)
        if teacher is not None and teacher.beta is None:
            raise UserError(
                "model.teacher.beta: SFT does not train on the policy's own samples, which the sampled divergence "
                "needs; set it, such as 0 for the forward KL divergence"
            )
        super().__init__(
            advantage="reinforce",
            lr=lr,
            updates_per_rollout=1,
            epochs_per_rollout=1,
            loss=loss,
            kl=KL(),
            importance=Importance(correction="none"),
            teacher=teacher,
            **kwargs,
        )
        if self.loss_options.positive_nll_coef:
            raise UserError("model.loss.positive_nll_coef: SFT's loss is this term already; leave it out")
        self.target = target
        self.target_empty_thoughts = target_empty_thoughts
        self.nll_coef = nll_coef
        self.validation = LossValidation()

    def objective(self, x: LossInputs) -> tuple[Tensor, Stats]:
        return -self.nll_coef * masked_sum(x.logp, x.token_weight, x.mask), {}

    def estimate_advantages(self, rollout: Rollout, initial: InitialLogprobs) -> EstimatedAdvantages:
        ones = torch.ones_like(rollout.rewards)
        return EstimatedAdvantages(ones.reshape(-1, 1).to(self.device), ones, {})


class LossValidation(Validation):
    """Measures the loss on the completions that the data hold, besides what rewards say of sampled ones."""

    def __init__(self) -> None:
        super().__init__()
        self._sums: dict[str, Tensor] = {}  # validation set -> sum of -log p of this rank's tokens, and their number

    def begin(self) -> None:
        super().begin()
        self._sums = {}

    def add(self, module: Any, batch: PromptBatch) -> None:
        assert batch.demonstrations is not None, "the RolloutCallback fills the batch before it is measured"
        demonstrations = batch.demonstrations
        rows = list(range(len(demonstrations.prompts))) if len(batch) else []
        logp, _ = logprobs_in_microbatches(module.policy, demonstrations, rows, module.budget.tokens, module.sharded)
        sums = torch.stack([-logp.double().sum(), demonstrations.mask[rows].sum().to(logp.device).double()])
        self._sums[batch.name] = self._sums.get(batch.name, 0) + sums
        if batch.rollout is not None:
            super().add(module, batch)

    def end(self, prefix: str) -> dict[str, float]:
        results = super().end(prefix)
        losses = {}
        for name, sums in self._sums.items():
            nll, tokens = all_sum(sums)
            losses[name] = float(nll / tokens)
            results[f"{prefix}/{name}/loss"] = losses[name]
        results[f"{prefix}/loss"] = sum(losses.values()) / len(losses)
        return results
