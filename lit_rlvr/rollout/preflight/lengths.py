"""Lengths of prompts and completions against each other and the model's context."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lit_rlvr.common.log import log
from lit_rlvr.errors import UserError
from lit_rlvr.media import kinds_of
from lit_rlvr.policy.loading import load_model_config
from lit_rlvr.rewards.gold_answers import LongAnswers, find_long_answers
from lit_rlvr.rollout.episodes import added_images, begins
from lit_rlvr.rollout.settings import RolloutSettings
from lit_rlvr.types import Prompt

if TYPE_CHECKING:
    from lit_rlvr.datamodules import PromptDataModule


@dataclass(frozen=True)
class LengthRequirement:
    """A set of prompts and the maximum length of their completions.

    Args:
        name: the set's name in messages.
        prompts: at least one.
        max_tokens: maximum tokens of a completion.
        option: the option that sets `max_tokens`.
        prompt_option: the option that leaves out longer prompts.
        min_prompt_tokens: the least length to assume for a prompt, because an environment may add to it.
        added_images: the most images that an environment adds to a prompt.
    """

    name: str
    prompts: Sequence[Prompt]
    max_tokens: int
    option: str
    prompt_option: str = "data.init_args.reading.max_prompt_tokens"
    min_prompt_tokens: int = 0
    added_images: int = 0

    @property
    def longest(self) -> Prompt:
        return max(self.prompts, key=lambda prompt: len(prompt.token_ids))

    @property
    def max_sequence_tokens(self) -> int:
        """Tokens of the longest prompt plus the longest completion."""
        return max(len(self.longest.token_ids), self.min_prompt_tokens) + self.max_tokens


def length_requirements(rollout: RolloutSettings, data: PromptDataModule) -> list[LengthRequirement]:
    """Return the loaded sets of a run, with their maximum completion lengths; the training prompts come first."""
    if rollout.sampling.max_turns == 1:
        limit = "max_tokens"
    else:
        limit = "max_episode_tokens"
    requirements = []
    for other in data.validated:
        min_prompt_tokens = 0
        if begins(rollout.environment):
            min_prompt_tokens = other.reading.max_prompt_tokens
        for split, prompts in other.prompts.items():
            sampling = rollout.eval_sampling
            options = "rollout.evaluation.sampling"
            if split == "train":
                sampling = rollout.sampling
                options = "rollout.sampling"
            if prompts:
                requirement = LengthRequirement(
                    f"{other.name} {split}",
                    prompts,
                    sampling.max_completion_tokens,
                    f"{options}.{limit}",
                    min_prompt_tokens=min_prompt_tokens,
                    added_images=added_images(rollout.environment, sampling.max_turns),
                )
                requirements.append(requirement)
    return requirements


def most_images(requirements: Iterable[LengthRequirement]) -> dict[str, int]:
    """Return the most images and videos in one prompt of some sets, as arguments of `EngineContext`."""
    images = videos = 0
    for requirement in requirements:
        for prompt in requirement.prompts:
            kinds = kinds_of(prompt.sample.images)
            images = max(images, kinds.count("image") + requirement.added_images)
            videos = max(videos, kinds.count("video"))
    return {"max_images": images, "max_videos": videos}


def check_lengths(model_folder: str, requirements: Sequence[LengthRequirement]) -> None:
    """Refuse a set whose longest prompt and completion exceed the model's context. Reads only the model's config.

    Raises:
        UserError: names the prompt, and which option to lower to what.
    """
    context = context_length(load_model_config(model_folder))
    for requirement in requirements:
        if context is None or requirement.max_sequence_tokens <= context:
            continue
        tokens = requirement.max_sequence_tokens - requirement.max_tokens
        cause = f"prompt {requirement.longest.sample.id} has {tokens} tokens"
        if tokens > len(requirement.longest.token_ids):
            cause = f"the environment adds to prompts, up to {requirement.prompt_option}={tokens} tokens"
        allowed_by_option = {
            requirement.prompt_option: context - requirement.max_tokens,
            requirement.option: context - tokens,
        }
        allowances = []
        for option, allowed in allowed_by_option.items():
            if allowed > 0:
                allowances.append(f"{option} to {allowed}")
        lower = " or ".join(allowances)
        raise UserError(
            f"{requirement.name}: {cause}, which with {requirement.option}={requirement.max_tokens} is more than the "
            f"model's context of {context} tokens; lower {lower or ' and '.join(allowed_by_option)}, or raise it by "
            "model.config_overrides"
        )


def within_context(model_folder: str, requirements: Sequence[LengthRequirement]) -> int:
    """Return the longest sequence; warn about completions that the context truncates.

    Returns:
        Tokens of the longest sequence, prompt and completion together; at most the model's context.

    Raises:
        UserError: a prompt leaves no room for a completion.
    """
    context = context_length(load_model_config(model_folder))
    if context is None:
        return max(requirement.max_sequence_tokens for requirement in requirements)
    for requirement in requirements:
        tokens = len(requirement.longest.token_ids)
        if tokens >= context:
            raise UserError(
                f"{requirement.name}: prompt {requirement.longest.sample.id} has {tokens} tokens, which leaves no room "
                f"in the model's context of {context} tokens; lower {requirement.prompt_option} to {context - 1}"
            )
        cut = sum(len(prompt.token_ids) + requirement.max_tokens > context for prompt in requirement.prompts)
        if cut:
            log.warning(
                "%s: %d of %d prompts and %d new tokens do not fit into the model's context of %d tokens; their "
                "completions end there, after %d tokens at the least",
                requirement.name,
                cut,
                len(requirement.prompts),
                requirement.max_tokens,
                context,
                context - tokens,
            )
    return min(context, max(requirement.max_sequence_tokens for requirement in requirements))


def context_length(config: Any) -> int | None:
    """Return the longest sequence that a model's positions support, as vLLM computes it; None if the config does not
    say.

    `linear` and `dynamic` RoPE scaling multiply `max_position_embeddings`; for other kinds, and for Gemma 3, it already
    includes the factor.
    """
    text = config.get_text_config()
    length = getattr(text, "max_position_embeddings", None)
    if length is None:
        return None
    ropes: dict[str, Any] = getattr(text, "rope_parameters", None) or {}
    kinds = [ropes, *(value for value in ropes.values() if isinstance(value, dict))]  # one, or one per layer type
    factors = []
    for kind in kinds:
        if kind.get("rope_type") in ("linear", "dynamic"):
            factors.append(kind.get("factor") or 1)
    return int(length * (1 if "gemma3" in text.model_type else max(factors, default=1)))


class LongAnswerSearch:
    """Finds gold answers that are too long for completions; it tries the rewards on them once."""

    def __init__(self) -> None:
        self._found: list[LongAnswers] | None = None

    def find(self, rollout: RolloutSettings, data: PromptDataModule) -> list[LongAnswers]:
        """Return what is too long for training, and for validation if its limit is another."""
        if data.demonstrates:  # their lengths are known
            return []
        if self._found is None:
            self._found = []
            limits = {"train": ("sampling", rollout.sampling)}
            if rollout.eval_sampling.max_tokens != rollout.sampling.max_tokens:
                limits["validation"] = ("evaluation.sampling", rollout.eval_sampling)
            for split, (key, sampling) in limits.items():
                option = f"rollout.{key}.max_tokens"
                prompts = data.prompts.get(split, ())
                answers = find_long_answers(rollout.rewards, prompts, data.tokenizer, sampling, option)
                if answers is not None:
                    self._found.append(answers)
        return self._found
