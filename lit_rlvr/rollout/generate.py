"""Generates and scores groups of completions: a group is scored while others are still being generated."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lit_rlvr.agents.play import AgentEpisodes
from lit_rlvr.common.seeds import derive_seed, run_seed
from lit_rlvr.common.terminal import progress
from lit_rlvr.distributed.collectives import rank
from lit_rlvr.engines.base import EngineContext, OnGroupStarted
from lit_rlvr.engines.synced import SyncedEngine
from lit_rlvr.engines.turns import OnGroupDone
from lit_rlvr.environments import Agent, Environment
from lit_rlvr.policy.policy import Policy
from lit_rlvr.rewards import Reward
from lit_rlvr.rewards.background import BackgroundScoring
from lit_rlvr.rewards.combine import Scores, score_rollout, stop_on_failures
from lit_rlvr.rollout.assemble import assemble
from lit_rlvr.rollout.episodes import Episodes, between_turns
from lit_rlvr.sampling import Sampling
from lit_rlvr.types import Completion, Prompt, Rollout

if TYPE_CHECKING:
    from lit_rlvr.datamodules import PromptDataModule
    from lit_rlvr.datamodules.reading.between_turns import BetweenTurns


def completion_seeds(prompts: list[Prompt], repeats: list[int], count: int, *use: int | str) -> list[list[int]]:
    """Return each completion's own seed (P lists of `count`), from (run seed, use, prompt id, sample index).

    Validation uses the same seeds every time.

    Args:
        prompts: P prompts.
        repeats: how often each prompt occurred earlier in this iteration; its sample indices continue from there.
        count: completions per prompt.
        use: what the completions are for, such as "rollout" and the iteration.
    """
    seeds = []
    for prompt, repeat in zip(prompts, repeats, strict=True):
        numbers = range(repeat * count, (repeat + 1) * count)
        group_seeds = []
        for number in numbers:
            group_seeds.append(derive_seed(run_seed(), *use, prompt.sample.id, number))
        seeds.append(group_seeds)
    return seeds


class GroupSampler:
    """Samples and scores groups of completions, for training and for validation.

    Args:
        synced_engine: generates; it is started here.
        rewards: score a completion.
        environment: answers the model between its turns; None = a completion is one turn.
        max_failure_rate: the largest share of failed checks, in [0, 1], before the run ends.
        mask_truncated: leave truncated completions out of the loss.
        exact: whether the engine's log-probabilities equal the trainer's.
        has_teacher: whether a teacher scores the completions that are trained on.
        run_folder: the run's folder, for the examples of failed checks.
    """

    def __init__(
        self,
        synced_engine: SyncedEngine,
        rewards: Sequence[Reward],
        environment: Environment | None,
        *,
        max_failure_rate: float,
        mask_truncated: bool,
        exact: bool,
        has_teacher: bool,
        run_folder: Path,
    ) -> None:
        self.synced_engine = synced_engine
        self.rewards = rewards
        self.environment = environment
        self.max_failure_rate = max_failure_rate
        self.run_folder = run_folder
        self.mask_truncated = mask_truncated
        self.exact = exact
        self.has_teacher = has_teacher
        self.episodes: Episodes | None = None
        self.agents: AgentEpisodes | None = None
        self._max_tokens = 0
        self._idle: list[Episodes] = []  # for groups that are generated during training
        self._between: dict[str, BetweenTurns] = {}  # by the name of the data set

    def start(self, context: EngineContext, policy: Policy, data: PromptDataModule) -> None:
        """Start the engine and the workers of the environment."""
        progress.begin("starting the engine")
        self.synced_engine.start(context)
        if isinstance(self.environment, Agent):
            self.agents = AgentEpisodes(
                self.environment,
                policy.eos_token_ids,
                context.folder,
                context.max_tokens,
                self.synced_engine.engine.takes_stop,
                policy.family is not None,
                rank(),
            )
            for other in data.validated:
                self.agents.conversations_of(other)
        elif self.environment is not None:
            between = {}
            for d in data.validated:
                between[d.name] = between_turns(d, policy.eos_token_ids, self.environment)
            self._between = between
            self._max_tokens = context.max_tokens
            self.episodes = Episodes(self.environment, self._between[data.name], context.max_tokens)

    def generate(
        self,
        prompts: list[Prompt],
        seeds: list[list[int]],
        sampling: Sampling,
        data: PromptDataModule,
        version: int | None = None,
    ) -> tuple[Rollout, dict[str, float]]:
        """Return one scored completion per seed, and the seconds that generating, then scoring, and environments took.

        In training, collective: call it on every rank.

        Args:
            prompts: P prompts.
            seeds: P lists of G.
            sampling: how completions are sampled.
            data: the prompts' DataModule.
            version: in training, of the weights that sample; failed checks are then counted over all ranks.
        """
        prompts = self._open_episodes(self.episodes, prompts, seeds, data)
        environment_before = self._environment_seconds
        is_training = version is not None
        started = time.perf_counter()
        with BackgroundScoring(self.rewards) as scoring:

            def done(p: int, group: list[Completion]) -> None:
                if scoring.add(p, prompts[p].for_rewards(group), prompts[p].sample):
                    progress.advance(len(group), sum(completion.length for completion in group))

            progress.begin("generating", total=sum(map(len, seeds)))
            if self.agents is None:
                completions = self.synced_engine.generate(prompts, sampling, seeds, done, self.episodes)
            else:
                generate = self.synced_engine.generate
                prompts, completions = self.agents.play(prompts, sampling, seeds, done, data, generate, is_training)
            generated = time.perf_counter()
            for p, group in enumerate(completions):  # an engine need not report groups before the end
                done(p, group)
            progress.begin("scoring")
            scores = scoring.scores(range(len(seeds)), len(seeds[0]))
        seconds = {"generate": generated - started, "score": time.perf_counter() - generated}
        if self.environment is not None:
            seconds["environment"] = self._environment_seconds - environment_before
        return self.build_rollout(prompts, completions, scores, sampling, version), seconds

    def wait_for_others(self, sampling: Sampling, data: PromptDataModule) -> None:
        """Sample nothing where other ranks still have prompts.

        Collective: call it on the ranks that have none.
        """
        if self.agents is None:
            self.synced_engine.generate([], sampling, [])
        else:
            self.agents.play([], sampling, [], lambda p, group: None, data, self.synced_engine.generate, False)

    def build_rollout(
        self,
        prompts: list[Prompt],
        completions: list[list[Completion]],
        scores: Scores,
        sampling: Sampling,
        version: int | None,
    ) -> Rollout:
        """Return the rollout of some scored groups; end the run if too many checks failed.

        In training, collective: call it on every rank.
        """
        together = version is not None
        stop_on_failures(prompts, completions, scores, self.max_failure_rate, self.run_folder, together=together)
        return assemble(
            prompts,
            completions,
            scores,
            sampling,
            mask_truncated=self.mask_truncated,
            exact=self.exact,
            version=version,
            has_teacher=self.has_teacher,
        )

    def generate_stream(
        self,
        prompts: list[Prompt],
        seeds: list[list[int]],
        sampling: Sampling,
        data: PromptDataModule,
        opened: Callable[[list[Prompt]], None],
        started: OnGroupStarted,
        done: OnGroupDone,
    ) -> None:
        """Generate groups during training; several threads may do so at once. See `RolloutEngine.generate_stream`.

        Args:
            prompts: P prompts.
            seeds: P lists of G.
            sampling: how completions are sampled.
            data: the prompts' DataModule.
            opened: called with the prompts once they have what the environment says first; with agents, whenever the
                tokens with which a group begins are known.
            started: called when a group's first completion starts.
            done: called when a group is complete.
        """
        if self.agents is not None:
            engine = self.synced_engine.engine
            self.agents.play_stream(prompts, sampling, seeds, opened, started, done, data, engine)
            return
        episodes = None
        if self.environment is not None:
            between = self._between[data.name]
            if self._idle:
                episodes = self._idle.pop()
            else:
                episodes = Episodes(self.environment, between, self._max_tokens)
        try:
            prompts = self._open_episodes(episodes, prompts, seeds, data)
            opened(prompts)
            turns = {} if episodes is None else {"turns": episodes}
            self.synced_engine.engine.generate_stream(prompts, sampling, seeds, started, done, **turns)
        finally:
            if episodes is not None:
                self._idle.append(episodes)

    def generate_and_score(
        self, prompts: list[Prompt], seeds: list[list[int]], sampling: Sampling
    ) -> tuple[list[list[Completion]], Scores | None]:
        """Return completions of prompts that `generate` has opened, and their scores; None without prompts."""
        completions = self.synced_engine.generate(prompts, sampling, seeds, turns=self.episodes)
        if not prompts:
            return completions, None
        groups = []
        for prompt, group in zip(prompts, completions, strict=True):
            groups.append(prompt.for_rewards(group))
        scores = score_rollout(self.rewards, groups, [prompt.sample for prompt in prompts])
        stop_on_failures(prompts, completions, scores, self.max_failure_rate, self.run_folder, together=False)
        return completions, scores

    def _open_episodes(
        self, episodes: Episodes | None, prompts: list[Prompt], seeds: list[list[int]], data: PromptDataModule
    ) -> list[Prompt]:
        """Return the prompts with what the environment says first in the episodes."""
        if episodes is None:
            return prompts
        episodes.between = self._between[data.name]
        return episodes.open(prompts, seeds, lambda s: data.prepare(data.encode(s)), data.reading.max_prompt_tokens)

    @property
    def _environment_seconds(self) -> float:
        if self.agents is not None:
            return self.agents.seconds
        if self.episodes is not None:
            return self.episodes.seconds
        return 0.0

    def close(self) -> None:
        """Close the engine and the workers of the environment."""
        if self.synced_engine.started:
            self.synced_engine.close()
        for episodes in [*self._idle, *([] if self.episodes is None else [self.episodes])]:
            episodes.close()
        if self.agents is not None:
            self.agents.close()
            self.agents = None
