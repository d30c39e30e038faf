"""Texts that end a turn, checked by us so that all engines agree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def ends_with_stop(tokenizer: Any, token_ids: Sequence[int], stop: Sequence[str]) -> bool:
    """Whether the last token completes one of the stop texts.

    Args:
        token_ids: the tokens of a turn, none of which completed one before; special tokens count as their texts.
    """
    if not stop:
        return False
    longest = max(len(text.encode()) for text in stop)  # a token has at least one byte
    tail = tokenizer.decode(list(token_ids[-longest:]), skip_special_tokens=False)
    return any(text in tail for text in stop)
