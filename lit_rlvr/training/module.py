"""The map of the training loop, and its second half, `RLVRModule.training_step`: scored groups to optimizer steps.

From the parsed command to an optimizer step, in the order of the calls, and where to find each part. Each line is a
call, made by the one above it that is indented less, or by a helper of it. `RLVRCLI`, a LightningCLI, calls
`Trainer.fit` in its constructor; for each batch, Lightning then calls `RolloutCallback.on_train_batch_start`, which
calls `collect`, and `training_step`.

    main                                  cli/main.py            the command that was typed
      run                                 cli/lightning_cli.py   a command that takes a config
        RLVRCLI                           cli/lightning_cli.py   settings -> model, data, rollout, trainer
          Run.open                        run/run.py             locks the run folder, and finds what is resumed
          Trainer.fit                     run/trainer.py         prepares, then Lightning's loop over batches
            PlannedRun.prepare            run/planned.py         refuses what may not run (rollout/preflight/)
            RolloutCallback.setup         rollout/callback.py    where rollouts come from
            LoadedModule.configure_model  training/loading.py    policy, reference, teachers, sharded as asked
            build_optimizer               training/optimizer.py  AdamW and its schedule

    RolloutCallback.collect               rollout/callback.py    asks the source for a rollout, and logs
      SyncSource.next                     rollout/source.py      the steps from prompts to scored groups
        SyncedEngine.sync_weights         engines/synced.py      the engine receives the policy's weights
        GroupSampler.sample               rollout/generate.py    P x G completions, and their rewards
          SyncedEngine.generate           engines/synced.py      the engine's completions, group by group
          BackgroundScoring.scores        rewards/combine.py     each completion's rewards, and their weighted sum
          assemble                        rollout/assemble.py    the tensors of a `Rollout`
        SyncSource.sample_more            rollout/source.py      further prompts, until enough groups are mixed
        SyncSource.add_reference_rewards  rollout/source.py      rewards of the reference, if the advantage asks
        SyncSource.balance                rollout/source.py      groups exchanged, as much work on each rank
    RLVRModule.training_step              training/module.py     scored groups -> optimizer steps
      Updater.initial_logprobs            training/update.py     log-probabilities that advantages or `select` need
      RLVRModule.estimate_advantages      training/module.py     rewards -> advantages, over all ranks
        gather_groups                     training/gather.py     the groups of all ranks
        LossModule.estimate               training/loss.py       calls `observe`, then the estimator (advantages/)
      RLVRModule.split_groups             training/module.py     minibatches of whole groups
      Updater.add_fixed_logprobs          training/update.py     log-probabilities that stay fixed in the updates
      Updater.step                        training/update.py     one optimizer step
        Updater.accumulate                training/update.py     gradients, micro-batch by micro-batch
          plan_step                       training/step.py       normalisers over all ranks, micro-batches
          Policy.forward_rows             policy/policy.py       forward: log-probabilities of a micro-batch
          loss_inputs                     training/step.py       what the objective gets
          LossModule.loss                 training/loss.py       calls the algorithm's `objective` (algorithms/)
            term_costs                    training/terms.py      the KL divergence and other costs of tokens
          Updater.backward_microbatch     training/update.py     backward
        Updater.reduce_and_clip           training/update.py     gradients over ranks, and their norm
        Updater.step_or_skip              training/update.py     steps the optimizer, if all is finite and rewarded
      RLVRModule.finish_iteration         training/module.py     counts, reference, position in the data, logs
"""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from lit_rlvr.advantages import Advantage
from lit_rlvr.common.init_arguments import init_arguments, with_class_defaults
from lit_rlvr.common.terminal import progress
from lit_rlvr.distributed.collectives import to_device
from lit_rlvr.errors import MAX_SIZE, ChecksArguments, check_within, refuse_all
from lit_rlvr.objectives import masked_mean, resolve_correction
from lit_rlvr.options import KL, AutoLR, Compute, Importance, Lora, Loss, Optim, Teacher
from lit_rlvr.policy.speed import return_freed_memory
from lit_rlvr.training.adaptive_lr import AdaptiveLR
from lit_rlvr.training.contradictions import contradictions
from lit_rlvr.training.failures import SkippedSteps, TokenBudget, UnrewardedRollouts
from lit_rlvr.training.gather import gather_groups, of_this_rank
from lit_rlvr.training.loss import LossModule
from lit_rlvr.training.metrics import advantage_metrics, staleness_metrics
from lit_rlvr.training.noise_scale import NoiseScale
from lit_rlvr.training.optimizer import apply_options, build_optimizer, check_lr, schedule_of_run
from lit_rlvr.training.reference import Reference
from lit_rlvr.training.saving import SavedModule
from lit_rlvr.training.step import PreparedRollout
from lit_rlvr.training.teachers import Teachers
from lit_rlvr.training.terms import InitialLogprobs, Term, term_costs
from lit_rlvr.training.trace import Trace
from lit_rlvr.training.update import Updater
from lit_rlvr.training.validation import EvaluatingModule
from lit_rlvr.types import GroupSelection, PromptBatch, Rollout


