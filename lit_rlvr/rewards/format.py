"""The reward of completions in the required format."""

from __future__ import annotations

import re
from re import _parser  # type: ignore[attr-defined]
from typing import Any

from lit_rlvr.errors import UserError, refuse_all
from lit_rlvr.rewards.base import Reward
from lit_rlvr.types import Completion, Sample


class Format(Reward):
    """A reward of 1 for a text that meets every given condition, else 0; it does not report `correct`.

    The text may be the one with special tokens: `contains: "<|answer|>"` works where that is one.

    Args:
        pattern: a regular expression that must match somewhere in the text (a dot matches newlines too).
        contains: a string that the text must contain, such as "\\n</think>\\n".
        boxed: the text must contain `\\boxed{`.
        truncated_is_wrong: a completion cut off at max_tokens earns 0.
        kwargs: `weight`, `correct_from`, `name` and `isolate` of every reward.

    Raises:
        UserError: no condition is given, or `pattern` is not a regular expression.
    """

    reports_correct = False
    needs_answer = False

    def __init__(
        self,
        pattern: str | None = None,
        contains: str | None = None,
        boxed: bool = False,
        truncated_is_wrong: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(truncated_is_wrong=truncated_is_wrong, **kwargs)
        if pattern is None and contains is None and not boxed:
            raise UserError("rewards.Format needs at least one of pattern, contains, boxed")
        try:
            if pattern is None:
                self.pattern = None
            else:
                self.pattern = re.compile(pattern, re.DOTALL)
        except re.error as error:
            raise UserError(f"rewards.Format.pattern {pattern!r} is not a regular expression: {error}") from error
        self.contains = contains
        self.boxed = boxed

    def check_prefill(self, prefill: str) -> None:
        parsed = _parser.parse(self.pattern.pattern if self.pattern else "", re.DOTALL)
        problems = []
        for tag in TAG.findall(prefill):
            if tag in (self.contains or "") or tag in required_text(parsed, tag):
                problems.append(
                    f"rewards.{type(self).__name__} {self.name!r} asks for {tag} in the text, but the chat template or "
                    f"the data's prefill writes it ({prefill!r}), so no text ever has it; set "
                    "data.init_args.chat.score_prefill: true, with which rewards judge that too, or ask only for what "
                    "the model writes"
                )
        refuse_all(problems)

    def __call__(self, completion: Completion, sample: Sample) -> float:
        return float(any(map(self._accepts, dict.fromkeys((completion.text, completion.raw or completion.text)))))

    def _accepts(self, text: str) -> bool:
        return (
            (self.pattern is None or self.pattern.search(text) is not None)
            and (self.contains is None or self.contains in text)
            and (not self.boxed or "\\boxed{" in text)
        )


TAG = re.compile(r"</?[^<>/\s]+>|\[/?[A-Z_]+\]|```\w+")
"""What opens or closes a part of an answer: a tag, or a fence with a language."""


def required_text(parsed: Any, tag: str) -> str:
    """Return the literal texts that every match of a parsed regular expression has.

    NUL stands between what is apart; of alternatives, only the tag counts, if all have it.
    """
    text = ""
    for operation, value in parsed:
        match str(operation):
            case "LITERAL":
                text += chr(value)
            case "AT":
                pass  # a place, such as the start
            case "SUBPATTERN":
                text += required_text(value[-1], tag)
            case "ATOMIC_GROUP":
                text += required_text(value, tag)
            case "MAX_REPEAT" | "MIN_REPEAT" | "POSSESSIVE_REPEAT" if value[0]:
                text += f"\0{required_text(value[2], tag)}\0"
            case "ASSERT":
                text += f"\0{required_text(value[1], tag)}\0"
            case "BRANCH":
                text += f"\0{tag if all(tag in required_text(branch, tag) for branch in value[1]) else ''}\0"
            case _:
                text += "\0"
    return text
