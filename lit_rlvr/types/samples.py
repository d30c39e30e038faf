"""Rows of a data set, and prompts as the model sees them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lit_rlvr.media import Coordinates, Pixels
from lit_rlvr.types.completions import Completion


@dataclass(frozen=True)
class Sample:
    """One row of a data set, as a DataModule yields it.

    Args:
        id: a name, unique within its set and the same in every run; seeds derive from it.
        prompt: the user's text, or a whole conversation as chat messages ({"role", "content"}).
        answer: the reference answer as text, which rewards interpret.
        images: files, bytes, PIL images, or a `Video` for each video, in the order of their `<image>` and `<video>`
            placeholders in the prompt; a DataModule turns them into a sequence that decodes each to RGB on indexing.
        row: the whole source row, for rewards that need more than the answer.
        category: a label for per-category tables ("" = none).
        source: "file:row", for error messages.
        options: the options of a multiple-choice question, in the order A, B, ...
        aliases: other reference answers, each as right as `answer`.
        closing_turns: the assistant's messages at the end of the row's conversation, which `prompt` lacks.
        answer_object: the reference answer as the data hold it, for rewards that read lists and dicts; None = `answer`.
        dataset: the name of the set that the row is of.
        rewards: the rewards that judge completions of this row -> their weights, None for a reward's own; None = all.
        conversation: the messages that the model is given, if they are others than `prompt`: with the system prompt and
            the template of `data.chat`. () = `prompt`.
        coordinates: how the model writes places in each image; () = without images, or before the model is known.
    """

    id: str
    prompt: str | list[dict[str, Any]]
    answer: str
    images: Sequence[Any] = ()
    row: Mapping[str, Any] = field(default_factory=dict)
    category: str = ""
    source: str = ""
    options: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    closing_turns: tuple[dict[str, Any], ...] = ()
    answer_object: Any = None
    dataset: str = ""
    rewards: Mapping[str, float | None] | None = None
    conversation: tuple[dict[str, Any], ...] = ()
    coordinates: tuple[Coordinates, ...] = ()

    @property
    def told(self) -> str | list[dict[str, Any]]:
        """What the model is told: the prompt, with the system prompt and the template around it."""
        return list(self.conversation) or self.prompt

    @property
    def label(self) -> Any:
        """The reference answer for a reward function: an object where the data hold one, else text."""
        if self.answer_object is None:
            return self.answer
        return self.answer_object

    @property
    def references(self) -> tuple[str, ...]:
        """The reference answers: one of them suffices."""
        return (self.answer, *self.aliases)


@dataclass
class Prompt:
    """One prompt as the model sees it: tokens, chat template included, and images.

    Args:
        sample: the row that the prompt comes from.
        token_ids: the tokens, with one placeholder per image feature.
        pixels: the images, present while the prompt is in a batch; None without images.
        prefill: the beginning of every answer, which stands at the end of `token_ids`.
        score_prefill: rewards judge it as the beginning of the text.
    """

    sample: Sample
    token_ids: list[int]
    pixels: Pixels | None = None
    prefill: str = ""
    score_prefill: bool = False

    def for_rewards(self, group: Sequence[Completion]) -> list[Completion]:
        """Return completions of this prompt as rewards get them: with its prefill, in its own field or in the text."""
        return [self._for_rewards(completion) for completion in group]

    def _for_rewards(self, completion: Completion) -> Completion:
        if not self.score_prefill:
            return replace(completion, prefill=self.prefill, routes=None)
        turns = tuple(replace(turn, text=self.prefill + turn.text) for turn in completion.turns)
        raw = self.prefill + completion.raw if completion.raw else ""
        return replace(completion, routes=None, text=self.prefill + completion.text, raw=raw, turns=turns)


Pair = tuple[Completion, Sample]
"""A completion and its sample, the input of a reward."""
