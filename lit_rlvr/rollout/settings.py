"""How a run samples, judges and validates: the options of `rollout`, checked against each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from lit_rlvr.common.arguments import MAX_SIZE, ChecksArguments, check_within, option_group
from lit_rlvr.common.init_arguments import init_arguments, with_class_defaults
from lit_rlvr.engines import resolve_engine
from lit_rlvr.engines.base import RolloutEngine
from lit_rlvr.environments import Agent, Environment, as_environment
from lit_rlvr.environments.base import rewards_with
from lit_rlvr.errors import check_all, refuse_all
from lit_rlvr.plan import RunPlan
from lit_rlvr.rewards import FunctionReward, Reward
from lit_rlvr.rewards.base import NoReward
from lit_rlvr.rollout.episodes import check_turns
from lit_rlvr.rollout.record import Replay
from lit_rlvr.sampling import EvalSampling, Sampling
from lit_rlvr.training.module import RLVRModule


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


@option_group("rollout.safeguards")
@dataclass(frozen=True)
class Safeguards:
    """The checks of a run, and the numbers of failures that it survives.

    Args:
        probe_every: compare the engine's log-probabilities with the trainer's after the first weight sync that can be
            probed and after every `probe_every`-th one; 0 = after the first only.
        max_engine_restarts: how many times in a row, without a complete batch in between, a crashed engine is
            restarted, with the same weights and batch, before the run ends.
        max_failure_rate: share of completions whose reward may fail through the checker's own fault (they are masked
            out of the loss), or be stopped by the limits of its worker; above it the run saves the examples and stops.
        max_group_seconds: with `staleness` on servers, drop a group whose completions have not ended after so many
            seconds, and name it; null = wait for it.
    """

    probe_every: int = 10
    max_engine_restarts: int = 3
    max_failure_rate: float = 0.05
    max_group_seconds: float | None = None

    def __post_init__(self) -> None:
        counts = {"probe_every": self.probe_every, "max_engine_restarts": self.max_engine_restarts}
        check_within("[0, inf)", "rollout.safeguards", **counts)
        check_within("[0, 1]", "rollout.safeguards", max_failure_rate=self.max_failure_rate)
        check_within("(0, inf)", "rollout.safeguards", max_group_seconds=self.max_group_seconds)


class RolloutSettings(ChecksArguments):
    """How a run samples, judges and validates.

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
            several of these by the names in the data's column `environment`, else of the data sets.
        mask_truncated: mask completions that were cut off at max_tokens out of the loss (DAPO's overlong filtering);
            their rewards still count in their group's statistics.
        staleness: above 0, groups are generated all the time, and an iteration trains on the first that finish; none of
            their tokens was sampled by weights more than this number of iterations old, for which the importance
            correction compensates. Needs an engine with its own weights (vLLM), and on a GPU, or above 1, one that
            generates elsewhere (VLLMServerEngine).
        safeguards: what the run checks, and how many failures it survives.
        replay: the record of the rollouts, or the run whose record this one trains on.
        replay_routes: in a mixture of experts, train each token with the experts that it used in the engine (R3, arXiv
            2510.11370); else rounding sends some tokens to others. For the Hugging Face engine, and vLLM on a GPU
            or on servers (`lit-rlvr serve --enable-return-routed-experts`).
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
        environment: Environment | str | dict[str, str] | dict[str, Environment] | None = None,
        mask_truncated: bool = False,
        staleness: int = 0,
        safeguards: Safeguards = Safeguards(),
        replay: Replay = Replay(),  # noqa: B008
        replay_routes: bool = False,
        deterministic: bool = False,
    ) -> None:
        if rewards is not None:
            rewards = [reward if isinstance(reward, Reward | str) else FunctionReward(reward) for reward in rewards]
        option_groups = with_class_defaults(type(self), evaluation=evaluation, safeguards=safeguards, replay=replay)
        self.init_args = init_arguments() | option_groups
        evaluation = option_groups["evaluation"]
        safeguards = option_groups["safeguards"]
        replay = option_groups["replay"]
        self.group_size = group_size
        self.engine = resolve_engine(engine)
        self.sampling = sampling
        self.evaluation = evaluation
        self.validate_every_rollouts = validate_every_rollouts
        measured = evaluation.sampling
        self.eval_sampling = measured if isinstance(measured, Sampling) else measured.filled_from(sampling)
        self.environment = as_environment(environment)
        judges = self.environment is not None and (self.environment.has_reward or self.environment.rewards_turns)
        if rewards == [] and not judges:
            rewards = [NoReward()]
        self.rewards = rewards_with(self.environment, rewards)  # type: ignore[arg-type]  # functions are rewards by now
        self.mask_truncated = mask_truncated
        self.staleness = staleness
        self.deterministic = deterministic
        self.safeguards, self.replay, self.replay_routes = safeguards, replay, replay_routes
        if replay.record is None:
            cannot_repeat = staleness > 0 or isinstance(self.environment, Agent)
            self.record_gib = float(cannot_repeat and replay.rollouts_from is None)
        else:
            self.record_gib = replay.record
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
        samples_of = {}
        for name, count in by_set.items():
            samples_of[f"rollout.evaluation.samples{name and f'.{name}'}"] = count
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

        if self.safeguards.max_group_seconds is not None and not (self.staleness and self.engine.concurrent):
            yield (
                "rollout.safeguards.max_group_seconds: needs rollout.staleness above 0, and servers (VLLMServerEngine)"
            )

    def problems(self, plan: RunPlan) -> Iterator[str]:
        """Yield what these settings do not allow in a run, a line each."""
        if self.sampling.truncates_distribution:  # vLLM can report the kept tokens: docs/scale.md says what is missing
            yield (
                "rollout.sampling: with top_p or top_k, completions are not drawn from the distribution in the loss; "
                "use top_p: 1.0 and top_k: 0 for training (evaluation.sampling may use them)"
            )
        if isinstance(self.environment, Agent):
            yield from self._agent_problems(self.environment)
        sequences = plan.prompts * plan.completions
        if sequences > MAX_SIZE:
            yield (
                f"rollout.group_size: {plan.completions} completions for each of data.prompts_per_rollout="
                f"{plan.prompts} prompts are {sequences} sequences in a rollout; use at most {MAX_SIZE}"
            )

    def _agent_problems(self, agent: Agent) -> Iterator[str]:
        """Yield what does not go together with an agent, a line each."""
        if self.replay_routes:
            yield "rollout.replay_routes: an agent's completions are sampled turn by turn; leave it out"
        for name in agent.reward_functions:
            yield f"rollout.rewards: {name} gets `environments`, and an agent is none; use one that gets completions"

    def completions_of(self, module: RLVRModule) -> int:
        """Return the number of completions per prompt that a module trains on."""
        if module.demonstrates:
            return 1
        return self.group_size

    def samples_of(self, name: str) -> int:
        """Return the number of completions per prompt of a validation set."""
        samples = self.evaluation.samples
        if isinstance(samples, dict):
            return samples.get(name, 1)
        return samples

    @property
    def has_reward(self) -> bool:
        """Whether the run has a reward; `rewards: []` becomes one `NoReward`."""
        return not all(isinstance(reward, NoReward) for reward in self.rewards)

    def judging_rewards(self, demonstrates: bool) -> list[Reward]:
        """Return the rewards that judge the rows.

        Args:
            demonstrates: the run trains on the completions that the data hold, of which rewards judge none.
        """
        if demonstrates or not self.has_reward:
            return []
        return [*self.rewards]
