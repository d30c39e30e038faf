"""The tokens of a conversation, with the assistant's turns told from everything else."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from lit_rlvr.datamodules.reading.bad_row import BadRow
from lit_rlvr.datamodules.reading.chat import MODEL_TURN, Chat
from lit_rlvr.datamodules.reading.conversations import LOSS_KEYS, Messages, text_of


class Part(NamedTuple):
    """A part of a conversation.

    token_ids: its tokens. is_written: whether the model writes them. images: how many images it shows.
    """

    token_ids: list[int]
    is_written: bool
    images: int = 0


_MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")


def split_turns(
    messages: Messages, chat: Chat, tokenizer: Any, opening: str, ends: Sequence[int], source: str
) -> list[Part]:
    """Return the tokens of a conversation up to its last turn of the assistant, in parts that the model reads and
    writes alternately.

    The turns are what the chat template marks with `{% generation %}`. Without marks, a turn is what the template adds
    to the prompt that ends before it, or, where the template changes the text, the text itself. The model reads a turn
    whose message has one of `LOSS_KEYS` with 0 or false.

    Args:
        messages: the conversation, in the form of `Chat.messages`.
        opening: the beginning of every turn that stands in the prompt; a text that repeats it loses it.
        ends: the tokens that end a turn; the first ends a turn that the template leaves open.
        source: "file:row".

    Raises:
        BadRow: the template does not show which tokens are the assistant's, the assistant speaks first, or none of its
            turns is trained.
    """
    if messages[0]["role"] == "assistant":
        raise BadRow("the conversation begins with a turn of the assistant; leave that turn out", "prompt")
    trained = [_is_trained(m, number) for number, m in enumerate(messages, 1) if m["role"] == "assistant"]
    messages = [{key: item for key, item in message.items() if key not in LOSS_KEYS} for message in messages]
    chat.text(messages, tokenizer, source)  # refuses messages that the template does not show
    if _MARKS.search(str(tokenizer.chat_template or "")):
        return _trained_parts(_marked_parts(chat.marked(messages, tokenizer, source), ends[0]), trained)
    added = tokenizer.get_added_vocab()
    end_texts = [text for text in (str(tokenizer.decode([end])) for end in ends) if text in added]
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    texts: list[tuple[str, bool]] = [(chat.text(messages[: turns[0]], tokenizer, source), False)]
    for i, following in zip(turns, [*turns[1:], None], strict=True):
        texts += _turn(messages[:following], i, chat, tokenizer, opening, end_texts, source)
    parts = [Part(list(tokenizer(text, add_special_tokens=False).input_ids), written) for text, written in texts[:-1]]
    parts = [
        Part([*ids, ends[0]], True) if written and ids[-1:] not in [[end] for end in ends] else Part(ids, written)
        for ids, written, _ in parts
    ]
    return _trained_parts(parts, trained)


def _is_trained(message: dict[str, Any], number: int) -> bool:
    """Return False if the message leaves itself out of the loss."""
    found = {key: message[key] for key in LOSS_KEYS if key in message}
    for key, value in found.items():
        if value not in (0, 1):
            raise BadRow(
                f"{key} of message {number} is {value!r}; give 1 (true), or 0 (false) to leave it out", "prompt"
            )
    return all(found.values())


def _trained_parts(parts: list[Part], trained: Sequence[bool]) -> list[Part]:
    """Return the parts with the turns that are not trained as ones that the model reads, up to the last trained turn.

    Args:
        trained: for each turn of the assistant, whether it is in the loss.
    """
    if all(trained):
        return parts
    if sum(part.is_written for part in parts) != len(trained) or not any(trained):
        why = "the chat template does not mark each turn" if any(trained) else "no turn is left to train on"
        raise BadRow(
            f"it leaves turns of the assistant out of the loss ({' or '.join(LOSS_KEYS)}), and {why}", "prompt"
        )
    left, made = iter(trained), [Part([], False)]
    for part in parts:
        if (part.is_written and next(left)) != made[-1].is_written:
            made.append(Part([], not made[-1].is_written))
        made[-1].token_ids.extend(part.token_ids)
    return made if made[-1].is_written else made[:-1]


def _marked_parts(marked: Sequence[tuple[int, int]], end: int) -> list[Part]:
    """Return runs of tokens that are or are not marked; the token that ends a turn belongs to it.

    Args:
        marked: each token, and 1 if it is the assistant's. end: the token that ends a turn.
    """
    parts: list[Part] = [Part([], False)]
    for token, mark in marked:
        is_end = token == end and parts[-1].is_written and end not in parts[-1].token_ids
        if parts[-1].is_written != bool(mark or is_end):
            parts.append(Part([], not parts[-1].is_written))
        parts[-1].token_ids.append(token)
    if not any(part.is_written for part in parts):
        raise BadRow("the chat template marks no token of the assistant's turns with {% generation %}", "prompt")
    return parts if parts[-1].is_written else parts[:-1]


def _turn(
    messages: Messages, i: int, chat: Chat, tokenizer: Any, opening: str, ends: Sequence[str], source: str
) -> list[tuple[str, bool]]:
    """Return the text of turn i with its end, and the text between it and the next turn, which begins after the last of
    the messages."""
    message, content = messages[i], messages[i]["content"]
    before = chat.text(messages[:i], tokenizer, source).removesuffix(chat.prefill)
    whole = chat.text(messages[: i + 1], tokenizer, source, prompt=False)
    said = _up_to_end(whole.removeprefix(before), ends) if whole.startswith(before) else ""
    is_text = isinstance(content, str) or all(part.get("type") == "text" for part in content)
    if {*message} == {"role", "content"} and is_text:
        text = text_of(content)
        if not text.strip():
            raise BadRow(f"the assistant's message {i + 1} is empty", "prompt")
        turn = MODEL_TURN if isinstance(content, str) else [{"type": "text", "text": MODEL_TURN}]
        probe = [*messages[:i], {"role": "assistant", "content": turn}, *messages[i + 1 :]]
        after = chat.text(probe, tokenizer, source).rpartition(MODEL_TURN)[2]
        end = next((end for end in ends if after.startswith(end)), "")
        if tokenizer.chat_template and text.strip() in said:
            end = said.rpartition(text.strip())[2]
            if not after.startswith(end):  # the text's own white space precedes the end
                end = end.removeprefix(text[len(text.rstrip()) :])
        else:
            said = text.removeprefix(opening)
        return [(said, True), (after.removeprefix(end), False)]
    names = [call.get("function", call)["name"] for call in message.get("tool_calls", ())]
    end = next((end for end in ends if said.endswith(end)), "")
    if not end or not all(name in said for name in names):
        raise BadRow(
            f"the chat template does not show {'the tool calls' if names else 'this form'} of the assistant's message "
            f"{i + 1} after the prompt before it; use a template that does", "prompt",
        )  # fmt: skip
    count = (before + said).count(end)  # a template may show earlier turns otherwise, but ends each
    return [(said, True), (chat.text(messages, tokenizer, source).split(end, count)[-1], False)]


def _up_to_end(text: str, ends: Sequence[str]) -> str:
    """Return the text up to the first text that ends a turn, with it; all of it without one."""
    places = [place + len(end) for end in ends if (place := text.find(end)) >= 0]
    return text[: min(places, default=len(text))]
