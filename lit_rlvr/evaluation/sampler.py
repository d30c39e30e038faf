"""Samples and judges completions without a trainer, for `evaluate`, `filter` and `tune`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import torch

from lit_rlvr.agents.play import AgentEpisodes
from lit_rlvr.common.seeds import derive_seed, run_seed
from lit_rlvr.engines.base import EngineContext
from lit_rlvr.engines.synced import SyncedEngine
from lit_rlvr.environments import Agent, Environment
from lit_rlvr.errors import UserError
from lit_rlvr.evaluation.processes import Share
from lit_rlvr.policy.loading import load_policy
from lit_rlvr.rewards import Reward, shared_pool
from lit_rlvr.rewards.base import check_prefills
from lit_rlvr.rewards.combine import Scores, score_rollout
from lit_rlvr.rewards.gold_answers import check_references
from lit_rlvr.rollout.episodes import Episodes, between_turns
from lit_rlvr.rollout.preflight.lengths import LengthRequirement, most_images, within_context
from lit_rlvr.sampling import Sampling
from lit_rlvr.types import Completion, Prompt

if TYPE_CHECKING:
    from lit_rlvr.datamodules import PromptDataModule
    from lit_rlvr.datamodules.reading.split import Split

Scored = Callable[[Prompt, list[Completion], Scores], None]


def load_prompts(
    module: Any,
    data: PromptDataModule,
    rewards: Sequence[Reward],
    environment: Environment | None,
    split: Split,
    option: str,
) -> list[Prompt]:
    """Read a set as the model sees it, and check it against the rewards.

    Args:
        module: the model, as in `PromptDataModule.use_model`.
        data: the set's DataModule.
        rewards: rewards that check the reference answers.
        environment: the environment that the prompts belong to, if there is one.
        split: the set.
        option: the option that names the set, for the message.

    Raises:
        UserError: the set is empty, or a reward refuses it.
    """
    data.use_model(module)
    data.use_environment(environment, rewards)
    data.setup("test" if split == "test" else "fit")
    if not data.prompts[split]:
        raise UserError(f"{option}: there is no {split} set")
    check_references(rewards, [prompt.sample for prompt in data.loaded_prompts])
    check_prefills(rewards, data.prompts[split])
    return data.prompts[split]


def start_sampler(
    folder: str,
    engine: SyncedEngine,
    tokenizer: Any,
    dtype: torch.dtype,
    requirements: Sequence[LengthRequirement],
    prepare: Callable[[Prompt], Prompt] = lambda prompt: prompt,
) -> Sampler:
    """Start a model in an engine that can hold the longest sequence of some sets, up to the model's context.

    Args:
        folder: folder of the model.
        engine: the engine.
        tokenizer: the model's tokenizer.
        dtype: the engine's data type.
        requirements: the lengths of each set's prompts and completions.
        prepare: adds the pixels to the prompt with which the engine is checked.

    Raises:
        UserError: a prompt fills the model's context.
    """
    longest = within_context(folder, requirements)
    prompts = [prompt for requirement in requirements for prompt in requirement.prompts]
    check = prepare(max(prompts, key=lambda prompt: len(prompt.token_ids)))
    return Sampler(folder, engine, tokenizer, dtype, longest, most_images(requirements), check)


SEQUENCES = 2048
"""Number of completions that one call of the engine generates; only their images are in memory."""


class Sampler:
    """A sampler of groups of completions, which judges each group as soon as it is complete.

    Args:
        folder: model folder or hub id.
        engine: the engine, which the class starts.
        tokenizer: the model's tokenizer.
        dtype: the engine's data type.
        max_tokens: the longest sequence, prompt and completion together.
        images: the most images and videos in one prompt, from `most_images`.
        check: a prompt for comparing the engine's log-probabilities once with the model's.
    """

    def __init__(
        self,
        folder: str,
        engine: SyncedEngine,
        tokenizer: Any,
        dtype: torch.dtype,
        max_tokens: int,
        images: dict[str, Any],
        check: Prompt,
    ) -> None:
        self.engine = engine
        self._max_tokens = max_tokens
        self.policy = load_policy(folder).requires_grad_(False)
        if engine.engine.shares_weights and torch.cuda.is_available():
            self.policy.to("cuda")
        engine.start(EngineContext(folder, self.policy, tokenizer, max_tokens, 256, run_seed(), dtype, **images))
        self._folder = folder
        self._episodes: dict[int, Episodes] = {}  # by the identity of their environment
        self._agents: dict[int, AgentEpisodes] = {}
        sampling = Sampling(max_tokens=max_tokens - len(check.token_ids)).with_banned(self.policy.placeholder_ids)
        engine.sync_weights(self.policy, "evaluated", [check], sampling)

    def run(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        samples: int,
        rewards: Sequence[Reward],
        use: str,
        data: PromptDataModule,
        on_scored: Scored,
        environment: Environment | None = None,
    ) -> None:
        """Sample completions for the prompts and judge them.

        Args:
            prompts: the prompts.
            sampling: the sampling settings.
            samples: completions per prompt. Each has its own seed, derived from (run seed, `use`, prompt id, number),
                so that no completion depends on the other ones.
            rewards: the rewards that judge the completions.
            use: what the completions are for; part of their seeds.
            data: the prompts' DataModule.
            on_scored: called with each group from a separate thread, one at a time, in any order.
            environment: the environment that answers the model between its turns.

        Raises:
            UserError: a reward failed on every completion of a batch.
        """
        sampling = sampling.with_banned(self.policy.placeholder_ids)
        batch_size = max(1, SEQUENCES // samples)
        episodes = self._episodes_for(environment, data)
        for start in range(0, len(prompts), batch_size):
            batch, seeds = self._prepared(prompts[start : start + batch_size], samples, use, data, episodes)
            self._run(batch, sampling, seeds, rewards, on_scored, episodes, data)

    def play(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        use: str,
        data: PromptDataModule,
        environment: Environment,
    ) -> tuple[list[Prompt], list[list[Completion]]]:
        """Play an episode of each prompt as in training; return the prompts with which the rows begin, and the rows.

        The arguments are those of `run`.
        """
        sampling = sampling.with_banned(self.policy.placeholder_ids)
        episodes = self._episodes_for(environment, data)
        batch, seeds = self._prepared(prompts, 1, use, data, episodes)
        if isinstance(episodes, AgentEpisodes):
            return episodes.play(batch, sampling, seeds, None, data, self.engine.generate, True)
        return batch, self.engine.generate(batch, sampling, seeds, None, episodes)

    def _prepared(
        self,
        prompts: Sequence[Prompt],
        samples: int,
        use: str,
        data: PromptDataModule,
        episodes: Episodes | AgentEpisodes | None,
    ) -> tuple[list[Prompt], list[list[int]]]:
        """Return prompts with which completions begin, and the seeds of these; the arguments are those of `run`."""
        batch = [data.prepare(prompt) for prompt in prompts]
        seeds = []
        for prompt in batch:
            group_seeds = []
            for g in range(samples):
                group_seeds.append(derive_seed(run_seed(), use, prompt.sample.id, g))
            seeds.append(group_seeds)
        if isinstance(episodes, Episodes):
            batch = episodes.open(batch, seeds, lambda s: data.prepare(data.encode(s)), data.reading.max_prompt_tokens)
        return batch, seeds

    def _episodes_for(self, environment: Environment | None, data: PromptDataModule) -> Episodes | AgentEpisodes | None:
        """Return what plays the episodes of an environment for the data's model."""
        if environment is None:
            return None
        if isinstance(environment, Agent):
            share = Share.of_this_process()
            process = 0
            if share is not None:
                process = share.number
            if id(environment) not in self._agents:
                self._agents[id(environment)] = AgentEpisodes(
                    environment,
                    self.policy.eos_token_ids,
                    self._folder,
                    self._max_tokens,
                    self.engine.engine.takes_stop,
                    self.policy.family is not None,
                    process,
                )
            return self._agents[id(environment)]
        between = between_turns(data, self.policy.eos_token_ids, environment)
        if id(environment) not in self._episodes:
            self._episodes[id(environment)] = Episodes(environment, between, self._max_tokens)
        self._episodes[id(environment)].between = between
        return self._episodes[id(environment)]

    def _run(
        self,
        prompts: list[Prompt],
        sampling: Sampling,
        seeds: list[list[int]],
        rewards: Sequence[Reward],
        on_scored: Scored,
        episodes: Episodes | AgentEpisodes | None,
        data: PromptDataModule,
    ) -> None:
        futures: dict[int, Future[Scores]] = {}

        def judge(prompt: Prompt, group: list[Completion]) -> Scores:
            scores = score_rollout(rewards, [prompt.for_rewards(group)], [prompt.sample])
            on_scored(prompt, group, scores)
            return scores

        with ThreadPoolExecutor(1) as thread:

            def done(p: int, group: list[Completion]) -> None:
                futures[p] = futures.get(p) or thread.submit(judge, prompts[p], group)

            if isinstance(episodes, AgentEpisodes):
                _, groups = episodes.play(prompts, sampling, seeds, done, data, self.engine.generate, False)
            else:
                groups = self.engine.generate(prompts, sampling, seeds, done, episodes)
            for p, group in enumerate(groups):
                done(p, group)
        scored = []
        for future in futures.values():
            scored.append(future.result())
        if all(bool(scores.failed.all()) for scores in scored):
            name, reason = next((n, r.detail) for n, r in scored[0].details[0][0].items() if r.status == "error")
            raise UserError(
                f"reward {name!r} failed on all of {sum(scores.failed.numel() for scores in scored)} completions; "
                f"first: {reason}; mend it, and give a new --out"
            )

    def close(self) -> None:
        """Free the engine's memory, and end the workers of rewards and environments."""
        self.engine.close()
        for episodes in self._episodes.values():
            episodes.close()
        for agents in self._agents.values():
            agents.close()
        shared_pool().close()
