"""The first half of the loop, from prompts to scored groups: `RolloutCallback.collect` asks a `RolloutSource`.

The second half, from scored groups to optimizer steps, is `RLVRModule.training_step` in `training/module.py`, whose
docstring maps both halves.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_rlvr.common.launch import is_first_process
from lit_rlvr.common.seeds import run_seed
from lit_rlvr.common.settings import init_arguments, with_class_defaults
from lit_rlvr.distributed.checkpoints import user_code, warn_of_changes
from lit_rlvr.engines import resolve_engine
from lit_rlvr.engines.base import EngineContext, RolloutEngine, most_images
from lit_rlvr.engines.synced import Safeguards, SyncedEngine
from lit_rlvr.environments import Environment, as_environment
from lit_rlvr.environments.base import rewards_with
from lit_rlvr.errors import MAX_SIZE, ChecksArguments, UserError, check_all, check_within, option_group, refuse_all
from lit_rlvr.policy.precision import compute_dtype
from lit_rlvr.rewards import FunctionReward, Reward, shared_pool
from lit_rlvr.rewards.base import NoReward, check_prefills, say_where
from lit_rlvr.rewards.combine import logged_metrics
from lit_rlvr.rewards.references import (
    LongAnswers,
    check_references,
    long_answers,
    warn_of_gold_answers,
    warn_of_other_lengths,
)
from lit_rlvr.rollout.assemble import rollout_metrics
from lit_rlvr.rollout.episodes import begins, check_turns, turn_metrics
from lit_rlvr.rollout.generate import GroupSampler, completion_seeds
from lit_rlvr.rollout.limits import (
    LengthRequirement,
    check_lengths,
    check_routes,
    check_sizes,
    length_requirements,
    log_sizes,
)
from lit_rlvr.rollout.queue import QueueSource
from lit_rlvr.rollout.record import Record, Replay, ReplaySource, replay_terms
from lit_rlvr.rollout.source import RolloutSource, SyncSource
from lit_rlvr.training.module import RLVRModule
from lit_rlvr.training.optimizer import unallocated, updates_of
from lit_rlvr.training.teachers import teacher_folder
from lit_rlvr.types import EvalSampling, PromptBatch, Rollout, Sample, Sampling

if TYPE_CHECKING:
    from lit_rlvr.datamodules import PromptDataModule
    from lit_rlvr.rollout.demonstrations import Demonstrations


_log = logging.getLogger("lit_rlvr")


@option_group("rollout.evaluation")
@dataclass(frozen=True)
class Evaluation:
    """The number of completions for each prompt in validation, and how they are sampled.

    Args:
        sampling: how they are sampled; max_tokens is training's by default. From Python, a `Sampling` is taken as it
            is.
        samples: completions per prompt, for all sets or by the name of the set (others get 1); if above 1, pass@k is
            reported for k up to this number; 0 = none: `SFT` then measures its loss alone.
        greedy: also answer each prompt once without sampling, as `val/<set>/greedy`: next to the cost of many samples
            it is free.
    """

    sampling: EvalSampling = EvalSampling()  # noqa: RUF009  # frozen
    samples: int | dict[str, int] = 1
    greedy: bool = False


class RolloutCallback(ChecksArguments, Callback):
    """Fills each prompt batch with a rollout before the algorithm sees it.

    Args:
        group_size: completions sampled per prompt, G; `SFT` samples none to train on.
        engine: the engine that generates: `auto` (vLLM if installed, else hf), `hf`, `vllm`, or a class_path.
        sampling: how training completions are sampled.
        evaluation: how many completions validation samples, and how.
        validate_every_rollouts: validate after every so many rollouts; `trainer.max_steps` counts optimizer steps, of
            which a rollout has several with `updates_per_rollout`. null: after each pass over the training prompts.
        rewards: the rewards that score a completion, from Python also functions; the training reward is their weighted
            sum. Default: that of the environment, else MathAnswer. [] = none but the environment's, for `model.teacher`
            or `SFT`: without any, rows need no answers.
        environment: what answers the model between its turns (`sampling.max_turns` of them at most): an `Environment`;
            the dotted path of a class whose public methods are tools, or of a function that returns such an object; or
            several such paths by the names in the data's column `environment`.
        mask_truncated: mask completions that were cut off at max_tokens out of the loss (DAPO's overlong filtering);
            their rewards still count in their group's statistics.
        staleness: above 0, groups are generated all the time, and an iteration trains on the first that finish; none of
            their tokens was sampled by weights more than this number of iterations old, for which the importance
            correction compensates. Needs an engine with its own weights (vLLM), and on a GPU, or above 1, one that
            generates elsewhere (VLLMServerEngine).
        safeguards: what the run checks, and how many failures it survives.
        replay: the record of the rollouts, or the run whose record this one trains on.
        replay_routes: in a mixture of experts, train each token with the experts that it used in the engine (R3, arXiv
            2510.11370); else rounding sends some tokens to others. For the Hugging Face engine, and vLLM on a GPU.
        deterministic: on a GPU, use vLLM's batch-invariant kernels and torch's deterministic ones: slower, and repeated
            runs agree; an operation without one ends the run. No effect on a CPU.
    """

    config_key = "rollout"

    def __init__(
        self,
        group_size: int = 8,
        engine: RolloutEngine | str = "auto",
        sampling: Sampling = Sampling(),  # noqa: B008  # frozen
        evaluation: Evaluation = Evaluation(),
        validate_every_rollouts: int | None = None,
        rewards: list[Reward | str | Callable[..., Any]] | None = None,
        environment: Environment | str | dict[str, str] | None = None,
        mask_truncated: bool = False,
        staleness: int = 0,
        safeguards: Safeguards = Safeguards(),  # noqa: B008
        replay: Replay = Replay(),  # noqa: B008
        replay_routes: bool = False,
        deterministic: bool = False,
    ) -> None:
        if rewards is not None:
            rewards = [one if isinstance(one, Reward | str) else FunctionReward(one) for one in rewards]
        groups = with_class_defaults(type(self), evaluation=evaluation, safeguards=safeguards, replay=replay)
        self.init_args = init_arguments() | groups
        evaluation, safeguards, replay = groups.values()
        self.group_size = group_size
        self.generator = resolve_engine(engine)
        self.engine = SyncedEngine(self.generator, safeguards)
        self.sampling = sampling
        self.evaluation, self.validate_every_rollouts = evaluation, validate_every_rollouts
        measured = evaluation.sampling
        self.eval_sampling = measured if isinstance(measured, Sampling) else measured.filled_from(sampling)
        self.environment = as_environment(environment)
        if rewards == [] and not (self.environment is not None and self.environment.judges):
            rewards = [NoReward()]
        self.rewards = rewards_with(self.environment, rewards)  # type: ignore[arg-type]  # functions are rewards by now
        self.mask_truncated, self.staleness, self.deterministic = mask_truncated, staleness, deterministic
        self.safeguards, self.replay, self.replay_routes = safeguards, replay, replay_routes
        self.record_gib = (
            float(staleness > 0 and replay.rollouts_from is None) if replay.record is None else replay.record
        )
        self.source: RolloutSource = None  # type: ignore[assignment]  # built in setup, as the sampler
        self.sampler: GroupSampler = None  # type: ignore[assignment]
        self.is_used_up = False  # whether the run has trained on all of `replay.rollouts_from`
        self._record: Record | None = None  # of this run
        self._judges: dict[str, dict[str, Any]] = {}
        self._too_long: list[LongAnswers] | None = None
        self.demonstrations: dict[str, Demonstrations] = {}  # by the name of the set, of a module that has them
        self._demonstrated = ""  # the fingerprint of those to train on
        self.check()

    def check(self) -> None:
        """Refuse invalid and contradictory settings, before anything is loaded.

        Raises:
            UserError: names the setting.
        """
        check_all(
            lambda: check_within("[1, inf)", "rollout", validate_every_rollouts=self.validate_every_rollouts),
            lambda: refuse_all(self._problems()),
            *(
                partial(check_turns, f"rollout.{option}.max_turns", sampling, self.environment)
                for option, sampling in (("sampling", self.sampling), ("evaluation.sampling", self.eval_sampling))
                if option == "sampling" or sampling.max_turns != self.sampling.max_turns  # by default it is the same
            ),
        )

    def _problems(self) -> Iterator[str]:
        """Yield what is wrong with the settings, a line each."""
        samples = self.evaluation.samples
        by_set = samples if isinstance(samples, dict) else {"": samples}
        samples_of = {f"rollout.evaluation.samples{name and f'.{name}'}": count for name, count in by_set.items()}
        for option, count in {"rollout.group_size": self.group_size, **samples_of}.items():
            if count < (0 if option in samples_of else 1):
                yield f"{option}: {count} is not positive"
            if count > MAX_SIZE:
                yield f"{option}: {count} is too large; use at most {MAX_SIZE}"
        for option, count in samples_of.items():
            if count > 1 and self.eval_sampling.temperature == 0:
                yield (
                    f"{option}: more than 1 needs rollout.evaluation.sampling.temperature above 0 "
                    "(greedy decoding gives the same completion every time)"
                )
        if self.sampling.temperature == 0:
            yield "rollout.sampling.temperature: 0 draws the same completion G times; use a positive one"
        if self.evaluation.greedy and self.eval_sampling.temperature == 0:
            yield (
                "rollout.evaluation.greedy: validation is greedy already, rollout.evaluation.sampling.temperature is 0"
            )
        if self.staleness < 0:
            yield f"rollout.staleness: {self.staleness} is below 0, where weights train on what they sampled"

        if self.safeguards.max_group_seconds is not None and not (self.staleness and self.generator.concurrent):
            yield (
                "rollout.safeguards.max_group_seconds: needs rollout.staleness above 0, and servers (VLLMServerEngine)"
            )

    def completions_of(self, module: RLVRModule) -> int:
        """Return the number of completions per prompt that a module trains on."""
        return 1 if module.demonstrates else self.group_size

    def samples_of(self, name: str) -> int:
        """Return the number of completions per prompt of a validation set."""
        samples = self.evaluation.samples
        return samples.get(name, 1) if isinstance(samples, dict) else samples

    # ---- one iteration ------------------------------------------------------------------------------------

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: PromptBatch, batch_idx: int
    ) -> None:
        module: RLVRModule = pl_module  # type: ignore[assignment]
        for reward in self.rewards:
            reward.begin_rollout(module.updates, trainer.max_steps)
        batch.rollout = self.collect(trainer, module, batch)

    def collect(self, trainer: Trainer, module: RLVRModule, batch: PromptBatch) -> Rollout:
        """Return scored groups for a batch of prompts, and log what they are. Collective: call it on every rank."""
        started = time.perf_counter()
        source = self.source
        if source.generates:
            self._start_engine(trainer, module)
        elif self.engine.started:  # a validation has woken it
            self.engine.sleep()
        rollout = source.next(batch)  # sync, sample (generate, score, assemble), sample on, reference, balance
        module.log_dict(source.metrics)
        module.log("time/rollout", time.perf_counter() - started)
        if not source.is_judged:
            return rollout
        metrics = rollout_metrics(rollout, source.generation_seconds, source.extra_completions)
        module.log_dict(metrics)
        rollout.is_unjudged = metrics["reward/status/unjudged"] == 1 and not self.sampler.taught
        if rollout.is_unjudged:
            module.unjudged.add(module.iteration + 1, ", ".join(rollout.parts), int(metrics["rollout/samples"]))
        else:
            module.unjudged.add_judged()
        module.log_dict(logged_metrics(self.rewards))
        if self.sampler.episodes is not None:
            module.log_dict(turn_metrics(rollout))
        return rollout

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        module: RLVRModule = pl_module  # type: ignore[assignment]
        if isinstance(self.source, ReplaySource):
            self.source.begin()
        if self.record_gib:
            data: Any = trainer.datamodule  # type: ignore[attr-defined]
            self._record = Record(Path(trainer.default_root_dir), int(self.record_gib * 2**30))
            terms, versions = self._replay_terms(trainer, data), self.teacher_versions
            self._record.begin(module.iteration, terms, module.policy.model, versions)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: PromptBatch, batch_idx: int
    ) -> None:
        """Record the iteration before its checkpoint is saved."""
        module: RLVRModule = pl_module  # type: ignore[assignment]
        if self._record is not None and batch.rollout is not None:
            self._record.add(module.iteration, batch.rollout, batch.cursor, module.updates - updates_of(module))
        self._stop_after_replay(trainer, module.iteration)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._stop_after_replay(trainer, checkpoint["rlvr"]["iteration"])

    def _stop_after_replay(self, trainer: Trainer, iteration: int) -> None:
        """End the run if it has trained on the whole record."""
        self.is_used_up = isinstance(self.source, ReplaySource) and iteration >= self.source.iterations
        if self.is_used_up and not trainer.should_stop:
            if trainer.is_global_zero:
                _log.warning(
                    "rollout.replay.rollouts_from: the record ends after iteration %d, and so does this run", iteration
                )
            trainer.should_stop = True  # Lightning then validates before it ends the run

    # ---- validation ---------------------------------------------------------------------------------------

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: PromptBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        module: RLVRModule = pl_module  # type: ignore[assignment]
        if module.demonstrates:
            self._demonstrate(trainer, module, batch)
        if not (samples := self.samples_of(batch.name)):
            return
        self._start_engine(trainer, module)
        self.source.wait()
        sampling = self.eval_sampling
        self.engine.sync_weights(module.policy, ("policy", module.updates), batch.prompts, sampling)
        batch.rollout = self._validate(trainer, batch, sampling, samples)
        if self.evaluation.greedy:
            greedy = replace(sampling, temperature=0.0, top_p=1.0, top_k=0)
            batch.greedy = self._validate(trainer, batch, greedy, 1)

    def _demonstrate(self, trainer: Trainer, module: RLVRModule, batch: PromptBatch) -> None:
        """Add the completions that the data hold to a validation batch."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        shown = self.demonstrations[batch.name]
        first = [prompt for prompts in shown.data.prompts.values() for prompt in prompts[:1]]
        prompts = batch.prompts or [data.prepare(first[0])]
        batch.demonstrations = shown.rollout(prompts, module.policy.placeholder_ids)

    def _validate(self, trainer: Trainer, batch: PromptBatch, sampling: Sampling, samples: int) -> Rollout:
        """Sample and score the completions of a validation batch."""
        if not batch.prompts:  # another rank has the last prompts, and gathering sharded weights needs all ranks
            self.engine.generate([], sampling, [])
            return Rollout.unscored([], [], sampling, samples)
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        data = next((other for other in data.validated if other.name == batch.name), data)
        seeds = completion_seeds(batch.prompts, [0] * len(batch), samples, "validation", batch.name)
        return self.sampler.sample(batch.prompts, seeds, sampling, data)

    on_test_batch_start = on_validation_batch_start

    # ---- start and end ------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        module: RLVRModule = pl_module  # type: ignore[assignment]
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        device = trainer.strategy.root_device.type
        if self.deterministic and device == "cuda":
            use_deterministic_kernels()
        module.replays_routes = self.replay_routes and stage == "fit"
        module.most_tokens = self._most_tokens(trainer, module) * module.epochs_per_rollout
        sizes = data.prompts_per_rollout, trainer.world_size, str(trainer.precision), device
        check_all(lambda: self.check_sizes(module, *sizes), lambda: self.check_data(module, data))
        self.log_sizes(module, *sizes, data=data if stage == "fit" else None)
        if stage == "fit":
            module.teachers.connect()
        if stage == "fit" and trainer.is_global_zero:
            say_where(self.rewards)
            if not module.demonstrates:
                warn_of_gold_answers(self.rewards, [prompt.sample for prompt in data.prompts["train"]])
            self.warn_of_long_answers(data)
        self._judges = {  # numbers depend on these, and the settings do not tell them; a resumed run compares
            "code": user_code(),
            "validation": data.validation_hashes() if stage == "fit" else {},
            "threads": {"torch": torch.get_num_threads()} if device == "cpu" else {},
            "weights": module.frozen_versions() if stage == "fit" and trainer.is_global_zero else {},
        }
        self.sampler = GroupSampler(
            self.engine, self.rewards, self.environment, self.safeguards.max_failure_rate, self.mask_truncated,
            self.generator.is_exact(compute_dtype(str(trainer.precision))),
            stage == "fit" and module.teachers.options is not None, Path(trainer.default_root_dir),
        )  # fmt: skip
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        saved = max(getattr(callback, "save_prompts", 0) for callback in callbacks)  # the run folder saves the first
        if stage == "fit" and self.replay.rollouts_from is not None:
            self.source = self.replay_source(trainer, module, data)
            return
        if stage == "fit" and module.demonstrates:
            from lit_rlvr.rollout.demonstrations import DemonstrationSource  # it imports the data sets

            shown = self.demonstrations[data.name]
            self.source = DemonstrationSource(shown, module, self._demonstrated, saved)
            return
        parts = self.sampler, module, data, self.group_size, self.sampling, saved
        self.source = (
            QueueSource(*parts, staleness=self.staleness, max_group_seconds=self.safeguards.max_group_seconds)
            if self.staleness
            else SyncSource(*parts)
        )

    def replay_source(self, trainer: Trainer, module: RLVRModule, data: PromptDataModule) -> ReplaySource:
        """Return a source of the recorded rollouts.

        Raises:
            UserError: the record does not fit this run.
        """
        run = Path(str(self.replay.rollouts_from)).expanduser().absolute()  # a reward may change the current directory
        if run.resolve() == Path(trainer.default_root_dir).resolve():
            raise UserError(
                "rollout.replay.rollouts_from: it is this run's own folder; set another trainer.default_root_dir"
            )
        source = ReplaySource(Record(run), module, data, self.sampling, self.mask_truncated)
        source.check(self._replay_terms(trainer, data), begins(self.environment))
        return source

    def _replay_terms(self, trainer: Trainer, data: PromptDataModule) -> dict[str, Any]:
        return replay_terms(trainer.world_size, self.group_size, data, self.sampling, self.mask_truncated)

    def check_data(self, module: RLVRModule, data: PromptDataModule) -> None:
        """Check the settings against the loaded data and the model's context.

        Raises:
            UserError: names the settings.
        """
        names = [other.name for other in data.validated]
        samples = self.evaluation.samples
        unknown = [name for name in samples if name not in names] if isinstance(samples, dict) else []
        data.use_environment(self.environment, self.judges and not module.demonstrates)
        check_all(
            lambda: refuse_all(
                f"rollout.evaluation.samples: there is no validation set {name!r}; the sets are {', '.join(names)}"
                for name in unknown
            ),
            lambda: self._check_selection(module),
            lambda: self._check_judged(module, data),
            *(partial(check_prefills, self.rewards, d.opening, d.chat.score_prefill) for d in data.validated),
            lambda: self._check_judges_groups(module, data),
            lambda: check_references(self.rewards, self.judged(data)),
            lambda: self.check_demonstrations(module, data),
            lambda: check_lengths(module.model_folder, self._length_requirements(data)),
            lambda: self._check_teachers(module, data),
        )
        refuse_all(str(found) for found in self._long_answers(data) if found.is_hopeless)

    def judged(self, data: PromptDataModule) -> list[Sample]:
        """Return the samples whose completions rewards judge."""
        if not data.demonstrates:
            return data.loaded
        return [
            prompt.sample
            for other in data.validated
            for split, prompts in other.prompts.items()
            if split != "train" and self.samples_of(other.name)
            for prompt in prompts
        ]

    def check_demonstrations(self, module: RLVRModule, data: PromptDataModule) -> None:
        """Refuse rows without a completion to train on, and settings that only a module with such rows can have."""
        if not module.demonstrates:
            unmeasured = [other.name for other in data.validated if not self.samples_of(other.name)]
            refuse_all(
                f"rollout.evaluation.samples: 0 for {name} measures the loss alone, which only SFT has; give 1 or more"
                for name in unmeasured
            )
            return
        if self.staleness or self.replay.rollouts_from or self.replay.record or self.replay_routes:
            raise UserError(
                "rollout: SFT samples nothing to train on, so staleness, replay.rollouts_from, replay.record and "
                "replay_routes do not apply; leave them out"
            )
        if self.demonstrations:
            return
        from lit_rlvr.datamodules.reading.rows import abbreviate
        from lit_rlvr.rollout.demonstrations import Demonstrations

        env = self.environment
        unanswered = [sample.source or sample.id for sample in self.judged(data) if not sample.answer]
        if unanswered and self.judges and not (env is not None and (env.judges or env.reward_functions)):
            raise UserError(
                f"rollout.evaluation.samples: rewards judge validation, and {len(unanswered)} of its rows have no "
                f"answer ({abbreviate(unanswered)}); name its column (data.columns), or set 0 to validate by the loss"
            )
        for other in data.validated:
            shown = Demonstrations(
                other, module.target, "model.target", module.model_folder, self.environment, self.sampling
            )
            found = [shown.check(prompts) for prompts in other.prompts.values()]
            self._demonstrated = self._demonstrated or found[0]
            self.demonstrations[other.name] = shown

    def _check_teachers(self, module: RLVRModule, data: PromptDataModule) -> None:
        """Refuse rows that a teacher cannot score, and prompts that leave no room for completions in its context."""
        asked = module.teachers.check(data, self.sampling)
        if asked and module.teachers.options is not None:
            if module.teachers.options.prompt is not None and begins(self.environment):
                raise UserError(
                    "model.teacher.prompt: a teacher with a prompt of its own would not see what rollout.environment "
                    "says first; leave one of them out"
                )
            option, room = "rollout.sampling.max_tokens", self.sampling.max_completion_tokens
            needed = LengthRequirement("model.teacher", asked, room, option, "what its prompts show")
            own = [] if module.teachers.options.model else [module.model_folder]
            for folder in own or map(teacher_folder, module.teachers.options.folders):
                check_lengths(folder, [needed])

    def warn_of_long_answers(self, data: PromptDataModule) -> None:
        """Warn of gold answers that are longer than a completion can be, and of rewards for other lengths."""
        if not data.demonstrates:
            warn_of_other_lengths(self.rewards, self.sampling.max_completion_tokens)
        for found in self._long_answers(data):
            _log.warning("%s", found)

    def _long_answers(self, data: PromptDataModule) -> list[LongAnswers]:
        """Return what is too long for training, and for validation if its limit is another; try the rewards once."""
        if data.demonstrates:  # their lengths are known
            return []
        if self._too_long is None:
            limits = {"train": ("sampling", self.sampling), "validation": ("evaluation.sampling", self.eval_sampling)}
            found = [
                long_answers(
                    self.rewards,
                    data.prompts.get(split, ()),
                    data.tokenizer,
                    sampling,
                    f"rollout.{key}.max_tokens",
                )
                for split, (key, sampling) in limits.items()
                if split == "train" or sampling.max_tokens != self.sampling.max_tokens
            ]
            self._too_long = [one for one in found if one is not None]
        return self._too_long

    @property
    def teacher_versions(self) -> dict[str, str]:
        """The versions of the teachers' weights when the run was started; {} on other processes than the first."""
        weights: dict[str, str] = self._judges.get("weights", {})
        return {name: version for name, version in weights.items() if name.startswith("teacher")}

    @property
    def judges(self) -> bool:
        """Whether the run has a reward; `rewards: []` becomes one `NoReward`."""
        return not all(isinstance(reward, NoReward) for reward in self.rewards)

    def _check_judged(self, module: RLVRModule, data: PromptDataModule) -> None:
        """Refuse what needs rewards if there are none."""
        if self.judges:
            return
        if module.teachers.options is None and not module.demonstrates:
            raise UserError("rollout.rewards is empty: give at least one reward, or a model.teacher to learn from")
        needing = {
            "model.dynamic_sampling, or the advantage's min_valid_fraction": module.selection.least,
            "model.kl.in_reward": module.kl.in_reward,
            "model.loss.positive_nll_coef": module.loss_options.positive_nll_coef,
        }
        refuse_all(f"{option}: it needs rewards, and rollout.rewards is empty; leave it out, or set it to false or 0"
                   for option, needs in needing.items() if needs)  # fmt: skip
        refuse_all(
            f"rollout.rewards is empty, so nothing tells whether an answer to a prompt of {other.name} {split} is "
            "right; give a reward, or leave this set out"
            for other in data.validated
            for split, prompts in other.prompts.items()
            if split != "train" and prompts and self.samples_of(other.name)
        )

    def _check_selection(self, module: RLVRModule) -> None:
        names = [reward.name for reward in self.rewards]
        if (by := module.selection.by) not in ("reward", "correct", *names):
            raise UserError(
                f"model.dynamic_sampling: there is no reward {by!r}; give reward, correct, false, or the name of a "
                f"reward: {', '.join(names)}"
            )

    def _check_judges_groups(self, module: RLVRModule, data: PromptDataModule) -> None:
        late = [reward.name for reward in self.rewards if reward.whole_rollout]
        if self.staleness and late and module.selection.wanted(data.prompts_per_rollout):
            raise UserError(
                f"rollout.staleness: reward {late[0]} judges whole rollouts, but dynamic sampling has to know single "
                "groups before; turn one of them off"
            )

    def check_sizes(
        self, module: RLVRModule, prompts: int, ranks: int, precision: str = "32-true", device: str = "cpu"
    ) -> None:
        """Refuse sizes that contradict each other."""
        check_sizes(
            module, self.generator, self.sampling, self.completions_of(module),
            0 if self.replay.rollouts_from else self.staleness, prompts, ranks, precision, device,
        )  # fmt: skip
        if self.replay_routes:
            check_routes(module, self.generator, self.sampling, device)

    def log_sizes(
        self, module: RLVRModule, prompts: int, ranks: int, precision: str = "32-true", device: str = "cpu",
        data: PromptDataModule | None = None,
    ) -> None:  # fmt: skip
        """Log the derived sizes, and warn of slow ones."""
        trained = [] if data is None else self._length_requirements(data)[:1]  # the training prompts come first
        longest = max((requirement.max_sequence_tokens for requirement in trained), default=0)
        log_sizes(module, self.generator, self.completions_of(module), prompts, ranks, precision, device, longest)

    def _start_engine(self, trainer: Trainer, module: RLVRModule) -> None:
        """Start the engine, unless it runs."""
        if self.engine.started:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        self.sampler.start(self._context(trainer, module), module.policy, data)
        self.source.sampling, self.eval_sampling = (
            sampling.with_banned(module.policy.placeholder_ids) for sampling in (self.sampling, self.eval_sampling)
        )

    def _context(self, trainer: Trainer, module: RLVRModule) -> EngineContext:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        sets = self._length_requirements(data)
        images = most_images(prompt for requirement in sets for prompt in requirement.prompts)
        turns = max(self.sampling.max_turns, self.eval_sampling.max_turns)  # an image may follow each but the last
        sees = module.policy.family is None or any(images.values()) or self.environment is not None
        if not (sees or module.freeze_vision or module.lora):
            _log.info("no prompt has an image; model.freeze_vision: true spares the vision tower's memory and syncs")
        return EngineContext(
            folder=module.model_folder,
            policy=module.policy,
            tokenizer=module.tokenizer,
            max_tokens=max(requirement.max_sequence_tokens for requirement in sets),
            max_sequences=max(
                data.prompts_per_rollout * self.completions_of(module) // trainer.world_size,
                *(
                    other.evaluation.prompts_per_batch * self.samples_of(other.name) // trainer.world_size
                    for other in data.validated
                ),
            ),
            seed=run_seed(),
            dtype=compute_dtype(str(trainer.precision)),
            max_images=images["max_images"] + (0 if self.environment is None else turns - 1),
            max_videos=images["max_videos"],
            deterministic=self.deterministic,
            reserved=sum(unallocated(optimizer, module.policy.device) for optimizer in trainer.optimizers),
            tokens=self._most_tokens(trainer, module),
            run=Path(trainer.default_root_dir),
            streams=self.staleness > 0,
        )

    def _most_tokens(self, trainer: Trainer, module: RLVRModule) -> int:
        """Return the most tokens that the run samples; 0 = its steps are not bounded."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        sequences = data.prompts_per_rollout * self.completions_of(module)
        return max(0, math.ceil(trainer.max_steps / updates_of(module))) * sequences * self.sampling.max_tokens

    def _length_requirements(self, data: Any) -> list[LengthRequirement]:
        return length_requirements(data, self.sampling, self.eval_sampling, begins(self.environment))

    def state_dict(self) -> dict[str, Any]:
        return {} if self.source is None else self.source.state_dict() | {"judges": self._judges}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict.keys() != {"judges"}:  # a replay leaves no state to a source that samples
            self.source.load_state_dict(state_dict)
        kinds = {
            "code": "code of your own",
            "validation": "validation data",
            "weights": "weights that it does not train",
        }
        for kind, what in kinds.items():
            warn_of_changes(state_dict.get("judges", {}).get(kind, {}), self._judges[kind], what)
        then, now = (judges.get("threads", {}) for judges in (state_dict.get("judges", {}), self._judges))
        if then and now and then != now and is_first_process():
            _log.warning(
                "resumed with a different number of torch's threads: %d -> %d; sums are rounded in another order, so "
                "weights may differ in their last bits; OMP_NUM_THREADS=%d keeps them",
                then["torch"], now["torch"], then["torch"],
            )  # fmt: skip

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
        for shown in self.demonstrations.values():
            shown.close()
        for reward in self.rewards:
            reward.close()
        shared_pool().close()


def rollout_of(trainer: Trainer) -> RolloutCallback:
    """Return the trainer's rollout callback."""
    return next(c for c in trainer.callbacks if isinstance(c, RolloutCallback))  # type: ignore[attr-defined]


def use_deterministic_kernels() -> None:
    """Enable deterministic CUDA kernels; call it before the first matrix product.

    cuBLAS reads its variables once, so they are those of vLLM's batch-invariant mode, which sets them when it starts.
    An operation without a deterministic kernel raises: told to warn instead, torch leaves the backward pass of flash
    attention nondeterministic.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    os.environ.setdefault("CUBLASLT_WORKSPACE_SIZE", "1")
    torch.use_deterministic_algorithms(True)
    deterministic: Any = torch.utils.deterministic
    deterministic.fill_uninitialized_memory = False  # every `empty` would be written for nothing
