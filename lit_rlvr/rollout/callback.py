"""The first half of the loop, from prompts to scored groups, is `RolloutCallback.collect`.

The second half, from scored groups to optimizer steps, is `RLVRModule.training_step` in `training/module.py`, whose
docstring maps both halves.
"""

from __future__ import annotations

import logging
import os
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_rlvr.distributed.collectives import world_size
from lit_rlvr.environments import Environment, as_environment
from lit_rlvr.environments.base import rewards_with
from lit_rlvr.errors import MAX_SIZE, check_all, check_within, refuse_all
from lit_rlvr.policy.precision import compute_dtype
from lit_rlvr.rewards import Reward, shared_pool
from lit_rlvr.rewards.base import say_where
from lit_rlvr.rewards.combine import Scores, logged_metrics, score_rollout, stop_on_failures
from lit_rlvr.rollout.assemble import (
    all_mixed_groups,
    assemble,
    balance,
    count_repeats,
    join,
    number_groups,
    rollout_metrics,
)
from lit_rlvr.rollout.engines import resolve_engine
from lit_rlvr.rollout.engines.base import EngineContext, RolloutEngine
from lit_rlvr.rollout.engines.synced import SyncedEngine
from lit_rlvr.rollout.episodes import Episodes, begins, between_turns, check_turns, turn_metrics
from lit_rlvr.rollout.generate import Prefetch, ReferenceRewards, completion_seeds, sample_and_score
from lit_rlvr.rollout.limits import LengthRequirement, check_lengths, check_sizes, length_requirements, log_sizes
from lit_rlvr.seeds import run_seed
from lit_rlvr.terminal import progress
from lit_rlvr.training.module import RLVRModule
from lit_rlvr.training.optimizer import unallocated, updates_of
from lit_rlvr.types import Completion, EvalSampling, Prompt, PromptBatch, Rollout, Sampling

if TYPE_CHECKING:
    from lit_rlvr.datamodules import PromptDataModule
    from lit_rlvr.datamodules.reading.between_turns import BetweenTurns

_log = logging.getLogger("lit_rlvr")

STAGES = {
    "wait": "waiting for the prefetched rollout",
    "sync": "sending the weights to the engine",
    "reference": "sampling from the reference",
}
"""Timed stage of an iteration -> what it is called while it goes on."""


