"""Checks that the longest sequences fit into the model's context."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lit_rlvr.errors import UserError
from lit_rlvr.policy.loading import load_config
from lit_rlvr.types import Prompt, Sampling

if TYPE_CHECKING:
    from lit_rlvr.datamodules import PromptDataModule


_log = logging.getLogger("lit_rlvr")


@dataclass(frozen=True)
class Asked:
    """A set of prompts and the maximum length of their completions.

    Args:
        name: the set's name in messages.
        prompts: at least one.
        max_tokens: maximum tokens of a completion.
        option: the option that sets `max_tokens`.
        prompt_option: the option that leaves out longer prompts.
        room: tokens to allow for a prompt at the least, because an environment may add to it.
    """

    name: str
    prompts: Sequence[Prompt]
    max_tokens: int
    option: str
    prompt_option: str = "data.init_args.max_prompt_tokens"
    room: int = 0

    @property
    def longest(self) -> Prompt:
        return max(self.prompts, key=lambda prompt: len(prompt.token_ids))

    @property
    def reach(self) -> int:
        """Tokens of the longest prompt plus the longest completion."""
        return max(len(self.longest.token_ids), self.room) + self.max_tokens


def asked_of(
    data: PromptDataModule, sampling: Sampling, eval_sampling: Sampling, prompts_grow: bool = False
) -> list[Asked]:
    """The loaded sets of a run, with their maximum completion lengths.

    Args:
        prompts_grow: an environment may add to prompts, up to `max_prompt_tokens`.
    """
    limit = "max_tokens" if sampling.max_turns == 1 else "max_episode_tokens"
    trained = sampling.reach, f"rollout.sampling.{limit}"
    evaluated = eval_sampling.reach, f"rollout.eval_sampling.{limit}"
    return [
        Asked(
            f"{other.name} {split}",
            prompts,
            *(trained if split == "train" else evaluated),
            room=other.max_prompt_tokens if prompts_grow else 0,
        )
        for other in data.validated
        for split, prompts in other.prompts.items()
        if prompts
    ]


def check_lengths(model_folder: str, sets: Sequence[Asked]) -> None:
    """Refuse a set whose longest prompt and completion exceed the model's context. Reads only the model's config.

    Raises:
        UserError: names the prompt, and which option to lower to what.
    """
    context = context_length(load_config(model_folder))
    for asked in sets:
        if context is None or asked.reach <= context:
            continue
        tokens = asked.reach - asked.max_tokens
        said = f"prompt {asked.longest.sample.id} has {tokens} tokens"
        if tokens > len(asked.longest.token_ids):
            said = f"prompts may get {tokens} tokens from their environment"
        rooms = {asked.prompt_option: context - asked.max_tokens, asked.option: context - tokens}
        lower = " or ".join(f"{option} to {room}" for option, room in rooms.items() if room > 0)
        raise UserError(
            f"{asked.name}: {said}, which with {asked.option}={asked.max_tokens} is more than the model's context of "
            f"{context} tokens; lower {lower or ' and '.join(rooms)}"
        )


def within_context(model_folder: str, sets: Sequence[Asked]) -> int:
    """The longest sequence of sets whose completions may be cut by the model's context, which is said.

    Returns:
        Tokens of the longest sequence, prompt and completion together; at most the model's context.

    Raises:
        UserError: a prompt leaves no room for a completion.
    """
    context = context_length(load_config(model_folder))
    if context is None:
        return max(asked.reach for asked in sets)
    for asked in sets:
        tokens = len(asked.longest.token_ids)
        if tokens >= context:
            raise UserError(
                f"{asked.name}: prompt {asked.longest.sample.id} has {tokens} tokens, which leaves no room in the "
                f"model's context of {context} tokens; lower {asked.prompt_option} to {context - 1}"
            )
        cut = sum(len(prompt.token_ids) + asked.max_tokens > context for prompt in asked.prompts)
        if cut:
            _log.warning(
                "%s: %d of %d prompts and %d new tokens do not fit into the model's context of %d tokens; their "
                "completions end there, after %d tokens at the least",
                asked.name, cut, len(asked.prompts), asked.max_tokens, context, context - tokens,
            )  # fmt: skip
    return min(context, max(asked.reach for asked in sets))


def context_length(config: Any) -> int | None:
    """The longest sequence that a model's positions support, as vLLM computes it; None if the config does not say.

    `linear` and `dynamic` RoPE scaling multiply `max_position_embeddings`; for other kinds, and for Gemma 3, it already
    includes the factor.
    """
    text = config.get_text_config()
    length = getattr(text, "max_position_embeddings", None)
    if length is None:
        return None
    ropes: dict[str, Any] = getattr(text, "rope_parameters", None) or {}
    kinds = [ropes, *(value for value in ropes.values() if isinstance(value, dict))]  # one, or one per layer type
    factors = [kind.get("factor") or 1 for kind in kinds if kind.get("rope_type") in ("linear", "dynamic")]
    return int(length * (1 if "gemma3" in text.model_type else max(factors, default=1)))
