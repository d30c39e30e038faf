"""`RLVRModule`, the base class of every algorithm. The loop that it runs in is `training/loop.py`."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from lit_rlvr.advantages import Advantage
from lit_rlvr.common.arguments import MAX_SIZE, ChecksArguments, check_within
from lit_rlvr.common.init_arguments import dotted_path_of, init_arguments, with_class_defaults
from lit_rlvr.distributed.checkpoints import check_identity, run_identity
from lit_rlvr.distributed.collectives import leave_out_of_buckets
from lit_rlvr.errors import refuse_all
from lit_rlvr.options import KL, AutoLR, Compute, Importance, Lora, Loss, Optim, Teacher
from lit_rlvr.plan import RunPlan, plan_of
from lit_rlvr.policy.adapters import is_saved
from lit_rlvr.policy.families.base import ImageProcessor
from lit_rlvr.policy.policy import Policy
from lit_rlvr.policy.sources import ModelSource
from lit_rlvr.policy.speed import return_freed_memory
from lit_rlvr.training.adaptive_lr import AdaptiveLR
from lit_rlvr.training.contradictions import contradictions
from lit_rlvr.training.loop import train
from lit_rlvr.training.loss import LossModule
from lit_rlvr.training.models import Models
from lit_rlvr.training.noise_scale import NoiseScale
from lit_rlvr.training.optimizer import apply_options, build_optimizer, check_lr, schedule_of_run
from lit_rlvr.training.reference import Reference
from lit_rlvr.training.state import RunState, named_terms
from lit_rlvr.training.step.failures import SkippedSteps, UnrewardedRollouts
from lit_rlvr.training.step.memory import TokenBudget
from lit_rlvr.training.step.updater import Updater
from lit_rlvr.training.terms import Term
from lit_rlvr.training.trace import Trace
from lit_rlvr.training.validation import Validation, check_sets
from lit_rlvr.types import GroupSelection, PromptBatch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class RLVRModule(ChecksArguments, LossModule, LightningModule):
    """The base class of every algorithm; a subclass defines its loss in `objective`.

    It is a `LossModule` (training/loss.py): advantages and loss, without Lightning. What else it needs are its parts,
    each in a file of its own: `model_source` and `models` load weights, `validation` measures, `updater` has the
    operations of the loop (training/loop.py), and `state` is what a checkpoint has of them.

    Example:
        ```python
        from lit_rlvr import RLVRModule, masked_sum


        class Plain(RLVRModule):
            has_ratio = False  # the loss has no ratio to the sampling policy, so it takes one update per rollout

            def objective(self, x):
                return -masked_sum(x.logp * x.advantages, x.token_weight, x.mask), {}
        ```

    Args:
        model: `smollm2` (the embedded SmolLM2-135M-Instruct), a model folder, or a hub id.
        advantage: estimator: a registered name, a class_path, or a dotted path to a function.
        lr: peak learning rate; or `auto`, or the options of `AutoLR` (`start`, `max_kl`): the run finds the rate.
        updates_per_rollout: number of minibatches (optimizer steps) that a rollout is split into.
        epochs_per_rollout: passes over each rollout.
        optim: the optimizer and its schedule.
        loss: how the losses of tokens become one, which tokens count, and the terms of entropy, correct answers and
            experts.
        kl: the divergence from a reference policy, in the loss or in the rewards.
        importance: the correction for completions that were not sampled from the policy in the loss.
        compute: how training computes, with the same results up to rounding.
        freeze_vision: do not train the vision tower of a vision-language model.
        lora: train low-rank adapters instead of the weights; checkpoints then hold only them.
        teacher: a model that the policy imitates on its own completions, by the advantages or by a term of the loss
            (on-policy distillation).
        terms: further costs of tokens, in the loss, the rewards or the advantages: a list of class_paths.
        config_overrides: changes of the model's config, for the trainer and the engine alike, such as a longer context:
            {max_position_embeddings: 16384, rope_parameters: {rope_type: yarn, factor: 4.0,
            original_max_position_embeddings: 4096}}.

    Attributes:
        demonstrates: True = it trains on the data's own completions, one for each prompt, and samples only to validate.
        target: the column of the data with the completions, of a module that demonstrates.
        target_empty_thoughts: whether empty thoughts at the beginning of its turns are in the loss.
        model_source: where the policy comes from: its folder, tokenizer and image processor.
        models: loads the policy, the reference and the teachers.
        policy: the trained policy; built in `configure_model`.
        validation: measures scored batches.
        state: what a checkpoint has besides weights and optimizer.
        updates: optimizer steps taken so far, the version of the weights; `iteration` counts rollouts.
        selection: which groups an iteration needs and trains on.
        reference: the reference policy; its `policy` is None if nothing needs one.
        budget: the most input tokens in a micro-batch, which running out of memory lowers.
        skipped, unrewarded: counts of skipped steps, and of rollouts without a reward.
        noise_scale: averages the signal and the noise of the steps' gradients.
        updater: takes the optimizer steps; from the start of training on.
        trace: records what the next rollout's updates do with its tokens; None = nothing does.
    """

    config_key = "model"
    demonstrates: ClassVar[bool] = False
    target: str | None = None
    target_empty_thoughts: Literal["mask", "train"] = "mask"
    selection: GroupSelection = GroupSelection()

    def __init__(
        self,
        model: str = "smollm2",
        advantage: Advantage | str = "grpo",
        lr: float | Literal["auto"] | AutoLR = 1e-6,
        updates_per_rollout: int = 1,
        epochs_per_rollout: int = 1,
        optim: Optim = Optim(),
        loss: Loss = Loss(),
        kl: KL = KL(),
        importance: Importance = Importance(),
        compute: Compute = Compute(),
        freeze_vision: bool = False,
        lora: Lora | None = None,
        teacher: Teacher | None = None,
        terms: list[Term] | None = None,
        config_overrides: dict[str, Any] | None = None,
    ) -> None:
        option_groups = with_class_defaults(
            type(self), optim=optim, loss=loss, kl=kl, importance=importance, compute=compute
        )
        self.init_args = init_arguments() | option_groups
        optim, loss, kl = option_groups["optim"], option_groups["loss"], option_groups["kl"]
        importance, compute = option_groups["importance"], option_groups["compute"]
        check_within(
            f"[1, {MAX_SIZE}]", "model", updates_per_rollout=updates_per_rollout, epochs_per_rollout=epochs_per_rollout
        )
        self.lr = AutoLR() if lr == "auto" else lr
        check_lr(self.lr, optim)
        super().__init__(advantage, loss, kl, teacher, terms or (), importance, updates_per_rollout, epochs_per_rollout)
        self.automatic_optimization = False
        self.model_source = ModelSource(model, config_overrides, None if lora is None else lora.adapter)
        self.optim = optim
        self.budget = TokenBudget(compute.tokens_per_microbatch)
        self.strict_loading = lora is None  # the frozen weights come from the model folder
        self.iteration = 0  # rollouts trained on so far
        self.updates = 0  # optimizer steps taken so far: the version of the weights
        if self.advantage.min_valid_fraction is not None and not self.selection.min_mixed_fraction:
            self.selection = replace(self.selection, min_mixed_fraction=self.advantage.min_valid_fraction)
        self.reference_completions = self.advantage.reference_completions
        self.reference = Reference(update_every=kl.reference_update_every)
        self.models = Models(
            self.model_source,
            compute,
            lora,
            freeze_vision,
            self.reference,
            self.teachers,
            needs_reference=self.needs_reference,
            balances_experts=self.needs("expert_imbalance"),
            scores_observations=self.needs("observation_logp"),
        )
        refuse_all(contradictions(self))
        self.policy: Policy = None  # type: ignore[assignment]  # built in configure_model
        self.validation = Validation()
        self.skipped = SkippedSteps(optim.max_skipped_steps)
        self.unrewarded = UnrewardedRollouts(optim.max_skipped_steps)
        self.noise_scale = NoiseScale()
        self.updater: Updater | None = None  # built in on_train_start
        self.adaptive_lr: AdaptiveLR | None = None  # built in configure_optimizers, if lr is not a number
        self.state = RunState(
            {
                "skipped": self.skipped,
                "unjudged": self.unrewarded,  # as checkpoints call it
                "noise_scale": self.noise_scale,
                "tokens": self.budget,
                "advantage_state": self.advantage,
                "reference": self.reference,
            },
            {"teachers": lambda: self.teachers.averaged, "terms": lambda: named_terms(self.terms)},
        )
        self._saved_options: dict[str, Any] = {}  # the optimizer's when the checkpoint was written
        self._saved_lr: dict[str, float] = {}  # the adaptive learning rate's
        self._logged: set[str] = set()  # update metrics logged so far
        self.trace: Trace | None = None  # records what the next rollout's updates do with its tokens

    # ---- the model ----------------------------------------------------------------------------------------

    @property
    def model(self) -> str:
        """The model as the settings name it."""
        return self.model_source.model

    @property
    def model_folder(self) -> str:
        """The folder or hub id that the policy and the engine load."""
        return self.model_source.model_folder

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the policy."""
        return self.model_source.tokenizer

    @property
    def image_processor(self) -> ImageProcessor:
        """The image processor of the policy."""
        return self.model_source.image_processor

    @property
    def data(self) -> Any:
        """The run's data module."""
        return self.trainer.datamodule  # type: ignore[attr-defined]

    @property
    def sharded(self) -> bool:
        """Whether each process has a part of each weight."""
        return self.device_mesh is not None

    @property
    def needs_reference(self) -> bool:
        """True if the loss, a term or the advantage needs a reference policy."""
        by_terms = self.needs("ref_logp") or self.needs("ref_logp", in_loss=False)
        return by_terms or self.reference_completions is not None

    @property
    def compute(self) -> Compute:
        """`model.compute`, with what was decided of it."""
        return self.models.compute

    @property
    def lora(self) -> Lora | None:
        """The adapters that are trained; None = the weights are."""
        return self.models.lora

    @property
    def freeze_vision(self) -> bool:
        """Whether the vision tower stays as it is."""
        return self.models.freeze_vision

    @property
    def samples_reference(self) -> bool:
        """Whether every rollout samples as many completions of the reference as of the policy."""
        return self.reference_completions is not None and self.reference_completions.rollouts == "fresh"

    # ---- set-up -------------------------------------------------------------------------------------------

    @property
    def plan(self) -> RunPlan:
        """What follows from the run's settings; without a trainer, that of one process that trains on the CPU."""
        if self._trainer is None:
            return RunPlan()
        return plan_of(self.trainer)

    def _agent_problems(self) -> Iterator[str]:
        """Yield what does not go together with an agent, a line each."""
        if self.reference_completions is not None:
            yield f"model: {type(self).__name__} samples a reference model, and agents play with the policy alone"

    def problems(self, plan: RunPlan) -> Iterator[str]:
        """Yield what the algorithm cannot do in a run, a line each."""
        if plan.completions < self.advantage.min_group:
            yield (
                f"rollout.group_size: {plan.completions} is too small: model.advantage compares the completions of "
                f"a prompt; use at least {self.advantage.min_group}"
            )
        parts = plan.ranks * self.updates_per_rollout
        if plan.prompts % parts:
            yield (
                f"data.prompts_per_rollout: {plan.prompts} prompts cannot be split evenly over {plan.ranks} rank(s) x "
                f"{self.updates_per_rollout} minibatch(es) (model.updates_per_rollout) of whole groups; "
                f"use a multiple of {parts}"
            )
        if plan.has_agent:
            yield from self._agent_problems()
        wanted = self.reference_completions
        if wanted is not None and (wanted.pool_size or plan.completions) < plan.completions:
            yield f"model.reference_pool_size: {wanted.pool_size} is below rollout.group_size={plan.completions}"
        if plan.staleness and self.samples_reference:
            yield (
                "rollout.staleness: fresh completions of the reference need the engine, too; use AAPO with "
                "reference_rollouts: pool"
            )
        elif plan.staleness and not self.uses_rollout and not self.resolve_importance(plan.is_exact).is_bounded:
            yield (
                f"rollout.staleness: the rollouts are up to {plan.staleness} iteration(s) old; set "
                "model.importance.correction, with model.importance.cap"
            )
        if self.needs("observation_logp") and plan.prompts and plan.sampling.max_turns == 1:
            yield (
                "model.loss.observation_coef: in episodes of one turn nothing is observed; set "
                "rollout.sampling.max_turns above 1, or leave the option out"
            )
        yield from self.models.problems(plan)

    def setup(self, stage: str) -> None:
        check_sets(self.data, stage)

    def configure_model(self) -> None:
        """Load the policy, the reference and the teachers, unless they are loaded.

        Collective: call it on every rank.
        """
        if self.policy is not None:
            return
        plan = self.plan
        self.policy = self.models.load(plan)
        if plan.ranks > 1 and not plan.sharded:
            leave_out_of_buckets(self)

    def on_fit_start(self) -> None:
        self.models.begin_training(self.policy, self.plan)

    def trace_next(self, trace: Trace | None) -> None:
        """Let a trace record what the next rollout's updates do with its tokens; None = nothing does."""
        self.trace = trace

    def _build_optimizer(self) -> Any:
        if isinstance(self.lr, AutoLR):
            first_lr = AdaptiveLR.of(self).lr
        else:
            first_lr = self.lr
        trainable = []
        for p in self.policy.parameters():
            if p.requires_grad:
                trainable.append(p)
        return build_optimizer(trainable, first_lr, self.optim)

    def configure_optimizers(self) -> Any:
        """Return the optimizer and the schedule of its learning rate, which `auto` or a checkpoint may set."""
        optimizer = self._build_optimizer()
        if isinstance(self.lr, AutoLR):
            self.adaptive_lr = AdaptiveLR.of(self)
            if self._saved_lr:
                self.adaptive_lr.load_state_dict(self._saved_lr)
        return {"optimizer": optimizer, "lr_scheduler": schedule_of_run(self, optimizer)}

    def on_train_start(self) -> None:
        """Apply the options that changed since the checkpoint, and build the `Updater`."""
        if self.adaptive_lr is None:
            lr = self.lr
        else:
            lr = self.adaptive_lr.lr
        assert not isinstance(lr, AutoLR)
        apply_options(self.optimizers(), self.lr_schedulers(), lr, self._saved_options)
        run_folder = Path(self.trainer.default_root_dir)
        self.budget.begin(run_folder, self.policy.device, self.sharded)
        self.updater = Updater(
            policy=self.policy,
            reference=self.reference.policy,
            teachers=self.teachers,
            algorithm=self,
            optimizer=self.optimizers(),
            schedule=self.lr_schedulers(),
            backward_on_rank=self.backward_on_rank,
            optim=self.optim,
            budget=self.budget,
            skipped=self.skipped,
            run_folder=run_folder,
            adaptive_lr=self.adaptive_lr,
            noise_scale=self.noise_scale,
        )

    def backward_on_rank(self, loss: Tensor) -> None:
        """Compute the gradients of a loss, which DDP leaves to `Updater.reduce_and_clip` to average."""
        model = self.trainer.strategy.model
        with model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext():
            self.manual_backward(loss)

    def transfer_batch_to_device(self, batch: PromptBatch, device: torch.device, dataloader_idx: int) -> PromptBatch:
        """Return the batch itself: Lightning would train on a copy that the rollout callback never saw."""
        return batch

    # ---- one iteration ------------------------------------------------------------------------------------
    def training_step(self, batch: PromptBatch, batch_idx: int) -> None:
        """Take the optimizer steps on the batch's rollout, as `train` in training/loop.py does.

        Collective: call it on every rank.
        """
        assert batch.rollout is not None and self.updater is not None, "the RolloutCallback fills the batch first"
        started = time.perf_counter()
        metrics = []
        for metrics_of_step in train(self.updater, batch.rollout, self.updates + 1, self.trace):
            self.updates += 1
            metrics.append(metrics_of_step)
        self.finish_iteration(batch, metrics)
        self.log("time/train", time.perf_counter() - started)
        self.log("step", float(self.updates))  # Lightning uses it as the logs' x axis

    def finish_iteration(self, batch: PromptBatch, metrics: list[dict[str, float]]) -> None:
        """Count the iteration, renew the reference and the terms if they are due, commit the data's position, and log
        means over the updates."""
        self.iteration += 1
        self.reference.renew(self.policy, self.iteration)
        self.teachers.renew(self.policy, self.iteration)
        for term in self.terms:
            term.renew(self.policy, self.iteration)
        self.data.commit(batch.cursor, batch.successes)
        self._logged |= set(chain.from_iterable(metrics))
        for name in sorted(self._logged):
            # NaN if no update has it, because no row was run: Lightning would repeat the previous iteration's value.
            values = []
            for update in metrics:
                if name in update:
                    values.append(update[name])
            self.log(name, sum(values) / len(values) if values else math.nan)

    def on_train_batch_end(self, outputs: Any, batch: PromptBatch, batch_idx: int) -> None:
        return_freed_memory()
        if self.trainer.should_stop or 0 < self.trainer.max_steps <= self.trainer.global_step:
            self.unrewarded.check_any_rewarded()

    # ---- validation and test ------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        self.validation.begin()

    def validation_step(self, batch: PromptBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.validation.add(self, batch)

    def on_validation_epoch_end(self) -> None:
        self.log_dict(self.validation.end("val") | {"step": float(self.updates)})

    on_test_epoch_start = on_validation_epoch_start
    test_step = validation_step

    def on_test_epoch_end(self) -> None:
        self.log_dict(self.validation.end("test"))

    # ---- checkpoints --------------------------------------------------------------------------------------

    @property
    def trained(self) -> list[str]:
        """The names of the parameters in the optimizer, in its order."""
        names = []
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                names.append(name)
        return names

    @property
    def saved(self) -> list[str]:
        """The names of the parameters of adapters that a checkpoint holds."""
        names = []
        for name, _ in self.named_parameters():
            if is_saved(name):
                names.append(name)
        return names

    def _identity(self) -> dict[str, str]:
        identity = run_identity(self.data, self, self.advantage, self.policy)
        if self.trainer.state.fn == "fit":
            # The trainer's own is made after a checkpoint is loaded.
            identity["optimizer"] = dotted_path_of(type(self._build_optimizer()))
        return identity

    def check_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of a different kind of run, before shapes could clash.

        Raises:
            UserError: names what differs.
        """
        check_identity(self._identity(), checkpoint["rlvr"])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["rlvr"] = {
            **self._identity(),
            **self.state.state_dict(),
            "iteration": self.iteration,
            "updates": self.updates,
            "optimizer_options": self.trainer.optimizers[0].defaults,
            "model_folder": self.model_folder,
            "lr": {} if self.adaptive_lr is None else self.adaptive_lr.state_dict(),
        }
        if self.lora is not None:
            weights = checkpoint["state_dict"]
            saved = set(self.saved)
            saved_weights = {}
            for name, value in weights.items():
                if name in saved:
                    saved_weights[name] = value
            checkpoint["state_dict"] = saved_weights

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.check_checkpoint(checkpoint)
        saved = checkpoint["rlvr"]
        self.iteration = saved["iteration"]
        self.updates = saved["updates"]
        self._saved_options = saved.get("optimizer_options", {})
        self._saved_lr = saved.get("lr", {})
        self.state.load_state_dict(saved)