class RolloutCallback(Callback):
    """Fills each prompt batch with a rollout before the algorithm sees it.

    Args:
        group_size: completions per prompt, G.
        engine: the engine that generates: `auto` (vLLM if installed, else hf), `hf`, `vllm`, or a class_path.
        sampling: how training completions are sampled.
        eval_sampling: how validation completions are sampled; max_tokens is training's by default. From Python, a
            `Sampling` is taken as it is.
        eval_samples: completions per validation prompt, for all sets or by the name of the set (others get 1); if above
            1, pass@k is reported for k up to this number.
        eval_greedy: also answer each validation prompt once without sampling, as `val/<set>/greedy`: next to the cost
            of many samples it is free.
        rewards: the rewards that score a completion; the training reward is their weighted sum. Default: that of the
            environment, else MathAnswer.
        environment: what answers the model between its turns (`sampling.max_turns` of them at most): an `Environment`;
            the dotted path of a class whose public methods are tools, or of a function that returns such an object; or
            several such paths by the names in the data's column `environment`.
        probe_every: compare the engine's log-probabilities with the trainer's after the first weight sync and after
            every `probe_every`-th one; 0 = after the first only.
        mask_truncated: mask completions that were cut off at max_tokens out of the loss (DAPO's overlong filtering);
            their rewards still count in their group's statistics.
        overlap: generate the next rollout while the current one is trained on, with weights one iteration old, for
            which the importance correction compensates. Needs an engine with its own weights (vLLM), and on a GPU one
            that generates elsewhere (VLLMServerEngine).
        max_failure_rate: share of completions whose reward may fail through the checker's own fault (they are masked
            out of the loss); above it the run saves the examples and stops.
        max_engine_restarts: how many times in a row a crashed engine is restarted, with the same weights and batch,
            before the run ends.
        deterministic: on a GPU, use vLLM's batch-invariant kernels and torch's deterministic ones: slower, and repeated
            runs agree as far as these reach; torch warns of each operation without one. No effect on a CPU.
    """

    def __init__(
        self,
        group_size: int = 8,
        engine: RolloutEngine | str = "auto",
        sampling: Sampling = Sampling(),  # noqa: B008  # frozen
        eval_sampling: EvalSampling = EvalSampling(),  # noqa: B008
        eval_samples: int | dict[str, int] = 1,
        eval_greedy: bool = False,
        rewards: list[Reward | str] | None = None,
        environment: Environment | str | dict[str, str] | None = None,
        probe_every: int = 10,
        mask_truncated: bool = False,
        overlap: bool = False,
        max_failure_rate: float = 0.05,
        max_engine_restarts: int = 3,
        deterministic: bool = False,
    ) -> None:
        self.group_size = group_size
        self.generator = resolve_engine(engine)
        self.engine = SyncedEngine(self.generator, max_engine_restarts, probe_every)
        self.sampling = sampling
        self.eval_sampling = (
            eval_sampling if isinstance(eval_sampling, Sampling) else eval_sampling.filled_from(sampling)
        )
        self.eval_samples, self.eval_greedy = eval_samples, eval_greedy
        self.environment = as_environment(environment)
        self.rewards = rewards_with(self.environment, rewards)
        self.mask_truncated, self.overlap = mask_truncated, overlap
        self.max_failure_rate, self.deterministic = max_failure_rate, deterministic
        self._reference = ReferenceRewards(group_size)
        self._reference_completions: list[list[Completion]] = []  # this iteration's completions of the reference
        self._seconds: defaultdict[str, float] = defaultdict(float)  # this iteration's, by stage
        self._episodes: Episodes | None = None
        self._between: dict[str, BetweenTurns] = {}  # by the name of the data set
        self._prefetch = Prefetch()
        self.check()

    def check(self) -> None:
        """Refuse invalid and contradictory settings, before anything is loaded.

        Raises:
            UserError: names the setting.
        """
        check_all(
            lambda: check_within("[0, 1]", "rollout", max_failure_rate=self.max_failure_rate),
            lambda: refuse_all(self._problems()),
            *(
                partial(check_turns, f"rollout.{option}.max_turns", sampling, self.environment)
                for option, sampling in (("sampling", self.sampling), ("eval_sampling", self.eval_sampling))
                if option == "sampling" or sampling.max_turns != self.sampling.max_turns  # by default it is the same
            ),
        )

    def _problems(self) -> Iterator[str]:
        """Yield what is wrong with the settings, a line each."""
        by_set = self.eval_samples if isinstance(self.eval_samples, dict) else {"": self.eval_samples}
        samples_of = {f"rollout.eval_samples{name and f'.{name}'}": samples for name, samples in by_set.items()}
        for option, count in {"rollout.group_size": self.group_size, **samples_of}.items():
            if count < 1:
                yield f"{option}: {count} is not positive"
            if count > MAX_SIZE:
                yield f"{option}: {count} is too large; use at most {MAX_SIZE}"
        for option, samples in samples_of.items():
            if samples > 1 and self.eval_sampling.temperature == 0:
                yield (
                    f"{option}: more than 1 needs rollout.eval_sampling.temperature above 0 "
                    "(greedy decoding gives the same completion every time)"
                )
        if self.sampling.temperature == 0:
            yield "rollout.sampling.temperature: 0 draws the same completion G times; use a positive one"
        if self.eval_greedy and self.eval_sampling.temperature == 0:
            yield "rollout.eval_greedy: validation is greedy already, rollout.eval_sampling.temperature is 0"
        if self.environment is not None and self.overlap:
            yield "rollout.overlap: an environment's turns cannot be generated ahead; turn it off"

    def samples_of(self, name: str) -> int:
        """Return the number of completions per prompt of a validation set."""
        return self.eval_samples.get(name, 1) if isinstance(self.eval_samples, dict) else self.eval_samples

    # ---- one iteration ------------------------------------------------------------------------------------

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: PromptBatch, batch_idx: int
    ) -> None:
        module: RLVRModule = pl_module  # type: ignore[assignment]
        started = time.perf_counter()
        self._seconds, self._reference_completions = defaultdict(float), []
        for reward in self.rewards:
            reward.begin_rollout(module.updates, trainer.max_steps)
        rollout = batch.rollout = self.collect(trainer, module, batch)
        if self.overlap:
            self._start_next(trainer, module, batch)
        else:
            self.engine.sleep()
        module.log_dict({f"time/{name}": value for name, value in self._seconds.items()})
        module.log("time/rollout", time.perf_counter() - started)
        module.log_dict(rollout_metrics(rollout, self._seconds["generate"], self._reference_completions))
        module.log_dict(logged_metrics(self.rewards))
        if self._episodes is not None:
            module.log_dict(turn_metrics(rollout))

    def collect(self, trainer: Trainer, module: RLVRModule, batch: PromptBatch) -> Rollout:
        """Sample and score groups from the current policy for a batch of prompts. Collective: call it on every rank."""
        if self.overlap:
            with self._timed("wait"):
                self._prefetch.wait()
        self._start(trainer, module)
        with self._timed("sync"):
            self.engine.sync_weights(module.policy, ("policy", module.updates), batch.prompts, self.sampling)
        repeats = count_repeats(batch.prompts, [])
        rollout = self._round(trainer, module, batch.prompts, repeats)
        if wanted := module.wanted_groups(len(batch) * world_size()):
            rollout, repeats = self._sample_on(trainer, module, batch, rollout, repeats, wanted)
        if module.advantage.needs_reference:
            with self._timed("reference"):
                sample = partial(self._sample_reference, trainer, module)
                rollout.reference_rewards = self._reference.rewards(module, rollout.prompts, repeats, sample)
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        saved = max(getattr(callback, "save_prompts", 0) for callback in callbacks)  # the run folder saves the first
        cut = module.image_processor.cut if module.policy.placeholder_ids else None
        return balance(rollout, module.updates_per_rollout, module.runs_groups(rollout), saved, cut)

    def _round(self, trainer: Trainer, module: RLVRModule, prompts: list[Prompt], repeats: list[int]) -> Rollout:
        """Sample and score G completions per prompt."""
        seeds = completion_seeds(prompts, repeats, self.group_size, "rollout", module.iteration)
        ready = self._prefetch.take(prompts)
        waited = 0.0 if self._episodes is None else self._episodes.seconds
        prompts = self._opened(trainer, prompts, seeds)
        completions, scores, seconds = sample_and_score(
            self.engine, self.rewards, prompts, self.sampling, seeds, ready, self._episodes
        )
        if self._episodes is not None:
            seconds["environment"] = self._episodes.seconds - waited
        for stage, value in seconds.items():
            self._seconds[stage] += value
        self._stop_on_failures(trainer, prompts, completions, scores, together=True)
        exact = self.generator.is_exact(compute_dtype(str(trainer.precision)))
        return assemble(prompts, completions, scores, self.sampling, self.mask_truncated, exact)

    def _opened(self, trainer: Trainer, prompts: list[Prompt], seeds: list[list[int]], name: str = "") -> list[Prompt]:
        """Add to each prompt of a set what the environment says first."""
        if self._episodes is None:
            return prompts
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        data = next((other for other in data.validated if other.name == name), data)
        self._episodes.between = self._between[data.name]
        return self._episodes.open(prompts, seeds, lambda s: data.prepare(data.encode(s)), data.max_prompt_tokens)

    def _sample_on(
        self, trainer: Trainer, module: RLVRModule, batch: PromptBatch, rollout: Rollout, repeats: list[int],
        wanted: int,
    ) -> tuple[Rollout, list[int]]:  # fmt: skip
        """Dynamic sampling (DAPO, eq. 11): sample further prompts until `wanted` groups have a gradient, or the
        algorithm's `max_sampling_rounds` is reached.

        Returns:
            The rollout of all rounds, and how often each of its prompts occurred earlier in the iteration.
        """
        rounds, live = 1, all_mixed_groups(rollout)
        while rounds < module.max_sampling_rounds and sum(map(len, live)) < wanted:
            next_batch = trainer.datamodule.train_dataloader().take(batch.cursor)  # type: ignore[attr-defined]
            batch.cursor = next_batch.cursor
            again = count_repeats(next_batch.prompts, rollout.prompts)
            rollout = join(rollout, self._round(trainer, module, next_batch.prompts, again))
            repeats, live, rounds = repeats + again, all_mixed_groups(rollout), rounds + 1
        if module.drops_groups:
            rollout.kept = number_groups(live, len(batch), len(batch) * world_size())
        counts = {"rollout/sampling_rounds": float(rounds), "rollout/live_groups": float(sum(map(len, live)))}
        module.log_dict(counts)
        return rollout, repeats

    def _sample_reference(
        self, trainer: Trainer, module: RLVRModule, prompts: list[Prompt], seeds: list[list[int]]
    ) -> Scores | None:
        """Score new completions from the reference, sampled as in training; None without prompts."""
        self.engine.sync_weights(module.reference.policy, ("reference", module.reference.version))
        completions = self.engine.generate(prompts, self.sampling, seeds, turns=self._episodes)
        self._reference_completions += completions
        if not prompts:
            return None
        scores = score_rollout(self.rewards, completions, [p.sample for p in prompts])
        self._stop_on_failures(trainer, prompts, completions, scores, together=False)
        return scores

    def _start_next(self, trainer: Trainer, module: RLVRModule, batch: PromptBatch) -> None:
        """Start generating for the next batch, with the seeds it will have."""
        prompts = trainer.datamodule.train_dataloader().take(batch.cursor).prompts  # type: ignore[attr-defined]
        repeats = count_repeats(prompts, [])
        seeds = completion_seeds(prompts, repeats, self.group_size, "rollout", module.iteration + 1)
        self._prefetch.start(self.engine, prompts, self.sampling, seeds)

    def _stop_on_failures(
        self, trainer: Trainer, prompts: list[Prompt], completions: list[list[Completion]], scores: Scores,
        together: bool,
    ) -> None:  # fmt: skip
        """End the run if too many checks failed, counted over all ranks if `together`."""
        root = Path(trainer.default_root_dir)
        stop_on_failures(prompts, completions, scores, self.max_failure_rate, root, together)

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        progress.begin(STAGES[stage])
        yield
        self._seconds[stage] += time.perf_counter() - started

    # ---- validation ---------------------------------------------------------------------------------------

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: PromptBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        module: RLVRModule = pl_module  # type: ignore[assignment]
        self._prefetch.wait()
        self._start(trainer, module)
        prompts, sampling = batch.prompts, self.eval_sampling
        self.engine.sync_weights(module.policy, ("policy", module.updates), prompts, sampling)
        batch.rollout = self._validate(trainer, batch, sampling, self.samples_of(batch.name))
        if self.eval_greedy:
            batch.greedy = self._validate(trainer, batch, replace(sampling, temperature=0.0, top_p=1.0, top_k=0), 1)

    def _validate(self, trainer: Trainer, batch: PromptBatch, sampling: Sampling, samples: int) -> Rollout:
        """Sample and score the completions of a validation batch."""
        prompts = batch.prompts
        if not prompts:  # another rank has the last prompts, and gathering sharded weights needs all ranks
            self.engine.generate([], sampling, [])
            return Rollout.unscored([], [], sampling, samples)
        seeds = completion_seeds(prompts, [0] * len(batch), samples, "validation", batch.name)
        prompts = self._opened(trainer, prompts, seeds, batch.name)
        completions, scores, _ = sample_and_score(
            self.engine, self.rewards, prompts, sampling, seeds, turns=self._episodes
        )
        self._stop_on_failures(trainer, prompts, completions, scores, together=False)
        return assemble(prompts, completions, scores, sampling)

    on_test_batch_start = on_validation_batch_start

    # ---- start and end ------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        module: RLVRModule = pl_module  # type: ignore[assignment]
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        device = trainer.strategy.root_device.type
        if self.deterministic and device == "cuda":
            use_deterministic_kernels()
        sizes = data.prompts_per_step, trainer.world_size, str(trainer.precision), device
        check_all(lambda: self.check_sizes(module, *sizes), lambda: self.check_data(module, data))
        self.log_sizes(module, *sizes)
        if stage == "fit" and trainer.is_global_zero:
            say_where(self.rewards)

    def check_data(self, module: RLVRModule, data: PromptDataModule) -> None:
        """Check the settings against the loaded data and the model's context.

        Raises:
            UserError: names the settings.
        """
        names = [other.name for other in data.validated]
        unknown = (
            [name for name in self.eval_samples if name not in names] if isinstance(self.eval_samples, dict) else ()
        )
        if self.environment is not None:
            for other in data.validated:
                other.use_environment(self.environment)
        check_all(
            lambda: refuse_all(
                f"rollout.eval_samples: there is no validation set {name!r}; the sets are {', '.join(names)}"
                for name in unknown
            ),
            lambda: check_lengths(module.model_folder, self._length_requirements(data)),
        )

    def check_sizes(
        self, module: RLVRModule, prompts: int, ranks: int, precision: str = "32-true", device: str = "cpu"
    ) -> None:
        """Refuse sizes that contradict each other."""
        check_sizes(
            module, self.generator, self.sampling, self.group_size, self.overlap, prompts, ranks, precision, device
        )

    def log_sizes(
        self, module: RLVRModule, prompts: int, ranks: int, precision: str = "32-true", device: str = "cpu"
    ) -> None:
        """Log the derived sizes, and warn of slow ones."""
        log_sizes(module, self.generator, self.group_size, prompts, ranks, precision, device)

    def _start(self, trainer: Trainer, module: RLVRModule) -> None:
        """Start the engine, on the first call only."""
        if self.engine.started:
            return
        context = self._context(trainer, module)
        progress.begin("starting the engine")
        self.engine.start(context)
        if self.environment is not None:
            data: Any = trainer.datamodule  # type: ignore[attr-defined]
            self._between = {d.name: between_turns(d, module.policy, self.environment) for d in data.validated}
            self._episodes = Episodes(self.environment, self._between[data.name], context.max_tokens)
        self.sampling, self.eval_sampling = (
            sampling.with_banned(module.policy.placeholder_ids) for sampling in (self.sampling, self.eval_sampling)
        )

    def _context(self, trainer: Trainer, module: RLVRModule) -> EngineContext:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        sets = self._length_requirements(data)
        return EngineContext(
            folder=module.model_folder,
            policy=module.policy,
            tokenizer=module.tokenizer,
            max_tokens=max(requirement.reach for requirement in sets),
            max_sequences=max(
                data.prompts_per_step * self.group_size // trainer.world_size,
                *(
                    other.eval_prompts_per_step * self.samples_of(other.name) // trainer.world_size
                    for other in data.validated
                ),
            ),
            seed=run_seed(),
            dtype=compute_dtype(str(trainer.precision)),
            max_images=max(len(prompt.sample.images) for requirement in sets for prompt in requirement.prompts)
            + self._max_observed_images(),
            deterministic=self.deterministic,
            reserved=sum(unallocated(optimizer, module.policy.device) for optimizer in trainer.optimizers),
            tokens=max(0, trainer.max_steps // updates_of(module))
            * data.prompts_per_step
            * self.group_size
            * self.sampling.max_tokens,
        )

    def _max_observed_images(self) -> int:
        """Return the number of images that an environment may show in an episode, one at a time."""
        if self.environment is None:
            return 0
        return max(self.sampling.max_turns, self.eval_sampling.max_turns) - 1

    def _length_requirements(self, data: Any) -> list[LengthRequirement]:
        return length_requirements(data, self.sampling, self.eval_sampling, begins(self.environment))

    def state_dict(self) -> dict[str, Any]:
        return {"reference": self._reference.state_dict(), "ahead": self._prefetch.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._reference.load_state_dict(state_dict["reference"])
        self._prefetch.load_state_dict(state_dict["ahead"])

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.close()

    def close(self) -> None:
        """Close the engine and the reward workers."""
        if self.engine.started:
            self._prefetch.wait()
            self.engine.close()
        if self._episodes is not None:
            self._episodes.close()
        for reward in self.rewards:
            reward.close()
        shared_pool().close()


def rollout_of(trainer: Trainer) -> RolloutCallback:
    """Return the trainer's rollout callback."""
    return next(c for c in trainer.callbacks if isinstance(c, RolloutCallback))  # type: ignore[attr-defined]


def use_deterministic_kernels() -> None:
    """Enable deterministic CUDA kernels; call it before the first matrix product.

    cuBLAS reads its variables once, so they are those of vLLM's batch-invariant mode, which sets them when it starts.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    os.environ.setdefault("CUBLASLT_WORKSPACE_SIZE", "1")
    torch.use_deterministic_algorithms(True, warn_only=True)
    deterministic: Any = torch.utils.deterministic
    deterministic.fill_uninitialized_memory = False  # every `empty` would be written for nothing
