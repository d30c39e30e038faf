"""The settings of sampling, in training and in validation."""

from __future__ import annotations

from abc import ABCMeta
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from lit_rlvr.common.arguments import checks_arguments
from lit_rlvr.errors import UserError, refuse_all

AtBudget = Literal["close", "end"]


@checks_arguments("sampling")
@dataclass(frozen=True)
class Sampling:
    """The settings of sampling, with which the engine samples and the trainer scores.

    Args:
        temperature: divisor of the logits; 0 is greedy decoding (evaluation only).
        top_p: nucleus sampling; 1.0 is off. Ratio-based losses refuse anything else.
        top_k: sample among the k likeliest tokens; 0 is off. Ratio-based losses refuse anything else.
        max_tokens: longest completion in tokens, EOS included; with an environment, the longest turn.
        banned_token_ids: tokens that neither the engine samples nor the trainer's softmax counts (image placeholders).
        stop: texts that, like the EOS token, end a completion or a turn, which keeps the token that completes the text.
        max_turns: most turns of an episode; above 1 only with an environment.
        max_observation_tokens: longest observation in tokens, with the chat template around it; a longer one loses its
            middle and says so.
        max_episode_tokens: longest episode in tokens, observations included; null: room for `max_turns` turns and the
            observations between them.
        max_thought_tokens: most tokens of a turn's thoughts; 0 is off.
        at_budget: what happens to thoughts of `max_thought_tokens`. close: the mark that ends them is written, is not
            in the loss, and the answer follows. end: the completion ends there, truncated and without an answer.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int = 256
    banned_token_ids: tuple[int, ...] = ()
    stop: tuple[str, ...] = ()
    max_turns: int = 1
    max_observation_tokens: int = 256
    max_episode_tokens: int | None = None
    max_thought_tokens: int = 0
    at_budget: AtBudget = "close"

    def __post_init__(self) -> None:
        checks = (
            ("temperature", self.temperature < 0, ">= 0"),
            ("top_p", not 0 < self.top_p <= 1, "in (0, 1]"),
            ("top_k", self.top_k < 0, ">= 0 (0 is off)"),
            ("max_tokens", self.max_tokens < 1, ">= 1"),
            ("banned_token_ids", min(self.banned_token_ids, default=0) < 0, ">= 0 each"),
            ("stop", not all(self.stop), "texts of at least one character"),
            ("max_turns", self.max_turns < 1, ">= 1"),
            ("max_observation_tokens", self.max_observation_tokens < 1, ">= 1"),
            (
                "max_episode_tokens",
                self.max_episode_tokens is not None and self.max_episode_tokens < self.max_tokens,
                f">= max_tokens={self.max_tokens}",
            ),
            (
                "max_thought_tokens",
                not 0 <= self.max_thought_tokens < self.max_tokens,
                f">= 0 (0 is off) and below max_tokens={self.max_tokens}",
            ),
            (
                "at_budget",
                self.at_budget != "close" and not self.max_thought_tokens,
                "left out, because max_thought_tokens=0 sets no budget",
            ),
        )
        problems = []
        for name, is_invalid, wanted in checks:
            if is_invalid:
                problems.append(f"sampling.{name}: {getattr(self, name)} must be {wanted}")
        refuse_all(problems)

    @property
    def truncates_distribution(self) -> bool:
        """True if the sampled distribution differs from the model's (top-p or top-k)."""
        return self.top_p < 1 or self.top_k > 0

    @property
    def max_completion_tokens(self) -> int:
        """The longest possible completion in tokens, observations included."""
        longest = self.max_turns * self.max_tokens + (self.max_turns - 1) * self.max_observation_tokens
        if self.max_episode_tokens is None:
            return longest
        return min(longest, self.max_episode_tokens)

    @property
    def max_sampled_tokens(self) -> int:
        """T_max: the most tokens that the engine can sample for one completion."""
        return min(self.max_turns * self.max_tokens, self.max_completion_tokens)

    def with_max_tokens(self, max_tokens: int) -> Sampling:
        """Return the same sampling with another longest completion, and no budget of thoughts that is as long."""
        sampling = self
        if self.max_thought_tokens >= max_tokens:
            sampling = self.without_thought_budget()
        return replace(sampling, max_tokens=max_tokens)

    def without_thought_budget(self) -> Sampling:
        """Return the same sampling without a budget of thoughts."""
        return replace(self, max_thought_tokens=0, at_budget="close")

    def with_banned(self, token_ids: Sequence[int]) -> Sampling:
        """Return the same sampling with more tokens banned."""
        return replace(self, banned_token_ids=tuple(sorted({*self.banned_token_ids, *token_ids})))


@checks_arguments("rollout.evaluation.sampling")
@dataclass(frozen=True)
class EvalSampling(metaclass=ABCMeta):  # noqa: B024  # for `register`
    """The settings of sampling in validation; training's settings fill in the others.

    Args:
        temperature: divisor of the logits; 0 is greedy decoding.
        top_p: nucleus sampling; 1.0 is off.
        top_k: sample among the k likeliest tokens; 0 is off.
        max_tokens: longest completion in tokens, EOS included; null: as in training, so that accuracies are comparable.
        banned_token_ids: tokens that the engine never samples (image placeholders).
        stop: texts that end a completion or a turn; null: as in training.
        max_turns: most turns of an episode; null: as in training.
        max_observation_tokens: longest observation in tokens; null: as in training.
        max_episode_tokens: longest episode in tokens, observations included; null: as in training.
        max_thought_tokens: most tokens of a turn's thoughts; null: as in training.
        at_budget: what happens to thoughts of that length (close, end); null: as in training.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int | None = None
    banned_token_ids: tuple[int, ...] = ()
    stop: tuple[str, ...] | None = None
    max_turns: int | None = None
    max_observation_tokens: int | None = None
    max_episode_tokens: int | None = None
    max_thought_tokens: int | None = None
    at_budget: AtBudget | None = None

    def filled_from(self, training: Sampling) -> Sampling:
        """Return the complete settings, with those of training filled in."""
        if self.max_thought_tokens == 0:
            training = training.without_thought_budget()
        try:
            return replace(training, **{name: value for name, value in vars(self).items() if value is not None})
        except UserError as error:
            raise UserError(f"rollout.evaluation.{error}") from error


EvalSampling.register(Sampling)  # complete settings, with nothing of training to fill in
