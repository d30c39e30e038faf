"""Options of a multiple-choice question: reads them from a cell, lists them in a prompt, finds one by its text."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from string import ascii_uppercase
from typing import Any


def as_options(value: Any) -> tuple[str, ...]:
    """A cell as options: a list of them, the text of such a list ("['a', 'b']"), or none."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, str) and value.strip().startswith("["):
        try:
            value = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return ()
    return tuple(str(option).strip() for option in value) if isinstance(value, list | tuple) else ()


def listed(options: Sequence[str]) -> str:
    """The options, one per line: "A) first"."""
    return "\n".join(f"{letter}) {option}" for letter, option in zip(ascii_uppercase, options, strict=False))


def letter_of(answer: str, options: Sequence[str]) -> str | None:
    """The letter of the option whose text is the answer, ignoring case and outer space; else None."""
    texts = [option.strip().lower() for option in options]
    wanted = answer.strip().lower()
    return ascii_uppercase[texts.index(wanted)] if wanted in texts else None
