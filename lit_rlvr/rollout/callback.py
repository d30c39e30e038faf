"""From prompts to scored groups: sync the weights, generate, score. The first half of the flow.

The second half, from a rollout to an optimizer step, is `algorithms/base.py`.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_rlvr.algorithms.sizes import check_sizes
from lit_rlvr.distributed import gather_objects, world_size
from lit_rlvr.errors import UserError
from lit_rlvr.rewards import MathAnswer, Reward, as_rewards, shared_pool
from lit_rlvr.rewards.combine import Scores, score_rollout
from lit_rlvr.rollout.ahead import Ahead
from lit_rlvr.rollout.assemble import all_live_groups, assemble, count_repeats, join, number_groups, rollout_metrics
from lit_rlvr.rollout.engine import EngineContext, RolloutEngine, resolve_engine
from lit_rlvr.rollout.failures import stop_on_failures
from lit_rlvr.rollout.generate import sample_and_score
from lit_rlvr.rollout.probe import check_engine
from lit_rlvr.rollout.reference import ReferenceRollouts
from lit_rlvr.rollout.restart import RestartingEngine
from lit_rlvr.seeds import derive_seed, run_seed
from lit_rlvr.types import Completion, Prompt, PromptBatch, Rollout, Sampling

if TYPE_CHECKING:
    from lit_rlvr.algorithms.base import RLVRModule
    from lit_rlvr.policy import Policy

_log = logging.getLogger("lit_rlvr")


class RolloutCallback(Callback):
    """Fills each prompt batch with a rollout before the algorithm sees it.

    Args:
        group_size: completions per prompt, G.
        engine: what generates: `auto` (vLLM when installed), `hf`, `vllm`, or a class_path.
        sampling: how training completions are drawn.
        eval_sampling: how validation completions are drawn.
        eval_samples: completions per validation prompt; above 1, pass@k is reported up to it.
        rewards: what scores a completion; the training reward is their weighted sum. Default: MathAnswer.
        probe_every: compare the engine's log-probabilities with the trainer's after the first weight sync and
            every this many; 0 = after the first only.
        mask_truncated: keep completions that were cut off at max_tokens out of the loss (DAPO's overlong filtering);
            their rewards still count in their group's statistics.
        overlap: generate the next rollout while this one is trained on, with weights one iteration older, for which
            the importance correction makes up. Needs an engine with weights of its own (vLLM).
        max_failure_rate: share of completions whose reward may fail by the checker's own fault (they are
            masked out of the loss); above it the run stops and saves the examples.
        max_engine_restarts: an engine that crashes is started anew, with the same weights and batch, so many times in a
            row at most.
    """

    def __init__(
        self,
        group_size: int = 8,
        engine: RolloutEngine | str = "auto",
        sampling: Sampling = Sampling(),  # noqa: B008  # frozen
        eval_sampling: Sampling = Sampling(temperature=0.0),  # noqa: B008
        eval_samples: int = 1,
        rewards: list[Reward | str] | None = None,
        probe_every: int = 10,
        mask_truncated: bool = False,
        overlap: bool = False,
        max_failure_rate: float = 0.05,
        max_engine_restarts: int = 3,
    ) -> None:
        self.group_size = group_size
        self.engine = RestartingEngine(resolve_engine(engine), max_engine_restarts)
        self.sampling = sampling
        self.eval_sampling = eval_sampling
        self.eval_samples = eval_samples
        self.rewards = as_rewards(rewards or [MathAnswer()])
        self.probe_every = probe_every
        self.mask_truncated, self.overlap = mask_truncated, overlap
        self.max_failure_rate = max_failure_rate
        self._started = False
        self._synced_version = -1  # the version of the weights that the engine holds; -1 = others
        self._syncs = 0
        self._reference = ReferenceRollouts(self)
        self._beside: list[list[Completion]] = []  # this iteration's completions of other weights
        self._ahead = Ahead()
        self.check()

    def check(self) -> None:
        """Refuse settings that contradict each other, before anything is loaded."""
        if self.group_size < 1:
            raise UserError(f"rollout.group_size: {self.group_size} is not positive")
        if self.sampling.temperature == 0:
            raise UserError("rollout.sampling.temperature: 0 draws G times the same completion; use a positive one")
        if self.eval_samples < 1:
            raise UserError(f"rollout.eval_samples: {self.eval_samples} is not positive")
        if self.eval_samples > 1 and self.eval_sampling.temperature == 0:
            raise UserError(
                "rollout.eval_samples: more than 1 needs rollout.eval_sampling.temperature above 0 "
                "(greedy decoding gives the same completion every time)"
            )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        module: RLVRModule = pl_module  # type: ignore[assignment]
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        module.eval_samples = self.eval_samples
        check_sizes(module, self, data.prompts_per_step, trainer.world_size, str(trainer.precision))

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: PromptBatch, batch_idx: int
    ) -> None:
        module: RLVRModule = pl_module  # type: ignore[assignment]
        started = time.perf_counter()
        self._beside = []
        self._ahead.wait()
        waited = time.perf_counter() - started
        seconds = Counter({"sync": self._sync(trainer, module, batch.prompts)})
        if self.overlap:
            seconds.update({"wait": waited})
        repeats = count_repeats(batch.prompts, [])
        rollout, spent = self._train_rollout(trainer, module, batch.prompts, repeats)
        seconds.update(spent)
        wanted, rounds, live = module.wanted_groups(len(batch) * world_size()), 1, all_live_groups(rollout)
        while rounds < module.max_sampling_rounds and sum(map(len, live)) < wanted:
            next_batch = trainer.datamodule.train_dataloader().take(batch.cursor)  # type: ignore[attr-defined]
            batch.cursor = next_batch.cursor
            again = count_repeats(next_batch.prompts, rollout.prompts)
            more, spent = self._train_rollout(trainer, module, next_batch.prompts, again)
            rollout, repeats = join(rollout, more), repeats + again
            live = all_live_groups(rollout)
            seconds.update(spent)
            rounds += 1
        if wanted:
            if module.drops_groups:
                rollout.kept = number_groups(live, len(batch), len(batch) * world_size())
            counts = {"rollout/sampling_rounds": float(rounds), "rollout/live_groups": float(sum(map(len, live)))}
            module.log_dict(counts)
        if module.advantage.needs_reference:
            rollout.reference_rewards, spent = self._reference.rewards(trainer, module, rollout.prompts, repeats)
            seconds.update(spent)
        batch.rollout = rollout
        if self.overlap:
            self._start_next(trainer, module, batch)
        elif self.engine.rest():
            self._synced_version = -1
        module.log_dict({f"time/{name}": value for name, value in seconds.items()})
        module.log("time/rollout", time.perf_counter() - started)
        module.log_dict(rollout_metrics(rollout, seconds["generate"], self._beside))

    def _train_rollout(
        self, trainer: Trainer, module: RLVRModule, prompts: list[Prompt], repeats: list[int]
    ) -> tuple[Rollout, dict[str, float]]:
        """One round of G completions per prompt; all ranks take part."""
        seeds = self.seeds(prompts, repeats, self.group_size, "rollout", module.iteration)
        return self.roll_out(trainer, prompts, self.sampling, seeds, together=True, ready=self._ahead.take(prompts))

    def _start_next(self, trainer: Trainer, module: RLVRModule, batch: PromptBatch) -> None:
        """Generate for the batch after this one, with the seeds that it will have."""
        prompts = trainer.datamodule.train_dataloader().take(batch.cursor).prompts  # type: ignore[attr-defined]
        repeats = count_repeats(prompts, [])
        seeds = self.seeds(prompts, repeats, self.group_size, "rollout", module.iteration + 1)
        self._ahead.start(self.engine.engine, prompts, self.sampling, seeds)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: PromptBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        module: RLVRModule = pl_module  # type: ignore[assignment]
        self._ahead.wait()
        self._sync(trainer, module, batch.prompts)
        seeds = self.seeds(batch.prompts, [0] * len(batch), self.eval_samples, "validation", batch.name)
        if batch.prompts:
            batch.rollout, _ = self.roll_out(trainer, batch.prompts, self.eval_sampling, seeds)
        else:  # another rank has the last ones, and gathers sharded weights with this one's help
            self.engine.generate([], self.eval_sampling, [])

    on_test_batch_start = on_validation_batch_start

    def generate_with(self, policy: Policy, prompts: list[Prompt], seeds: list[list[int]]) -> list[list[Completion]]:
        """Completions of other weights than the trained ones, with the training's sampling."""
        self._bring(policy)
        self._synced_version = -1  # the next iteration brings the trained weights back
        completions = self.engine.generate(prompts, self.sampling, seeds)
        self._beside += completions
        return completions

    def state_dict(self) -> dict[str, Any]:
        return {"reference": self._reference.state_dict(), "ahead": self._ahead.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._reference.load_state_dict(state_dict["reference"])
        self._ahead.load_state_dict(state_dict["ahead"])

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.close()

    def close(self) -> None:
        """Give back the engine's memory and the reward workers."""
        if self._started:
            self._ahead.wait()
            self.engine.close()
        for reward in self.rewards:
            reward.close()
        shared_pool().close()
        self._started, self._synced_version = False, -1

    def roll_out(
        self,
        trainer: Trainer,
        prompts: list[Prompt],
        sampling: Sampling,
        seeds: list[list[int]],
        together: bool = False,
        ready: list[list[Completion]] | None = None,
    ) -> tuple[Rollout, dict[str, float]]:
        """One scored completion per seed, and the seconds of generation and of scoring after it."""
        completions, scores, seconds = sample_and_score(self.engine, self.rewards, prompts, sampling, seeds, ready)
        self._stop_on_failures(trainer, prompts, completions, scores, together)
        return assemble(prompts, completions, scores, sampling, self.mask_truncated), seconds

    def score(self, trainer: Trainer, prompts: list[Prompt], completions: list[list[Completion]]) -> Scores:
        """Score completions that are all there."""
        scores = score_rollout(self.rewards, completions, [p.sample for p in prompts])
        self._stop_on_failures(trainer, prompts, completions, scores, together=False)
        return scores

    def _stop_on_failures(
        self, trainer: Trainer, prompts: list[Prompt], completions: list[list[Completion]], scores: Scores,
        together: bool,
    ) -> None:  # fmt: skip
        """Too many failed checks end the run, counted over all ranks where these are `together`."""
        root = Path(trainer.default_root_dir)
        stop_on_failures(prompts, completions, scores, self.max_failure_rate, root, together)

    @staticmethod
    def seeds(prompts: list[Prompt], repeats: list[int], count: int, *use: int | str) -> list[list[int]]:
        """Each completion's own seed, from (run seed, use, prompt id, sample index). A prompt's k-th repeat in an
        iteration goes on counting its samples. Validation draws with the same seeds every time."""
        return [
            [derive_seed(run_seed(), *use, prompt.sample.id, repeat * count + g) for g in range(count)]
            for prompt, repeat in zip(prompts, repeats, strict=True)
        ]

    def _sync(self, trainer: Trainer, module: RLVRModule, prompts: list[Prompt]) -> float:
        """Bring the engine's weights up to date (seconds it took); start it first if need be, and probe it."""
        if not self._started:
            self.engine.start(self._context(trainer, module))
            self.sampling, self.eval_sampling = (
                sampling.with_banned(module.policy.placeholder_ids) for sampling in (self.sampling, self.eval_sampling)
            )
            self._started = True
        started = time.perf_counter()
        if self._synced_version != module.updates:
            self._bring(module.policy)
            self._synced_version = module.updates
            self._syncs += 1
            if self._syncs == 1 or (self.probe_every and self._syncs % self.probe_every == 0):
                found = gather_objects(max(prompts, key=lambda p: len(p.token_ids), default=None))
                longest = max((p for p in found if p is not None), key=lambda p: len(p.token_ids))
                sampling = replace(self.sampling, max_tokens=min(16, self.sampling.max_tokens), top_p=1.0, top_k=0)
                check_engine(self.engine, module.policy, longest, sampling, derive_seed(run_seed(), "probe"))
        return time.perf_counter() - started

    def _bring(self, policy: Policy) -> None:
        """Give the engine a policy's weights."""
        self.engine.follow(policy)
        self.engine.sync(policy.named_weights())

    def _context(self, trainer: Trainer, module: RLVRModule) -> EngineContext:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        return EngineContext(
            folder=module.model_folder,
            policy=module.policy,
            tokenizer=module.tokenizer,
            max_tokens=max(
                data.max_prompt_tokens + self.sampling.max_tokens,
                *(other.max_prompt_tokens + self.eval_sampling.max_tokens for other in data.validated),
            ),
            max_sequences=max(
                data.prompts_per_step * self.group_size // trainer.world_size,
                *(other.eval_prompts_per_step * self.eval_samples // trainer.world_size for other in data.validated),
            ),
            seed=run_seed(),
            dtype=torch.bfloat16 if trainer.precision == "bf16-mixed" else torch.float32,
            max_images=max(
                len(prompt.sample.images)
                for other in data.validated
                for split in other.prompts.values()
                for prompt in split
            ),
        )
