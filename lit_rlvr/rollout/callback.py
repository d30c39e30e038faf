"""`RolloutCallback` asks a `RolloutSource` for each batch's rollout, and logs it. The loop is `training/loop.py`."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningModule, Trainer

from lit_rlvr.agents.play import agent_metrics
from lit_rlvr.common.log import log
from lit_rlvr.common.paths import expanded
from lit_rlvr.common.resuming import run_folder_option
from lit_rlvr.datamodules.reading.stream import prompt_hashes
from lit_rlvr.distributed.checkpoints import user_code, warn_of_changes
from lit_rlvr.engines.synced import SyncedEngine
from lit_rlvr.errors import UserError, check_all
from lit_rlvr.plan import PlanningCallback, RunPlan
from lit_rlvr.policy.precision import use_deterministic_kernels
from lit_rlvr.rewards import shared_pool
from lit_rlvr.rewards.base import RunProcess, unlogged
from lit_rlvr.rewards.combine import logged_metrics
from lit_rlvr.rollout.agreement import agreement_metrics
from lit_rlvr.rollout.demonstrations import DemonstrationSets, DemonstrationSource
from lit_rlvr.rollout.engine_context import engine_context
from lit_rlvr.rollout.episodes import begins, turn_metrics
from lit_rlvr.rollout.generate import GroupSampler, completion_seeds
from lit_rlvr.rollout.metrics import rollout_metrics, set_metrics
from lit_rlvr.rollout.preflight.data import inspect_data, report_rewards
from lit_rlvr.rollout.preflight.lengths import LongAnswerSearch
from lit_rlvr.rollout.preflight.sizes import check_settings, log_sizes, plan_run
from lit_rlvr.rollout.queue import QueueSource
from lit_rlvr.rollout.record import Record, ReplaySource, replay_settings
from lit_rlvr.rollout.settings import RolloutSettings
from lit_rlvr.rollout.source import RolloutSource
from lit_rlvr.rollout.sync import SyncSource
from lit_rlvr.sampling import Sampling
from lit_rlvr.training.module import RLVRModule
from lit_rlvr.training.optimizer import steps_per_iteration
from lit_rlvr.types import PromptBatch, Rollout

if TYPE_CHECKING:
    from lit_rlvr.datamodules import PromptDataModule


class RolloutCallback(RolloutSettings, PlanningCallback):
    """Fills each batch of prompts with a rollout before the algorithm sees it, in training and in validation.

    `RolloutSettings` documents its options.

    Attributes:
        source: where rollouts come from; built in `setup`.
        sampler: generates and scores; built in `setup`.
        demonstrations: the completions to learn from, if the data have some.
        long_answers: finds gold answers that are too long for completions.
        ends_run: whether the run has trained on all of `replay.rollouts_from`.
    """

    source: RolloutSource = None  # type: ignore[assignment]
    sampler: GroupSampler = None  # type: ignore[assignment]
    ends_run = False
    _record: Record | None = None  # of this run
    _pinned_groups = 0
    _provenance: dict[str, dict[str, Any]]

    @cached_property
    def synced_engine(self) -> SyncedEngine:
        """The engine with the weights that it was synced to."""
        return SyncedEngine(self.engine, self.safeguards.probe_every, self.safeguards.max_engine_restarts)

    @cached_property
    def demonstrations(self) -> DemonstrationSets:
        return DemonstrationSets()

    @cached_property
    def long_answers(self) -> LongAnswerSearch:
        return LongAnswerSearch()

    # ---- one iteration ------------------------------------------------------------------------------------

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: PromptBatch, batch_idx: int
    ) -> None:
        """Fill the batch with a rollout, before `RLVRModule.training_step` trains on it."""
        module: RLVRModule = pl_module  # type: ignore[assignment]
        for reward in self.rewards:
            reward.begin_rollout(module.updates, trainer.max_steps)
        batch.rollout = self.fill_batch(trainer, module, batch)

    def fill_batch(self, trainer: Trainer, module: RLVRModule, batch: PromptBatch) -> Rollout:
        """Return scored groups for a batch of prompts, and log what they are.

        Collective: call it on every rank.
        """
        started = time.perf_counter()
        source = self.source
        if source.generates:
            self._start_engine(trainer, module)
        elif self.synced_engine.started:  # a validation has woken it
            self.synced_engine.sleep()
        rollout = source.next(batch)  # `collect` in training/loop.py, unless rollouts are replayed or demonstrated
        module.log_dict(source.metrics)
        module.log("time/rollout", time.perf_counter() - started)
        if source.is_scored:
            metrics = rollout_metrics(rollout, module.tokenizer, source.generation_seconds, source.extra_completions)
            has_reward = not math.isnan(metrics["rollout/reward"])  # on any rank
            rollout.is_unrewarded = not (has_reward or self.sampler.has_teacher)  # `train` then skips its steps
            module.unrewarded.count(rollout, module.iteration + 1, int(metrics["rollout/samples"]))
            self._log_rollout(trainer, module, rollout, metrics)
        return rollout

    def _log_rollout(self, trainer: Trainer, module: RLVRModule, rollout: Rollout, metrics: dict[str, float]) -> None:
        """Log the metrics of a rollout, of its rewards and of its turns.

        Collective: call it on every rank.
        """
        module.log_dict(metrics)
        module.log_dict(logged_metrics(self.rewards))
        agreement = agreement_metrics(rollout)
        shown = {}
        for n, v in agreement.items():
            if n in trainer.logged_metrics or not math.isnan(v):
                shown[n] = v
        module.log_dict(shown)
        if self.sampler.episodes is not None or self.sampler.agents is not None:
            module.log_dict(turn_metrics(rollout))
        if self.sampler.agents is not None:
            module.log_dict(agent_metrics(self.sampler.agents.take_counts()))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: PromptBatch, batch_idx: int
    ) -> None:
        """Log what the data sets and the curriculum did, and record the iteration before its checkpoint is saved."""
        module: RLVRModule = pl_module  # type: ignore[assignment]
        data = module.data
        if batch.rollout is not None and self.source.is_scored and len(data.datasets) > 1:
            module.log_dict(set_metrics(batch.rollout, data.datasets))
        if data.success is not None:
            module.log("rollout/retired_prompts", data.stream.retired_share(data.cursor))
        if self._record is not None and batch.rollout is not None:
            self._record.add(
                module.iteration, batch.rollout, batch.cursor, module.updates - steps_per_iteration(module)
            )
        self._stop_after_replay(trainer, module.iteration)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._stop_after_replay(trainer, checkpoint["rlvr"]["iteration"])

    def _stop_after_replay(self, trainer: Trainer, iteration: int) -> None:
        """End the run if it has trained on the whole record."""
        self.ends_run = isinstance(self.source, ReplaySource) and iteration >= self.source.iterations
        if self.ends_run and not trainer.should_stop:
            if trainer.is_global_zero:
                log.warning(
                    "rollout.replay.rollouts_from: the record ends after iteration %d, and so does this run", iteration
                )
            trainer.should_stop = True  # Lightning then validates before it ends the run

    # ---- validation ---------------------------------------------------------------------------------------

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: PromptBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Fill the batch with completions for validation, and the greedy ones if they are asked for."""
        module: RLVRModule = pl_module  # type: ignore[assignment]
        if module.demonstrates:
            self._add_demonstrations(module, batch)
        samples = self.samples_of(batch.name)
        if not samples:
            return
        self._start_engine(trainer, module)
        self.source.wait()
        sampling = self.eval_sampling.with_banned(module.policy.placeholder_ids)
        self.synced_engine.sync_weights(module.policy, ("policy", module.updates), batch.prompts, sampling)
        batch.rollout = self._validate(module, batch, sampling, samples)
        if self.evaluation.greedy:
            greedy = replace(sampling, temperature=0.0, top_p=1.0, top_k=0)
            batch.greedy = self._validate(module, batch, greedy, 1)

    def _add_demonstrations(self, module: RLVRModule, batch: PromptBatch) -> None:
        """Add the completions that the data hold to a validation batch."""
        demonstrations = self.demonstrations.by_name[batch.name]
        first = [prompt for prompts in demonstrations.data.prompts.values() for prompt in prompts[:1]]
        prompts = batch.prompts or [module.data.prepare(first[0])]
        batch.demonstrations = demonstrations.rollout(prompts, module.policy.placeholder_ids)

    def _validate(self, module: RLVRModule, batch: PromptBatch, sampling: Sampling, samples: int) -> Rollout:
        """Sample and score the completions of a validation batch; what rewards log meanwhile is not training's."""
        if not batch.prompts:  # another rank has the last prompts, and gathering sharded weights needs all ranks
            self.sampler.wait_for_others(sampling, module.data)
            return Rollout.unscored([], [], sampling, samples)
        data = next((other for other in module.data.validated if other.name == batch.name), module.data)
        seeds = completion_seeds(batch.prompts, [0] * len(batch), samples, "validation", batch.name)
        with unlogged():
            rollout, _ = self.sampler.generate(batch.prompts, seeds, sampling, data)
        return rollout

    on_test_batch_start = on_validation_batch_start

    # ---- start and end ------------------------------------------------------------------------------------

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin_rewards(trainer)

    def open_rewards(self, trainer: Trainer, run_folder: Path | None) -> None:
        """Let the rewards reach what they need outside of this process.

        Args:
            trainer: knows this process.
            run_folder: where what the run has spent counts from the start on; None = it is not ready for a new run.
        """
        for reward in self.rewards:
            reward.set_process(RunProcess.within(trainer))
            if run_folder is not None:
                reward.begin_run(run_folder)
            reward.connect()

    def _begin_rewards(self, trainer: Trainer) -> None:
        """Tell the rewards the run's folder, before a validation at the start and again before the first step."""
        for reward in self.rewards:
            reward.begin_run(Path(trainer.default_root_dir))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        module: RLVRModule = pl_module  # type: ignore[assignment]
        self._begin_rewards(trainer)
        if isinstance(self.source, ReplaySource):
            self.source.begin()
        if self.record_gib:
            self._record = Record(Path(trainer.default_root_dir), int(self.record_gib * 2**30))
            settings = self._replay_settings(trainer, module.data)
            versions = self.teacher_versions
            self._record.begin(module.iteration, settings, module.policy.model, versions)

    def instruct_data(self, data: PromptDataModule) -> None:
        data.use_environment(self.environment, self.judging_rewards(data.demonstrates))

    def pin_groups(self, count: int) -> None:
        """Keep the first process's first groups of each rollout there, because it saves them.

        Call it before `setup`.
        """
        self._pinned_groups = count

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse sizes and data that do not fit, connect teachers and judges, and build the source of rollouts."""
        module: RLVRModule = pl_module  # type: ignore[assignment]
        data: PromptDataModule = module.data
        device = trainer.strategy.root_device.type
        if self.deterministic and device == "cuda":
            use_deterministic_kernels()
        plan = self.plan = plan_run(self, trainer, module, data)
        # `RunParts.prepare` has asked the same before the weights loaded; a plain `lightning.Trainer` has not.
        check_all(lambda: check_settings(self, module, plan), lambda: self.inspect_data(module, data))
        # Numbers depend on these, and the settings do not tell them; a resumed run compares.
        self._provenance = {"code": user_code(), "validation": {}, "threads": {}, "weights": {}}
        if device == "cpu":
            self._provenance["threads"]["torch"] = torch.get_num_threads()
        trains = stage == "fit"
        if trains:
            self._set_up_training(trainer, module, data, plan)
        else:
            self._set_up_measurement(trainer, module, plan)
        self.sampler = GroupSampler(
            self.synced_engine,
            self.rewards,
            self.environment,
            max_failure_rate=self.safeguards.max_failure_rate,
            mask_truncated=self.mask_truncated,
            exact=plan.is_exact,
            has_teacher=trains and module.teachers.options is not None,
            run_folder=Path(trainer.default_root_dir),
        )
        self.source = self._choose_source(trainer, module, data, stage)

    def inspect_data(self, module: RLVRModule, data: PromptDataModule) -> None:
        """Refuse data that do not fit the settings or the model's context; read the completions to learn from.

        Raises:
            UserError: names the settings and the rows.
        """
        inspect_data(self, module, data, self.demonstrations, self.long_answers)

    def _set_up_training(self, trainer: Trainer, module: RLVRModule, data: PromptDataModule, plan: RunPlan) -> None:
        """Say what the run needs and connect its teachers; `Trainer.fit` connects the rewards before a warm start."""
        log_sizes(self, module, plan, data)
        module.teachers.connect()
        if trainer.is_global_zero:
            report_rewards(self, data, self.long_answers)
        for other in data.validated:
            self._provenance["validation"][other.name] = prompt_hashes(other.prompts["validation"])
        if trainer.is_global_zero:
            self._provenance["weights"] = module.models.frozen_versions()

    def _set_up_measurement(self, trainer: Trainer, module: RLVRModule, plan: RunPlan) -> None:
        """Connect the rewards, and say what the measurement needs."""
        self.open_rewards(trainer, Path(trainer.default_root_dir))
        log_sizes(self, module, plan, None)

    def _choose_source(self, trainer: Trainer, module: RLVRModule, data: PromptDataModule, stage: str) -> RolloutSource:
        """Return where the run's rollouts come from."""
        if stage == "fit" and self.replay.rollouts_from is not None:
            return self.replay_source(trainer, module, data)
        if stage == "fit" and module.demonstrates:
            demonstrations = self.demonstrations.by_name[data.name]
            return DemonstrationSource(demonstrations, module, self.demonstrations.fingerprint, self._pinned_groups)
        arguments = self.sampler, module, data, self.group_size, self.sampling, self._pinned_groups
        if self.staleness:
            limit = self.safeguards.max_group_seconds
            return QueueSource(*arguments, staleness=self.staleness, max_group_seconds=limit)
        return SyncSource(*arguments)

    def replay_source(self, trainer: Trainer, module: RLVRModule, data: PromptDataModule) -> ReplaySource:
        """Return a source of the recorded rollouts, if the record fits this run."""
        # absolute, because a reward may change the current directory
        run_folder = expanded(str(self.replay.rollouts_from)).absolute()
        if run_folder.resolve() == Path(trainer.default_root_dir).resolve():
            raise UserError(
                f"rollout.replay.rollouts_from: it is this run's own folder; set another {run_folder_option()}"
            )
        source = ReplaySource(Record(run_folder), module, data, self.sampling, self.mask_truncated)
        source.check(self._replay_settings(trainer, data), begins(self.environment))
        return source

    def _replay_settings(self, trainer: Trainer, data: PromptDataModule) -> dict[str, Any]:
        return replay_settings(trainer.world_size, self.group_size, data, self.sampling, self.mask_truncated)

    @property
    def teacher_versions(self) -> dict[str, str]:
        """The versions of the teachers' weights when the run was started; {} on other processes than the first."""
        weights: dict[str, str] = self._provenance["weights"]
        versions = {}
        for name, version in weights.items():
            if name.startswith("teacher"):
                versions[name] = version
        return versions

    def _start_engine(self, trainer: Trainer, module: RLVRModule) -> None:
        """Start the engine, unless it runs."""
        if self.synced_engine.started:
            return
        self.sampler.start(engine_context(self, trainer, module), module.policy, module.data)
        self.source.ban(module.policy.placeholder_ids)

    # ---- checkpoints --------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        if self.source is None:
            return {}
        return self.source.state_dict() | {"provenance": self._provenance}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict.keys() != {"provenance"}:  # a replay leaves no state to a source that samples
            self.source.load_state_dict(state_dict)
        warn_of_changes(state_dict.get("provenance", {}), self._provenance)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.close()

    def close(self) -> None:
        """Close the engine and the reward workers."""
        if self.source is not None:
            self.source.close()
        if self.sampler is not None:
            self.sampler.close()
        self.demonstrations.close()
        for reward in self.rewards:
            reward.close()
        shared_pool().close()


def rollout_of(trainer: Trainer) -> RolloutCallback:
    """Return the trainer's rollout callback."""
    return next(c for c in trainer.callbacks if isinstance(c, RolloutCallback))  # type: ignore[attr-defined]
