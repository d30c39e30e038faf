"""The tokens of a conversation, with the assistant's turns told from everything else."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple

from lit_rlvr.datamodules.reading.bad_row import BadRow
from lit_rlvr.datamodules.reading.chat import MODEL_TURN, Chat
from lit_rlvr.datamodules.reading.conversations import Messages, text_of


class Part(NamedTuple):
    """A part of a conversation.

    token_ids: its tokens. is_written: whether the model writes them. images: how many of its images they show.
    """

    token_ids: list[int]
    is_written: bool
    images: int = 0


_MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")


def split_turns(
    messages: Messages, chat: Chat, tokenizer: Any, opening: str, end: int, source: str
) -> list[Part]:
    """Return the tokens of a conversation up to its last turn of the assistant, in parts that the model reads and
    writes alternately.

    The turns are what the chat template marks with `{% generation %}`. Without marks, a turn is the text of its message
    after the prompt that ends before it, as in episodes, or for a message with more than text (a tool call) what the
    template adds to that prompt.

    Args:
        messages: the conversation, in the form of `Chat.messages`.
        opening: the beginning of every turn that stands in the prompt; a text that repeats it loses it.
        end: the token that ends a turn.
        source: "file:row".

    Raises:
        BadRow: the template does not show which tokens are the assistant's.
    """
    chat.text(messages, tokenizer, source)  # refuses messages that the template does not show
    if _MARKS.search(str(tokenizer.chat_template or "")):
        return _marked_parts(chat.marked(messages, tokenizer, source), end)
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    end_text = str(tokenizer.decode([end]))
    texts: list[tuple[str, bool]] = [(chat.text(messages[: turns[0]], tokenizer, source), False)]
    for i, following in zip(turns, [*turns[1:], None], strict=True):
        said, after = _turn(messages[:following], i, chat, tokenizer, end_text, source)
        texts += [(said.removeprefix(opening), True), (after.removeprefix(end_text), False)]
    tokens = [(list(tokenizer(text, add_special_tokens=False).input_ids), written) for text, written in texts[:-1]]
    return [Part([*ids, end] if written else ids, written) for ids, written in tokens]


def _marked_parts(marked: Sequence[tuple[int, int]], end: int) -> list[Part]:
    """Return runs of tokens that are or are not marked; the token that ends a turn belongs to it.

    Args:
        marked: each token, and 1 if it is the assistant's.
    """
    written = [bool(mark) for _, mark in marked]
    for k in range(1, len(written)):
        written[k] |= written[k - 1] and marked[k][0] == end != marked[k - 1][0]
    runs = groupby(zip((token for token, _ in marked), written, strict=True), key=lambda pair: pair[1])
    parts = [Part([token for token, _ in run], is_written) for is_written, run in runs]
    if not any(part.is_written for part in parts):
        raise BadRow("the chat template marks no token of the assistant's turns with {% generation %}", "prompt")
    return parts if parts[-1].is_written else parts[:-1]


def _turn(messages: Messages, i: int, chat: Chat, tokenizer: Any, end: str, source: str) -> tuple[str, str]:
    """Return the text of turn i, without its end, and the text from its end to the next turn, which begins after the
    last of the messages."""
    content = messages[i]["content"]
    is_text = isinstance(content, str) or all(part.get("type") == "text" for part in content)
    if {*messages[i]} == {"role", "content"} and is_text:
        turn = MODEL_TURN if isinstance(content, str) else [{"type": "text", "text": MODEL_TURN}]
        probe = [*messages[:i], {"role": "assistant", "content": turn}, *messages[i + 1 :]]
        return text_of(content), chat.text(probe, tokenizer, source).rpartition(MODEL_TURN)[2]
    before = chat.text(messages[:i], tokenizer, source).removesuffix(chat.prefill)
    whole, after = (chat.text(some, tokenizer, source, p) for some, p in ((messages[: i + 1], False), (messages, True)))
    said = before + whole.removeprefix(before).partition(end)[0]
    if not whole.startswith(before) or not after.startswith(said):
        raise BadRow(
            "the chat template shows a turn of the assistant otherwise than it lets the model begin one, so its tokens "
            "are not known; use a template that marks them with {% generation %}", "prompt",
        )  # fmt: skip
    return said.removeprefix(before), after.removeprefix(said)
