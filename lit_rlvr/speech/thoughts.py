"""A model's thoughts in a text: every family's marks of them, and the same text with `<think>` and `</think>`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

_TAGS = ("think", "thinking", "thought", "reasoning", "seed:think")
_PAIRS = {
    **{f"<{tag}>": f"</{tag}>" for tag in _TAGS},
    "[THINK]": "[/THINK]", "◁think▷": "◁/think▷", "<|begin_of_thought|>": "<|end_of_thought|>",
    "<|START_THINKING|>": "<|END_THINKING|>",
}  # fmt: skip
"""Opening -> closing mark of thoughts: DeepSeek, Qwen, GLM and many others; Seed; Mistral; Kimi; OpenThoughts; Command.
Where a family has such tokens, each mark is one."""
_GEMMA = "<|channel>thought", "<channel|>"
_GPT_OSS = "<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"
"""Marks of several tokens. gpt-oss's thoughts end where any channel does."""
_CLOSING = dict([*_PAIRS.items(), _GEMMA, _GPT_OSS])


def _any_of(marks: Iterable[str]) -> str:
    return "|".join(map(re.escape, marks))


MARK = re.compile(
    rf"(?P<opening>{_any_of(_CLOSING)})(?:(?<=>thought)\n)?"
    rf"|(?P<closing>{_any_of([*_PAIRS.values(), _GEMMA[1]])}|<\|end\|>(?=<\|start\|>))"
)
"""A mark at which thoughts begin or end."""

_TOKENS = {*_PAIRS, *_PAIRS.values(), "<|channel>", "<channel|>", "<|begin_of_box|>", "<|end_of_box|>"}
"""Special tokens that a text keeps: marks of thoughts, and those of GLM around an answer."""
_CHANNELS = {"<|channel|>", "<|message|>", "<|end|>", "<|start|>"}
"""Tokens of gpt-oss, of which other families have one for another purpose."""
_HEADS = re.compile(r"<\|start\|>[^<]*|<\|channel\|>[^<]*|<\|message\|>|<\|end\|>")


def read_text(tokenizer: Any, token_ids: Sequence[int]) -> str:
    """Decode tokens without special ones, but with the marks of thoughts, as `<think>` and `</think>`."""
    dropped = _dropped(tokenizer)
    if dropped is None:
        return str(tokenizer.decode(list(token_ids), skip_special_tokens=True))
    text = with_think_tags(str(tokenizer.decode([token for token in token_ids if token not in dropped])))
    return _HEADS.sub("", text) if "<|channel|>" in _special_tokens(tokenizer) else text


def raw_text(tokenizer: Any, token_ids: Sequence[int], stopped: bool) -> str:
    """Decode tokens with special ones, but for one that stopped the turn."""
    ends = _special_tokens(tokenizer).values() if stopped else ()
    return str(tokenizer.decode(list(token_ids[:-1] if token_ids and token_ids[-1] in ends else token_ids)))


def with_think_tags(text: str) -> str:
    """Write all marks of thoughts as `<think>` and `</think>`."""
    return MARK.sub(lambda mark: "<think>" if mark["opening"] else "</think>", text)


def without_thoughts(text: str, open_thoughts: bool = False) -> str:
    """Return the text behind the last mark that closes thoughts; "" if they never end.

    Of thoughts that begin anew and never end, what is between the two marks is returned.

    Args:
        open_thoughts: what follows an opening mark without a closing one counts.
    """
    marks = list(MARK.finditer(text))
    if not marks:
        return text
    end = max((mark.end() for mark in marks if mark["closing"]), default=0)
    opened = max((mark.start() for mark in marks if mark["opening"]), default=-1)
    if not open_thoughts and opened >= end:
        return text[end:opened] if end else ""
    return text[end:]


def thoughts_in(text: str) -> str:
    """Return what `without_thoughts` leaves out, without the marks around it; "" if there are none."""
    marks = list(MARK.finditer(text))
    if not marks:
        return ""
    end = max((mark.start() for mark in marks if mark["closing"]), default=-1)
    opened = max((mark.end() for mark in marks if mark["opening"]), default=0)
    begun = marks[0].end() if marks[0]["opening"] else 0
    return text[begun:end] + text[opened:] * (opened > end) if end >= 0 else text[begun:]


def closing_of(text: str) -> str:
    """Return the mark that closes the thoughts in which a text, such as a prompt, ends; "" if it ends in none."""
    marks = list(MARK.finditer(text))
    return _CLOSING[marks[-1]["opening"]] if marks and marks[-1]["opening"] else ""


def ends_in_thoughts(text: str) -> bool:
    """Return whether a text opens thoughts and does not close them."""
    return closing_of(text) != ""


def closes_thoughts(text: str) -> bool:
    """Return whether a text has a mark at which thoughts end."""
    return any(mark["closing"] for mark in MARK.finditer(text))


@lru_cache(maxsize=16)
def _special_tokens(tokenizer: Any) -> dict[str, int]:
    added = {str(token): number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True)) | added


@lru_cache(maxsize=16)
def _dropped(tokenizer: Any) -> frozenset[int] | None:
    """Return the special tokens that a text leaves out; None = all, because none of them marks thoughts."""
    special = _special_tokens(tokenizer)
    kept = _TOKENS | (_CHANNELS if "<|channel|>" in special else set())
    return frozenset(special[text] for text in special.keys() - kept) if special.keys() & kept else None
