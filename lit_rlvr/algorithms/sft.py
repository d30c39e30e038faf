"""Supervised fine-tuning: the log-likelihood of completions that the data hold."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from lit_rlvr.distributed.collectives import all_sum
from lit_rlvr.errors import UserError, check_within
from lit_rlvr.objectives import LossInputs, Stats, masked_sum
from lit_rlvr.options import KL, AutoLR, Importance, Loss, Teacher
from lit_rlvr.training.module import RLVRModule
from lit_rlvr.training.step import logprobs_in_microbatches
from lit_rlvr.training.terms import InitialLogprobs
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
        self, target: str | None = None, lr: float | Literal["auto"] | AutoLR = 2e-5,
        loss: Loss = Loss(aggregation="token_mean"), teacher: Teacher | None = None, nll_coef: float = 1.0,
        target_empty_thoughts: Literal["mask", "train"] = "mask",
        **kwargs: Any,
    ) -> None:  # fmt: skip
        check_within("[0, inf)" if teacher is not None else "(0, inf)", "model", nll_coef=nll_coef)
        if teacher is not None and teacher.beta is None:
            raise UserError(
                "model.teacher.beta: SFT does not train on the policy's own samples, which the sampled divergence "
                "needs; set it, such as 0 for the forward KL divergence"
            )
        super().__init__(
            advantage="reinforce", lr=lr, updates_per_rollout=1, epochs_per_rollout=1, loss=loss, kl=KL(),
            importance=Importance(correction="none"), teacher=teacher, **kwargs,
        )  # fmt: skip
        if self.loss_options.positive_nll_coef:
            raise UserError("model.loss.positive_nll_coef: SFT's loss is this term already; leave it out")
        self.target, self.target_empty_thoughts, self.nll_coef = target, target_empty_thoughts, nll_coef
        self._nll: dict[str, Tensor] = {}  # validation set -> sum over its tokens of this rank, and their number

    def objective(self, x: LossInputs) -> tuple[Tensor, Stats]:
        return -self.nll_coef * masked_sum(x.logp, x.token_weight, x.mask), {}

    def estimate_advantages(self, rollout: Rollout, initial: InitialLogprobs) -> Tensor:
        rollout.advantages = torch.ones_like(rollout.rewards)
        return rollout.advantages.reshape(-1, 1).to(self.device)

    def validation_step(self, batch: PromptBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        assert batch.demonstrations is not None, "the RolloutCallback fills the batch before it is measured"
        demonstrations = batch.demonstrations
        rows = list(range(len(demonstrations.prompts))) if len(batch) else []
        logp, _ = logprobs_in_microbatches(self.policy, demonstrations, rows, self.budget.tokens, self.sharded)
        sums = torch.stack([-logp.double().sum(), demonstrations.mask[rows].sum().to(logp.device).double()])
        self._nll[batch.name] = self._nll.get(batch.name, 0) + sums
        if batch.rollout is not None:
            super().validation_step(batch, batch_idx, dataloader_idx)

    test_step = validation_step

    def _results(self, prefix: str) -> dict[str, float]:
        sums = {name: all_sum(values) for name, values in self._nll.items()}
        self._nll = {}
        losses = {name: float(nll / tokens) for name, (nll, tokens) in sums.items()}
        losses_by_set = {f"{prefix}/{name}/loss": loss for name, loss in losses.items()}
        return super()._results(prefix) | losses_by_set | {f"{prefix}/loss": sum(losses.values()) / len(losses)}
