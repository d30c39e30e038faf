"""From a scored rollout to optimizer steps: the second half of the flow, shared by every algorithm.

The first half is `rollout/callback.py`; the mathematics is `loss.py`, where an algorithm overrides `objective`.
"""

from __future__ import annotations

import logging
import math
import time
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from lit_rlvr.advantages import Advantage, GroupBatch
from lit_rlvr.algorithms.identity import check_identity, identity
from lit_rlvr.algorithms.optimizer import apply_options, build_optimizer
from lit_rlvr.algorithms.out_of_memory import within_memory
from lit_rlvr.algorithms.reference import ReferenceModule
from lit_rlvr.algorithms.skipped import SkippedSteps
from lit_rlvr.algorithms.step import Frozen, Step, frozen_logprobs, plan_step, step_metrics
from lit_rlvr.check import check_policy
from lit_rlvr.distributed import average_gradients, gather_rows, rank, world_size
from lit_rlvr.errors import UserError
from lit_rlvr.lora import Lora, add_adapters
from lit_rlvr.objectives import Aggregation, ImportanceCorrection, Stats
from lit_rlvr.policy import load_policy
from lit_rlvr.sharding import whole
from lit_rlvr.speedups import use_liger
from lit_rlvr.types import PromptBatch, Rollout
from lit_rlvr.vision import freeze_vision_tower

if TYPE_CHECKING:
    from lit_rlvr.run.trace import Trace

_log = logging.getLogger("lit_rlvr")