class RLVRModule(ChecksArguments, LossModule, SavedModule):
    """The base class of every algorithm; a subclass defines its loss in `objective`.

    Each of its bases is one idea in a file of its own:

    - `LossModule` (training/loss.py): advantages and loss, without Lightning.
    - `SavedModule` (training/saving.py): `on_save_checkpoint`, `on_load_checkpoint`.
    - `LoadedModule` (training/loading.py), the base of `SavedModule`: `configure_model` loads the weights.
    - `EvaluatingModule` (training/validation.py), the base of `LoadedModule`: the LightningModule, and its validation.
    - `ChecksArguments` (errors.py): unknown arguments are refused by name.

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
        policy: the trained policy; built in `configure_model`.
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
        optim, loss, kl, importance, compute = option_groups.values()
        check_within(
            f"[1, {MAX_SIZE}]", "model", updates_per_rollout=updates_per_rollout, epochs_per_rollout=epochs_per_rollout
        )
        self.lr = AutoLR() if lr == "auto" else lr
        check_lr(self.lr, optim)
        EvaluatingModule.__init__(self, model, config_overrides, None if lora is None else lora.adapter)
        self.teachers = Teachers(teacher)
        LossModule.__init__(self, advantage, loss, kl, None if teacher is None else self.teachers, terms or ())
        self.automatic_optimization = False
        self.optim = optim
        self.importance = importance
        self.compute = compute
        self.budget = TokenBudget(compute.tokens_per_microbatch)
        self.updates_per_rollout = updates_per_rollout
        self.epochs_per_rollout = epochs_per_rollout
        self.freeze_vision = freeze_vision
        self.lora = lora
        self.strict_loading = lora is None  # the frozen weights come from the model folder
        self.most_tokens = 0  # that the run trains on, set by `RolloutCallback.setup`; 0 = unknown
        self.replays_routes = False  # `rollout.replay_routes`, set by `RolloutCallback.setup`
        self.iteration = 0  # rollouts trained on so far
        if self.advantage.min_valid_fraction is not None and not self.selection.min_mixed_fraction:
            self.selection = replace(self.selection, min_mixed_fraction=self.advantage.min_valid_fraction)
        self.reference_completions = self.advantage.reference_completions
        self.reference = Reference(update_every=kl.reference_update_every)
        refuse_all(contradictions(self))
        self.skipped = SkippedSteps(optim.max_skipped_steps)
        self.unrewarded = UnrewardedRollouts(optim.max_skipped_steps)
        self.noise_scale = NoiseScale()
        self.updater: Updater | None = None  # built in on_train_start
        self.adaptive_lr: AdaptiveLR | None = None  # built in configure_optimizers, if lr is not a number
        self._saved_options: dict[str, Any] = {}  # the optimizer's when the checkpoint was written
        self._saved_lr: dict[str, float] = {}  # the adaptive learning rate's
        self._logged: set[str] = set()  # update metrics logged so far
        self.trace: Trace | None = None  # records what the next rollout's updates do with its tokens

    @property
    def samples_reference(self) -> bool:
        """Whether every rollout samples as many completions of the reference as of the policy."""
        return self.reference_completions is not None and self.reference_completions.rollouts == "fresh"

    def choose_correction(self, exact: bool) -> Importance:
        """Return the correction for completions of an engine.

        Args:
            exact: its log-probabilities equal the trainer's.
        """
        mode = "none" if self.uses_rollout else resolve_correction(self.importance.correction, exact)
        return replace(self.importance, correction=mode)

    # ---- set-up -------------------------------------------------------------------------------------------

    def _build_optimizer(self) -> Any:
        if isinstance(self.lr, AutoLR):
            first_lr = AdaptiveLR.of(self).lr
        else:
            first_lr = self.lr
        return build_optimizer([p for p in self.policy.parameters() if p.requires_grad], first_lr, self.optim)

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
        lr = self.lr if self.adaptive_lr is None else self.adaptive_lr.lr
        assert not isinstance(lr, AutoLR)
        apply_options(self.optimizers(), self.lr_schedulers(), lr, self._saved_options)
        run = Path(self.trainer.default_root_dir)
        saved_budget = self.trainer.strategy.broadcast(self.budget.saved(run))
        if saved_budget is not None and saved_budget < self.budget.tokens:
            self.budget.lower(saved_budget, "an earlier start ran out of memory")
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
            run=run,
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
        """Train on the batch's rollout: estimate advantages, split it into minibatches, and take a step on each.

        Collective: call it on every rank.
        """
        assert batch.rollout is not None and self.updater is not None, "the RolloutCallback fills the batch first"
        started = time.perf_counter()
        rollout = batch.rollout
        initial = self.updater.initial_logprobs(rollout)  # (B, T) each, None = nothing needs it
        advantages = self.estimate_advantages(rollout, initial)  # (B, 1) or (B, T), from the groups of all ranks
        minibatches = self.split_groups(rollout) * self.epochs_per_rollout
        progress.begin("training", total=len(minibatches))
        assert rollout.versions is not None, "the source sets them in training"
        prepared = PreparedRollout(
            rollout,
            advantages,
            live=self.live_rows(rollout, advantages),
            importance=self.choose_correction(rollout.exact),
            age=self.updates - rollout.versions,
            trace=self.trace,
            old_logp=initial.logp,
            entropy=initial.entropy,
        )
        self.updater.add_fixed_logprobs(prepared, minibatches)
        metrics = [staleness_metrics(prepared, minibatches, log_zero="train/staleness/max" in self._logged)]
        prepared.logs_staleness = bool(metrics[0])
        for minibatch in minibatches:
            metrics.append(self.updater.step(prepared, minibatch, self.updates + 1))
            self.updates += 1
        self.finish_iteration(batch, metrics)
        self.log("time/train", time.perf_counter() - started)
        self.log("step", float(self.updates))  # Lightning uses it as the logs' x axis

    def finish_iteration(self, batch: PromptBatch, metrics: list[dict[str, float]]) -> None:
        """Count the iteration, renew the reference and the terms if they are due, commit the data's position, and log
        means over the updates."""
        self.iteration += 1
        self.reference.renew(self.policy, self.iteration)
        for term in self.terms:
            term.renew(self.policy, self.iteration)
        self.data.commit(batch.cursor, batch.successes)
        self._logged |= {name for update in metrics for name in update}
        for name in sorted(self._logged):
            # NaN if no update has it, because no row was run: Lightning would repeat the previous iteration's value.
            values = [update[name] for update in metrics if name in update]
            self.log(name, sum(values) / len(values) if values else math.nan)

    def on_train_batch_end(self, outputs: Any, batch: PromptBatch, batch_idx: int) -> None:
        return_freed_memory()
        if self.trainer.should_stop or 0 < self.trainer.max_steps <= self.trainer.global_step:
            self.unrewarded.check_any_rewarded()

    def estimate_advantages(self, rollout: Rollout, initial: InitialLogprobs) -> Tensor:
        """Return the advantages of this rank's rows, (B, 1) or (B, T), from all ranks' groups; keep each completion's
        (mean) advantage in the rollout.

        Collective: call it on every rank.
        """
        rewards = to_device(rollout.rewards, self.device)
        reward_costs, cost_sums = self.reward_costs(initial, rewards)  # (P, G)
        group = gather_groups(rollout, rewards - reward_costs, self.advantage)  # of all ranks
        estimates, metrics = self.estimate(group)  # (P, G) or (B, T), of all ranks
        means = self.completion_means(estimates, group)  # (P, G), of all ranks
        # rows: (B, 1) or (B, T)
        if estimates.shape == means.shape:
            rows = estimates.reshape(-1, 1)
        else:
            rows = estimates
        rollout.advantages = of_this_rank(means, len(rollout.prompts)).cpu()  # (P, G)
        advantages = of_this_rank(rows, len(rollout.mask))[:, : rollout.mask.shape[1]]
        if self.teachers.options is not None:  # completions without a reward learn from the teacher alone
            advantages = advantages.masked_fill(~to_device(rollout.rewarded.reshape(-1, 1), advantages.device), 0)
            rollout.advantages = rollout.advantages.masked_fill(~rollout.rewarded, 0)
        for term, cost in term_costs(self.terms, "advantages", initial):
            advantages = advantages - term.coef * cost.to(advantages.dtype)
            rollout.advantages = masked_mean(advantages, initial.mask).view(rollout.rewards.shape).cpu()
            cost_sums[term.metric] = cost.double().sum()
        metrics = advantage_metrics(rollout.advantages, cost_sums, initial.mask) | metrics
        if self.teachers.in_loss:
            metrics["no_signal"] = 0.0
        self.log_dict({f"train/{name}": value for name, value in metrics.items()})
        return advantages

    def live_rows(self, rollout: Rollout, advantages: Tensor) -> list[int]:
        """Return the rows of a rollout that can have a gradient, by their advantages (B, 1) or (B, T)."""
        live = rollout.mask.any(1)  # (B,) rows with a token in the loss
        if not self.trains_all_rows:
            live &= (advantages != 0).any(1).cpu()
        return [int(i) for i in live.nonzero().flatten()]

    def split_groups(self, rollout: Rollout) -> list[list[int]]:
        """Split the groups to train on into `updates_per_rollout` parts, by position in the (shuffled) prompt stream.

        A part is the same set of groups on any number of ranks. Each rank has an equal share of it, unless dynamic
        sampling dropped some of its groups.
        """
        count = self.updates_per_rollout
        if rollout.kept is None:
            numbers = {p: p for p in range(len(rollout.prompts))}
        else:
            numbers = rollout.kept
        return [[p for p, number in numbers.items() if number % count == k] for k in range(count)]
