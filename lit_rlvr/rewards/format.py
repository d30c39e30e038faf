"""The reward of completions in the required format."""

from __future__ import annotations

import re
from typing import Any

from lit_rlvr.errors import UserError
from lit_rlvr.rewards.base import Reward
from lit_rlvr.types import Completion, Sample


class Format(Reward):
    """A reward of 1 for a text that meets every given condition, else 0; it does not report `correct`.

    Args:
        pattern: a regular expression that must match somewhere in the text (a dot matches newlines too).
        contains: a string that the text must contain, such as "\\n</think>\\n".
        boxed: the text must contain `\\boxed{`.
        truncated_is_wrong: a completion cut off at max_tokens earns 0.
        kwargs: `weight`, `correct_from` and `name` of every reward.

    Raises:
        UserError: no condition is given, or `pattern` is not a regular expression.
    """

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
            self.pattern = None if pattern is None else re.compile(pattern, re.DOTALL)
        except re.error as error:
            raise UserError(f"rewards.Format.pattern {pattern!r} is not a regular expression: {error}") from error
        self.contains = contains
        self.boxed = boxed

    def __call__(self, completion: Completion, sample: Sample) -> float:
        text = completion.text
        return float(
            (self.pattern is None or self.pattern.search(text) is not None)
            and (self.contains is None or self.contains in text)
            and (not self.boxed or "\\boxed{" in text)
        )
