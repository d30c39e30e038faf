"""Completions: sampled answers and episodes, with their turns and tool results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from lit_rlvr.media import Pixels
from lit_rlvr.speech.calls import as_dicts, find_calls
from lit_rlvr.speech.thoughts import thoughts_in, without_thoughts
from lit_rlvr.types.results import RewardResult

if TYPE_CHECKING:  # reward workers import this module; torch is too slow for them
    from torch import Tensor

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Turn:
    """One turn of an episode: the model's text and the environment's answer.

    Args:
        text: the model's text, decoded without special tokens.
        observation: the answer that the model sees, without the chat template around it; None after the last turn.
        calls, errors: numbers of tool calls in the turn, and of those that failed.
        images: number of images in the observation.
        raw: the model's text with its special tokens, of which some models make tool calls; "" where it is unknown.
        reward: the reward of this turn alone; None = it has none.
        span: the positions of its tokens in the completion, from the first one up to the one after the last; (0, 0) =
            the turn is a run of sampled tokens.
        state: a digest of what the environment showed before the turn; "" = nothing but the prompt.
        observed: the positions of what an agent added before the turn, from the first one up to the one after the last;
            () = what an environment answered stands between two turns.
    """

    text: str
    observation: str | None = None
    calls: int = 0
    errors: int = 0
    images: int = 0
    raw: str = field(default="", repr=False, compare=False)
    reward: float | None = None
    span: tuple[int, int] = field(default=(0, 0), repr=False, compare=False)
    state: str = field(default="", repr=False, compare=False)
    observed: tuple[int, ...] = field(default=(), repr=False, compare=False)

    def recorded(self) -> dict[str, Any]:
        """Return the turn as the files of a run hold it."""
        names = ["text", "observation", "calls", "errors", "images"]
        if self.reward is not None:
            names.append("reward")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class ToolResult:
    """The result of a tool call, which the model sees as one tool message.

    Args:
        name: the tool.
        text: the text of the message.
        images: PIL images, shown before the text.
    """

    name: str
    text: str
    images: tuple[Any, ...] = ()


@dataclass(frozen=True)
class UntrainedMessage:
    """A message that the model sampled for an agent and that training leaves out.

    Args:
        reason: `auxiliary`, as the agent marked it, or `lost`, because the agent did not wait for it.
        tokens: number of its tokens.
    """

    reason: Literal["auxiliary", "lost"]
    tokens: int


@dataclass(frozen=True)
class Completion:
    """One sampled answer, or with an environment one whole episode: all its turns and observations in one row.

    Args:
        text: the text, decoded without special tokens but with `<think>` and `</think>` for those around thoughts; of
            an episode only the last turn, which holds the answer.
        token_ids: the sampled tokens, with the EOS token if the model sampled it; of an episode also the tokens of the
            observations and of the chat template around them.
        finish_reason: "stop" = the model sampled an EOS token or a stop text, or the environment ended the episode;
            "length" = max_tokens or the turns ran out.
        logprobs: the engine's log-probability of each token, under the distribution it sampled from; 0 in observations.
        sampled: for each token, True if the model sampled it; only such tokens are in the loss. () = all.
        turns: the turns of an episode; () without an environment.
        outcome: the environment's judgement of the episode, or its failure; None without a judgement.
        reward_results: the results of reward functions that get the environment, by name.
        pixels: the images of the observations, in the order of their placeholders in `token_ids`.
        labels: for each sampled token, the label of the weights that sampled it, from engines that can mix them; ()
            = those of the last sync.
        stale_cache: for each sampled token, True if it follows keys and values that older weights may have made; () =
            none does.
        prefill: for rewards, the beginning of the answer that stands in the prompt and that `text` continues, such as
            "<think>\\n": what the chat template opens, then the data's `prefill`; "" if `text` includes it.
        routes: (L, K, k) uint8 or int16, the k experts that each input token used in each of the K layers with routers:
            the tokens of the prompt, and those of the completion but the last; None = unknown.
        raw: `text` with its special tokens, but the one that ends the turn; "" = it has none, or they are unknown.
        sequences: the lengths of the sequences in `token_ids`, each of which follows the prompt alone, because an agent
            began a conversation anew; () = there is one.
        untrained: the messages of an agent's episode that are not in `token_ids`.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    logprobs: tuple[float, ...] = ()
    sampled: tuple[bool, ...] = ()
    turns: tuple[Turn, ...] = ()
    outcome: RewardResult | None = None
    pixels: Pixels | None = None
    reward_results: Mapping[str, RewardResult] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    stale_cache: tuple[bool, ...] = ()
    prefill: str = ""
    routes: Tensor | None = field(default=None, repr=False, compare=False)
    raw: str = field(default="", repr=False, compare=False)
    sequences: tuple[int, ...] = ()
    untrained: tuple[UntrainedMessage, ...] = ()

    @property
    def full_text(self) -> str:
        """The prefill and the text."""
        return self.prefill + self.text

    @property
    def thoughts(self) -> str:
        """The thoughts in the text, also those that the prompt opened, without the marks around them."""
        return thoughts_in(self.full_text)

    @property
    def answer(self) -> str:
        """The text behind the thoughts; "" if they never end."""
        return without_thoughts(self.full_text)

    @property
    def tool_calls(self) -> list[dict[str, Any]]:
        """The calls behind the thoughts that can be read, each `{"name": ..., "arguments": {...}}`."""
        return as_dicts(find_calls(self.prefill + (self.raw or self.text)))

    @property
    def length(self) -> int:
        """Number of tokens that the model sampled."""
        if self.sampled:
            return sum(self.sampled)
        return len(self.token_ids)

    @property
    def from_model(self) -> tuple[bool, ...]:
        """For each token, True if the model sampled it."""
        return self.sampled or (True,) * len(self.token_ids)

    @classmethod
    def made_elsewhere(cls, text: str, tokens: int, finish_reason: FinishReason) -> Completion:
        """Return a completion that another program sampled; only the number of its tokens is known."""
        return cls(text, (0,) * tokens, finish_reason)

    @property
    def sequence_lengths(self) -> tuple[int, ...]:
        """The lengths of its sequences; one number if it is a single sequence."""
        return self.sequences or (len(self.token_ids),)

    @property
    def truncated(self) -> bool:
        """True if the completion was cut off at its limit of tokens."""
        return self.finish_reason == "length"


_T = TypeVar("_T")


def cut_sequences(values: Sequence[_T], lengths: Sequence[int]) -> list[Sequence[_T]]:
    """Cut the values of a completion's tokens into those of its sequences, which have these lengths."""
    ends = accumulate(lengths)
    sequences = []
    for end, length in zip(ends, lengths, strict=True):
        sequences.append(values[end - length : end])
    return sequences