class RLVRModule(ReferenceModule):
    """The base of every algorithm.

    Args:
        model: `smollm2` (the embedded SmolLM2-135M-Instruct), a model folder, or a hub id.
        advantage: estimator: a registered name, a class_path, or a dotted path to a function.
        aggregation: how token losses are averaged.
        lr: peak learning rate of AdamW.
        weight_decay: AdamW's decoupled weight decay.
        betas: AdamW's moment decay rates.
        lr_schedule: after the warm-up; linear and cosine fall to 0 at the last step.
        warmup_steps: optimizer steps over which the learning rate rises linearly.
        max_grad_norm: gradients are scaled down to this norm; 0 = off.
        updates_per_rollout: minibatches (optimizer steps) a rollout is split into.
        epochs_per_rollout: passes over each rollout.
        tokens_per_microbatch: input tokens run at once, padding included; bounds memory, changes no result. Halved when
            memory runs out.
        kl_coef: weight of the KL term against the initial policy; 0 loads no reference model.
        entropy_coef: weight of an entropy bonus, with the gradient of the policy's exact entropy; 0 = off.
        importance_correction: for engines whose log-probabilities differ from the trainer's; by default
            `token_truncate`, and `none` for the Hugging Face engine at precision 32-true, which is exact.
        importance_cap: bound of the importance weights.
        shared_prefix: run each prompt once for its whole group; False = one completion per row.
        gradient_checkpointing: recompute each layer in the backward pass: less memory, a third more time.
        liger: use the fused kernels of liger-kernel (GPU).
        freeze_vision: do not train the vision tower of a vision-language model.
        lora: train low-rank adapters of the language model instead of its weights; checkpoints then hold only them.
        max_skipped_steps: optimizer steps in a row whose loss or gradient may be not finite; they are left out.
    """

    def __init__(
        self,
        model: str = "smollm2",
        advantage: Advantage | str = "grpo",
        aggregation: Aggregation = "sequence_mean",
        lr: float = 1e-6,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        lr_schedule: Literal["constant", "linear", "cosine"] = "constant",
        warmup_steps: int = 0,
        max_grad_norm: float = 1.0,
        updates_per_rollout: int = 1,
        epochs_per_rollout: int = 1,
        tokens_per_microbatch: int = 4096,
        kl_coef: float = 0.0,
        entropy_coef: float = 0.0,
        importance_correction: ImportanceCorrection | None = None,
        importance_cap: float = 2.0,
        shared_prefix: bool = True,
        gradient_checkpointing: bool = False,
        liger: bool = False,
        freeze_vision: bool = False,
        lora: Lora | None = None,
        max_skipped_steps: int = 10,
    ) -> None:
        super().__init__(model, advantage, aggregation, kl_coef, entropy_coef)
        self.automatic_optimization = False
        self.lr, self.weight_decay, self.betas = lr, weight_decay, betas
        self.lr_schedule, self.warmup_steps, self.max_grad_norm = lr_schedule, warmup_steps, max_grad_norm
        self.updates_per_rollout, self.epochs_per_rollout = updates_per_rollout, epochs_per_rollout
        self.tokens_per_microbatch, self.shared_prefix = tokens_per_microbatch, shared_prefix
        self.tokens_given = tokens_per_microbatch  # before memory ran out
        self.gradient_checkpointing, self.liger = gradient_checkpointing, liger
        self.freeze_vision, self.lora = freeze_vision, lora
        self.strict_loading = lora is None  # what an adapter is added to comes from the model folder
        self.importance_correction, self.importance_cap = importance_correction, importance_cap
        self.iteration = 0  # rollouts trained on so far
        self.skipped = SkippedSteps(max_skipped_steps)
        self._logged: set[str] = set()  # metrics of updates that were logged so far
        self.trace: Trace | None = None  # what to note of the next rollout's tokens, for `explain`
        for name in ("updates_per_rollout", "epochs_per_rollout", "tokens_per_microbatch"):
            if getattr(self, name) < 1:
                raise UserError(f"model.{name}: {getattr(self, name)} is not positive")
        for name in ("lr", "weight_decay", "max_grad_norm", "warmup_steps"):
            if getattr(self, name) < 0:
                raise UserError(f"model.{name}: {getattr(self, name)} is negative")
        if importance_cap < 1:
            raise UserError(f"model.importance_cap: {importance_cap} is below 1")

    max_sampling_rounds = 10  # batches of prompts that one iteration may sample
    drops_groups = False  # whether the other groups are then left out of training

    def wanted_groups(self, prompts: int) -> int:
        """How many groups with both right and wrong completions an iteration on `prompts` prompts wants; 0 = any.

        Where it wants some, prompts are sampled until they are there or `max_sampling_rounds` is reached.
        """
        return math.ceil((self.advantage.min_valid_fraction or 0) * prompts)

    # ---- set-up -------------------------------------------------------------------------------------------

    def configure_model(self) -> None:
        if self.policy is None:
            if self.lora is not None and self.lora.quantize != "none" and self.device_mesh is not None:
                raise UserError("model.lora.quantize: weights in 4 bits cannot be sharded; use --config strategy/ddp")
            self.policy = load_policy(
                self.model_folder,
                self.shared_prefix,
                gradient_checkpointing=self.gradient_checkpointing,
                empty=self.starts_empty,
            )
            if self.freeze_vision:
                freeze_vision_tower(self.policy.model)
            if self.lora is not None:
                bf16 = str(self.trainer.precision) == "bf16-mixed"
                add_adapters(self.policy.model, self.lora, torch.bfloat16 if bf16 else torch.float32)
            self.distribute(self.policy)
            self.load_reference(self.shared_prefix)

    def configure_optimizers(self) -> Any:
        return build_optimizer(self)

    def on_fit_start(self) -> None:
        super().on_fit_start()
        if self.liger:  # now that the weights are on the GPU
            use_liger(self.policy.model)
            check_policy(self.policy)

    def on_train_start(self) -> None:
        apply_options(self)

    def transfer_batch_to_device(self, batch: PromptBatch, device: torch.device, dataloader_idx: int) -> PromptBatch:
        """Prompts stay where they are: Lightning would train on a copy that the rollout callback never saw."""
        return batch

    # ---- one iteration ------------------------------------------------------------------------------------

    def training_step(self, batch: PromptBatch, batch_idx: int) -> None:
        assert batch.rollout is not None, "the RolloutCallback fills the batch before the algorithm sees it"
        started = time.perf_counter()
        minibatches = self._minibatches(batch.rollout) * self.epochs_per_rollout
        frozen = self._freeze(batch.rollout, minibatches)
        metrics = [self._update(frozen, prompts) for prompts in minibatches]
        self.iteration += 1
        self.renew_reference(self.iteration)
        self.trainer.datamodule.commit(batch.cursor)  # type: ignore[attr-defined]
        self._log_updates(metrics)
        self.log("time/train", time.perf_counter() - started)
        self.log("step", float(self.updates))  # Lightning takes it as the logs' x axis

    def _log_updates(self, metrics: list[dict[str, float]]) -> None:
        """Means over the updates of one rollout; NaN for what none of them has (where no row was run), because
        Lightning would log the value of the iteration before."""
        self._logged |= {name for update in metrics for name in update}
        for name in sorted(self._logged):
            values = [update[name] for update in metrics if name in update]
            self.log(name, sum(values) / len(values) if values else math.nan)

    def _freeze(self, rollout: Rollout, minibatches: list[list[int]]) -> Frozen:
        """Advantages, and the log-probabilities that stay fixed during the updates on this rollout.

        The first minibatch runs on the weights of the rollout, so its old log-probabilities are its own.
        """
        advantages = self.local_advantages(rollout)
        useful = rollout.mask.any(1)  # (B,) rows with a token in the loss
        if not self.kl_coef and not self.entropy_coef:  # then a row of advantage 0 has no gradient
            useful &= advantages.flatten().cpu() != 0
        live = [int(i) for i in useful.nonzero().flatten()]
        budget, first = self.tokens_per_microbatch, set(minibatches[0])
        later = [i for i in live if i // rollout.group_size not in first]
        return Frozen(
            rollout,
            advantages,
            live,
            old=frozen_logprobs(self.policy, rollout, later, budget) if len(minibatches) > 1 else None,
            ref=frozen_logprobs(self.reference, rollout, live, budget) if self.kl_coef else None,
        )

    def local_advantages(self, rollout: Rollout) -> Tensor:
        """(B, 1) advantages of this rank's rows, from the statistics of all ranks' groups."""
        reference = rollout.reference_rewards
        group = GroupBatch(
            rewards=gather_rows(rollout.rewards.to(self.device)),
            correct=gather_rows(rollout.correct.to(self.device)),
            reference_rewards=None if reference is None else gather_rows(reference.to(self.device)),
            lengths=gather_rows(rollout.lengths.to(self.device)),
        )
        advantages, metrics = self.estimate(group)  # (P, G) over all ranks
        self.log_dict({f"train/{name}": value for name, value in metrics.items()})
        local = len(rollout.prompts)
        mine = advantages[rank() * local : (rank() + 1) * local]
        rollout.advantages = mine.cpu()
        return mine.reshape(-1, 1)

    def _minibatches(self, rollout: Rollout) -> list[list[int]]:
        """The groups to train on in `updates_per_rollout` parts, dealt out by their place in the (shuffled) stream:
        a part is the same set of groups on any number of ranks, each of which has an equal share of it."""
        parts = self.updates_per_rollout
        numbers = {p: p for p in range(len(rollout.prompts))} if rollout.kept is None else rollout.kept
        return [[p for p, number in numbers.items() if number % parts == k] for k in range(parts)]

    def _update(self, frozen: Frozen, prompts: list[int]) -> dict[str, float]:
        """One optimizer step on the groups of some prompts."""
        optimizer: Any = self.optimizers()
        parameters = optimizer.param_groups[0]["params"]
        sums: Stats | None = None
        while sums is None:
            step = plan_step(
                frozen, prompts, self.device, self.aggregation, self.tokens_per_microbatch, self.policy.shared_prefix,
                self.importance_correction or "none", self.importance_cap,
            )  # fmt: skip
            optimizer.zero_grad()
            sums = within_memory(self, frozen.rollout, partial(self._accumulate, step))
        for parameter in parameters:  # groups that are not run have a gradient of zero, which AdamW still sees
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        if isinstance(self.trainer.strategy.model, DistributedDataParallel):
            average_gradients(parameters)
        limit = self.max_grad_norm if self.max_grad_norm > 0 else float("inf")
        norm = whole(torch.nn.utils.clip_grad_norm_(parameters, limit))
        skipped = self.skipped.skips(self, step, sums.get("loss"), norm)
        if skipped:
            optimizer.zero_grad()  # AdamW passes over parameters without a gradient
        learning_rate = optimizer.param_groups[0]["lr"]
        optimizer.step()
        frozen.on_policy = False
        self.lr_schedulers().step()  # type: ignore[union-attr]
        self.updates += 1
        metrics = {} if skipped else step_metrics(sums) | {"train/grad_norm": float(norm)}
        return metrics | {"train/lr": learning_rate, "train/skipped_steps": float(self.skipped.total)}

    def _accumulate(self, step: Step) -> Stats:
        """Add up this rank's gradients over the micro-batches of a step; sums over the tokens that were run."""
        sums: Stats = {}
        for k in range(len(step.microbatches)):
            x, stats = step.inputs(k, self.policy, self.entropy_coef != 0)
            if self.trace is not None and k < step.real:
                self.trace.watch(step.microbatches[k], step.frozen.rollout.group_size, x)
            loss, more = self.loss(x)
            with self.gradients_apart():
                self.manual_backward(loss * world_size())  # distributed strategies average over ranks; we sum
            for name, value in (stats | more | {"loss": loss.detach()}).items():
                sums[name] = sums.get(name, 0) + value.double() * float(k < step.real)
        return sums

    def gradients_apart(self) -> AbstractContextManager[Any]:
        """Every rank keeps its own gradients: only once all ranks have theirs is it known that the step counts. With
        sharded weights they are exchanged at once, because until then every rank would hold all of them."""
        model = self.trainer.strategy.model
        return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()

    # ---- checkpoints --------------------------------------------------------------------------------------

    @property
    def trained(self) -> list[str]:
        """The names of the parameters in the optimizer, in its order."""
        return [name for name, parameter in self.named_parameters() if parameter.requires_grad]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["rlvr"] = identity(self) | {
            "iteration": self.iteration,
            "updates": self.updates,
            "skipped": self.skipped.state_dict(),
            "tokens": [self.tokens_given, self.tokens_per_microbatch],
            "advantage_state": self.advantage.state_dict(),
            "reference": self.reference_state(),
            "model_folder": self.model_folder,
        }
        if self.lora is not None:
            weights, trained = checkpoint["state_dict"], set(self.trained)
            checkpoint["state_dict"] = {name: value for name, value in weights.items() if name in trained}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        check_identity(self, checkpoint)
        saved = checkpoint["rlvr"]
        self.iteration, self.updates = saved["iteration"], saved["updates"]
        self.skipped.load_state_dict(saved["skipped"])
        given, left = saved["tokens"]
        self.tokens_per_microbatch = left if given == self.tokens_given else self.tokens_per_microbatch
        self.advantage.load_state_dict(saved["advantage_state"])
        self.load_reference_state(saved["reference"])
