"""A model's thoughts in a text: every family's marks of them, and the same text with `<think>` and `</think>`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

_TAGS = ("think", "thinking", "thought", "reasoning", "seed:think")
_PAIRS = {
    **{f"<{tag}>": f"</{tag}>" for tag in _TAGS},
    "[THINK]": "[/THINK]",
    "◁think▷": "◁/think▷",
    "<|begin_of_thought|>": "<|end_of_thought|>",
    "<|START_THINKING|>": "<|END_THINKING|>",
}
"""Opening -> closing mark of thoughts: DeepSeek, Qwen, GLM and many others; Seed; Mistral; Kimi; OpenThoughts; Command.
Where a family has such tokens, each mark is one."""
_GEMMA = "<|channel>thought", "<channel|>"
_GPT_OSS = "<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"
"""Marks of several tokens. gpt-oss's thoughts end where any channel does."""
_CLOSING = dict([*_PAIRS.items(), _GEMMA, _GPT_OSS])
CLOSING_MARKS = frozenset(_CLOSING.values())
"""Marks that end thoughts, as an engine writes them."""


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
    if "<|channel|>" in _special_tokens(tokenizer):
        return _HEADS.sub("", text)
    return text


def raw_text(tokenizer: Any, token_ids: Sequence[int], stopped: bool) -> str:
    """Decode tokens with special ones, but for one that stopped the turn."""
    ends = _special_tokens(tokenizer).values() if stopped else ()
    return str(tokenizer.decode(list(token_ids[:-1] if token_ids and token_ids[-1] in ends else token_ids)))


def with_think_tags(text: str) -> str:
    """Write all marks of thoughts as `<think>` and `</think>`."""
    return MARK.sub(lambda mark: "<think>" if mark["opening"] else "</think>", text)


class Parts(NamedTuple):
    """The parts of a text.

    Args:
        thoughts: what is in thoughts that end.
        unfinished: what is in thoughts that never end.
        answer: everything else, without the marks; pieces with a mark between them are lines.
        closing: the mark that would end the unfinished thoughts; "" if there are none.
    """

    thoughts: str
    unfinished: str
    answer: str
    closing: str


def split_thoughts(text: str) -> Parts:
    """Tell the thoughts in a text from its answer.

    Thoughts end at the first mark that closes them. A closing mark before any other mark ends those that the prompt
    opened; where no thoughts are open, a further one says nothing.
    """
    thoughts: list[str] = []
    answer: list[str] = []
    unfinished = closing = ""
    for kind, start, end in _pieces(text):
        if kind == "thoughts":
            thoughts.append(text[start:end])
        elif kind == "answer":
            answer.append(text[start:end])
        else:
            unfinished = text[start:end]
            closing = _CLOSING[kind]
    answer_text = "\n".join(piece for piece in answer if piece.strip())
    return Parts("".join(thoughts), unfinished, answer_text, closing)


def _pieces(text: str) -> Iterator[tuple[str, int, int]]:
    """Yield (kind, start, end) of each piece of a text between marks of thoughts.

    The kind is "thoughts", "answer" or, of thoughts that never end, the mark that opens them.
    """
    opening = ""
    place = 0
    for number, mark in enumerate(MARK.finditer(text)):
        if opening and mark["opening"]:
            continue
        if mark["closing"] and (opening or number == 0):
            ended = "thoughts"
        else:
            ended = "answer"
        yield ended, place, mark.start()
        opening = mark["opening"] or ""
        place = mark.end()
    yield opening or "answer", place, len(text)


def thought_spans(text: str) -> list[tuple[int, int]]:
    """Return (start, end) of the thoughts in a text, without blanks around them; none of thoughts that are blank."""
    spans = []
    for kind, start, end in _pieces(text):
        piece = text[start:end]
        if kind != "answer" and piece.strip():
            spans.append((start + len(piece) - len(piece.lstrip()), start + len(piece.rstrip())))
    return spans


def without_thoughts(text: str, open_thoughts: bool = False) -> str:
    """Return the answer in a text; "" if its thoughts never end.

    Args:
        text: the text of a turn.
        open_thoughts: thoughts that never end count as answer.
    """
    parts = split_thoughts(text)
    return parts.answer + parts.unfinished * open_thoughts


def thoughts_in(text: str) -> str:
    """Return what `without_thoughts` leaves out, without the marks around it; "" if there are none."""
    parts = split_thoughts(text)
    return parts.thoughts + parts.unfinished


def ends_in_thoughts(text: str) -> bool:
    """Return whether a text opens thoughts and does not close them."""
    return split_thoughts(text).closing != ""


def closes_thoughts(text: str) -> bool:
    """Return whether a text has a mark at which thoughts end."""
    for mark in MARK.finditer(text):
        if mark["closing"]:
            return True
    return False


@lru_cache(maxsize=16)
def _special_tokens(tokenizer: Any) -> dict[str, int]:
    added = {}
    for number, token in tokenizer.added_tokens_decoder.items():
        if token.special:
            added[str(token)] = number
    return dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True)) | added


@lru_cache(maxsize=16)
def _dropped(tokenizer: Any) -> frozenset[int] | None:
    """Return the special tokens that a text leaves out; None = all, because none of them marks thoughts."""
    special = _special_tokens(tokenizer)
    kept = _TOKENS | (_CHANNELS if "<|channel|>" in special else set())
    if special.keys() & kept:
        return frozenset(special[text] for text in special.keys() - kept)
    return None
