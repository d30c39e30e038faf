"""The tokens of a conversation, with the assistant's turns told from everything else."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple

from lit_rlvr.datamodules.reading.cells import BadRow
from lit_rlvr.datamodules.reading.chat import MODEL_TURN, Chat, shared_length
from lit_rlvr.datamodules.reading.conversations import LOSS_KEYS, THOUGHT_KEYS, Messages, text_of
from lit_rlvr.speech.thoughts import MARK, closes_thoughts, ends_in_thoughts


class Part(NamedTuple):
    """A part of a conversation.

    token_ids: its tokens. is_written: whether the model writes them. images: how many images it shows.
    """

    token_ids: list[int]
    is_written: bool
    images: int = 0


class TrainedTurns(NamedTuple):
    """The trained turns of a conversation.

    sequences: each is a list of parts, which the model reads and writes alternately. empty_thoughts: how many turns
    begin with empty thoughts.
    """

    sequences: list[list[Part]]
    empty_thoughts: int


_THOUGHTFUL = re.compile(r"\s*<think>(.*?)</think>\s*(.*)", re.DOTALL)
_MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")


def split_turns(
    messages: Messages,
    chat: Chat,
    tokenizer: Any,
    opening: str,
    ends: Sequence[int],
    source: str,
    trains_empty_thoughts: bool = True,
) -> TrainedTurns:
    """Return the assistant's turns of a conversation, each after the prompt that the model sees before it.

    The model writes what the chat template adds to this prompt, up to the token that ends the turn. The turn continues
    a sequence whose tokens the prompt begins with. Where the template shows earlier turns otherwise by then, such as
    without their thoughts, it begins another sequence. In a template with marks (`{% generation %}`), the conversation
    is one sequence, and what they mark is written. The model reads a turn whose message has one of `LOSS_KEYS` with 0
    or false.

    Args:
        messages: the conversation, in the form of `Chat.messages`.
        chat: the format of the prompts.
        tokenizer: the model's tokenizer.
        opening: the beginning of every turn that stands in the prompt; a text that repeats it loses it.
        ends: the tokens that end a turn; the first ends a turn that the template leaves open.
        source: "file:row".
        trains_empty_thoughts: False = the model reads the empty thoughts at the beginning of a turn.

    Raises:
        BadRow: the template does not show a turn, or which tokens are the assistant's, the assistant speaks first, or
            none of its turns is trained.
    """
    if messages[0]["role"] == "assistant":
        raise BadRow("the conversation begins with a turn of the assistant; leave that turn out", "prompt")
    turns = []
    for i, message in enumerate(messages):
        if message["role"] == "assistant":
            turns.append(i)
    trained = [_is_trained(messages[i], i + 1) for i in turns]
    if not any(trained):
        raise BadRow(f"its turns are left out of the loss ({' or '.join(LOSS_KEYS)}); no turn is left to train on", "")
    messages = [_without_loss_keys(message) for message in messages]
    chat.text(messages, tokenizer, source)  # refuses messages that the template does not show
    if _MARKS.search(str(tokenizer.chat_template or "")):
        parts = _trained_parts(_marked_parts(chat.marked(messages, tokenizer, source), ends), trained)
        return _without_empty_thoughts(parts, tokenizer, trains_empty_thoughts)
    answer = {"role": "assistant", "content": messages[turns[0]]["content"]} | dict.fromkeys(THOUGHT_KEYS, MODEL_TURN)
    if MODEL_TURN in chat.text([*messages[: turns[0]], answer], tokenizer, source, prompt=False):
        messages = [_with_thoughts_apart(message) for message in messages]
    kept = [i for i, is_trained in zip(turns, trained, strict=True) if is_trained]
    texts, empty_thoughts = _sequences(messages, kept, chat, tokenizer, opening, ends, source, trains_empty_thoughts)
    return TrainedTurns([_parts(sequence, tokenizer, ends) for sequence in texts], empty_thoughts)


def _sequences(
    messages: Messages,
    turns: Sequence[int],
    chat: Chat,
    tokenizer: Any,
    opening: str,
    ends: Sequence[int],
    source: str,
    trains_empty_thoughts: bool,
) -> tuple[list[list[str]], int]:
    """Return texts that the model reads and writes alternately, and how many turns begin with empty thoughts.

    The arguments are those of `split_turns`, and `turns` the messages that are trained.
    """
    sequences: list[list[str]] = []
    empty_thoughts = 0
    last = 0
    so_far = ""
    for i in turns:
        prompt, written = _turn(messages[: i + 1], chat, tokenizer, opening, ends, source)
        if so_far and not tokenizer.chat_template:
            probe = [*messages[:last], {"role": "assistant", "content": MODEL_TURN}, *messages[last + 1 : i]]
            prompt = so_far + chat.text(probe, tokenizer, source).rpartition(MODEL_TURN)[2]
        read = _empty_thoughts(written)
        if read:
            empty_thoughts += 1
        if trains_empty_thoughts:
            read = 0
        last = i
        if not so_far or not prompt.startswith(so_far):
            sequences.append([])
            so_far = ""
        sequences[-1] += [prompt.removeprefix(so_far) + written[:read], written[read:]]
        so_far = prompt + written
    return sequences, empty_thoughts


def _empty_thoughts(text: str) -> int:
    """Return the number of characters of the empty thoughts that a turn begins with, and the white space behind."""
    closing = next((mark for mark in MARK.finditer(text) if mark["closing"]), None)
    if closing is None or MARK.sub("", text[: closing.end()]).strip():
        return 0
    return len(text) - len(text[closing.end() :].lstrip())


def _with_thoughts_apart(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message whose text begins with thoughts with these under `THOUGHT_KEYS`."""
    content = message["content"]
    if message["role"] == "assistant" and isinstance(content, str):
        match = _THOUGHTFUL.fullmatch(content)
    else:
        match = None
    if match is None or any(key in message for key in THOUGHT_KEYS):
        return message
    if match[1].strip():
        thoughts = dict.fromkeys(THOUGHT_KEYS, match[1].strip())
    else:
        thoughts = {}
    return message | {"content": match[2]} | thoughts


def _parts(texts: Sequence[str], tokenizer: Any, ends: Sequence[int]) -> list[Part]:
    """Return the parts of texts that the model reads and writes alternately, each turn with its end."""
    parts = []
    for k, text in enumerate(texts):
        ids = list(tokenizer(text, add_special_tokens=False).input_ids)
        is_written = k % 2 == 1
        if is_written and (not ids or ids[-1] not in ends):
            ids.append(ends[0])
        parts.append(Part(ids, is_written))
    return parts


def _without_loss_keys(message: dict[str, Any]) -> dict[str, Any]:
    keys = {}
    for key, item in message.items():
        if key not in LOSS_KEYS:
            keys[key] = item
    return keys


def _is_trained(message: dict[str, Any], number: int) -> bool:
    """Return False if the message leaves itself out of the loss."""
    marks = {}
    for key in LOSS_KEYS:
        if key in message:
            marks[key] = message[key]
    for key, value in marks.items():
        if value not in (0, 1):
            raise BadRow(
                f"{key} of message {number} is {value!r}; give 1 (true), or 0 (false) to leave it out", "prompt"
            )
    return all(marks.values())


def _trained_parts(parts: list[Part], trained: Sequence[bool]) -> list[Part]:
    """Return the parts with the turns that are not trained as ones that the model reads, up to the last trained turn.

    Args:
        parts: the parts of a conversation.
        trained: for each turn of the assistant, whether it is in the loss.
    """
    if all(trained):
        return parts
    if sum(part.is_written for part in parts) != len(trained):
        raise BadRow(
            f"it leaves turns of the assistant out of the loss ({' or '.join(LOSS_KEYS)}), and the chat template does "
            "not mark each turn",
            "prompt",
        )
    left = iter(trained)
    pieces = []
    for part in parts:
        pieces.append((part.is_written and next(left), part.token_ids))
    results = []
    for is_written, run in groupby(pieces, key=lambda piece: piece[0]):
        token_ids = []
        for _, ids in run:
            token_ids += ids
        results.append(Part(token_ids, is_written))
    if results[-1].is_written:
        return results
    return results[:-1]


def _marked_parts(marked: Sequence[tuple[int, int]], ends: Sequence[int]) -> list[Part]:
    """Return runs of tokens that are or are not marked; the token that ends a turn belongs to it.

    Args:
        marked: each token, and 1 if it is the assistant's.
        ends: the tokens that end a turn.
    """
    parts: list[Part] = [Part([], False)]
    for token, mark in marked:
        is_end = token in ends and parts[-1].is_written and not {*ends} & {*parts[-1].token_ids}
        if parts[-1].is_written != bool(mark or is_end):
            parts.append(Part([], not parts[-1].is_written))
        parts[-1].token_ids.append(token)
    if not any(part.is_written for part in parts):
        raise BadRow("the chat template marks no token of the assistant's turns with {% generation %}", "prompt")
    if parts[-1].is_written:
        return parts
    return parts[:-1]


def _without_empty_thoughts(parts: list[Part], tokenizer: Any, trains: bool) -> TrainedTurns:
    """Return the parts as one sequence, in which the model reads empty thoughts unless it trains on them."""
    turns = 0
    for read, written in zip(parts[::2], parts[1::2], strict=True):
        count = _empty_thoughts(str(tokenizer.decode(written.token_ids)))
        if count:
            turns += 1
            if not trains:
                tokens = _tokens_of(count, written.token_ids, tokenizer)
                read.token_ids.extend(written.token_ids[:tokens])
                del written.token_ids[:tokens]
    return TrainedTurns([parts], turns)


def _tokens_of(characters: int, token_ids: Sequence[int], tokenizer: Any) -> int:
    """Return the number of tokens whose text has at least `characters` characters; all of them if none has."""
    for count in range(1, len(token_ids)):
        if len(tokenizer.decode(token_ids[:count])) >= characters:
            return count
    return len(token_ids)


def _text_after(
    messages: Messages, calls: Sequence[str], words: Sequence[str], chat: Chat, tokenizer: Any, source: str
) -> str:
    """Return what the template writes between the last message and the text of the next one, of another role.

    Where no token ends the last message, one in this text does: that of the next role.

    Args:
        messages: the conversation up to the last message.
        calls: the names of the tools that the last message calls; one of them answers next, else the user.
        words: what the last message consists of.
        chat: the format of the prompts.
        tokenizer: the model's tokenizer.
        source: "file:row", for messages.
    """
    if calls:
        role = {"role": "tool", "name": calls[0]}
    else:
        role = {"role": "user"}
    shown = chat.text([*messages, role | {"content": MODEL_TURN}], tokenizer, source, prompt=False)
    last_word = MODEL_TURN
    if words:
        last_word = words[-1]
    return shown.rpartition(MODEL_TURN)[0].rpartition(last_word)[2]


class _Said(NamedTuple):
    """What a turn of the assistant says.

    pieces: its text between marks. thoughts: those that stand apart. calls: the names of its tool calls. is_text: it
    has no calls and no images.
    """

    pieces: list[str]
    thoughts: str
    calls: list[str]
    is_text: bool

    def missing(self, shown: str) -> list[str]:
        """Return which of its parts a text does not show."""
        missing = []
        for what, parts in {"tool calls": self.calls, "thoughts": [self.thoughts.strip()], "text": self.pieces}.items():
            if not all(part in shown for part in parts):
                missing.append(what)
        return missing


def _said(turn: dict[str, Any]) -> _Said:
    content = turn["content"]
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    texts = [part["text"] for part in content if part["type"] == "text"]
    pieces = []
    for text in texts:
        for piece in MARK.sub("\0", text).split("\0"):
            pieces.append(piece.strip())
    calls = []
    for call in turn.get("tool_calls", ()):
        calls.append(call.get("function", call)["name"])
    thoughts = next((turn[key] for key in THOUGHT_KEYS if key in turn), "")
    return _Said(pieces, thoughts, calls, not calls and len(texts) == len(content))


def _end_texts(tokenizer: Any, ends: Sequence[int]) -> list[str]:
    """Return the texts of the tokens that end a turn, of those that the tokenizer does not split."""
    decoded = [str(tokenizer.decode([end])) for end in ends]
    added = tokenizer.get_added_vocab()
    return [text for text in decoded if text in added]


def _turn(
    messages: Messages, chat: Chat, tokenizer: Any, opening: str, ends: Sequence[int], source: str
) -> tuple[str, str]:
    """Return the prompt before the last of the messages, and what the model writes after it, with the end of the turn.

    It writes what the template adds to this prompt or, where the template changes the prompt, to the conversation's
    first. If this is not the whole text, as in templates that drop thoughts, it writes the text itself.

    Args:
        messages: the conversation up to the turn.
        chat: the format of the prompts.
        tokenizer: the model's tokenizer.
        opening: the beginning of every turn that stands in the prompt.
        ends: the tokens that end a turn.
        source: "file:row", for messages.
    """
    *before, turn = messages
    name = f"of the assistant's message {len(messages)}"
    text = text_of(turn["content"])
    said = _said(turn)
    if said.is_text and not any([*said.pieces, said.thoughts]):
        raise BadRow(f"the assistant's message {len(messages)} is empty", "prompt")
    if closes_thoughts(opening) and (said.thoughts or (closes_thoughts(text) and not _empty_thoughts(text))):
        raise BadRow(
            f"the prompt ends the thoughts {name} before they begin; set data.chat.chat_template_kwargs "
            "(enable_thinking: true), or leave them out",
            "prompt",
        )
    prompt = chat.text(before, tokenizer, source)
    header, written, is_shown = _added(messages, chat, tokenizer, source)
    end_texts = _end_texts(tokenizer, ends)
    end = min((end for end in end_texts if end in written), key=written.find, default="")
    if end:
        written = written.partition(end)[0]
    elif tokenizer.chat_template:
        words = [word for word in (*said.pieces, *said.calls) if word]
        after = _text_after(messages, said.calls, words, chat, tokenizer, source)
        end = max((end for end in end_texts if end in after), key=after.rfind, default="")
    missing = said.missing(written if is_shown else "")
    if missing and said.is_text and (not said.thoughts or ends_in_thoughts(opening)):
        answer = text.removeprefix(opening)
        if said.thoughts:
            answer = f"{said.thoughts}\n</think>\n\n{answer}"
        if end:
            answer = answer.partition(end)[0]
        return prompt + header, answer + end
    if missing:
        addition = ""
        if said.calls and missing[0] != "tool calls":
            addition = " next to its tool calls"
        raise BadRow(
            f"the chat template does not show the {missing[0]} {name}{addition} after the prompt before it; use a "
            "template that does, or leave them out",
            "prompt",
        )
    return prompt + header, written + end


def _added(messages: Messages, chat: Chat, tokenizer: Any, source: str) -> tuple[str, str, bool]:
    """Return what the last of the messages adds to the prompt before it, or to the conversation's first prompt.

    Args:
        messages: the conversation up to the turn.
        chat: the format of the prompts.
        tokenizer: the model's tokenizer.
        source: "file:row", for messages.

    Returns:
        The turn's header if it is added too, as after a tool's result; the rest of what is added; whether it follows
        all of the prompt but white space and the prefill.
    """
    *before, turn = messages
    opening = messages[: next(i for i, message in enumerate(messages) if message["role"] == "assistant")]
    added = ""
    is_shown = False
    for talk in (before, opening) if tokenizer.chat_template else ():
        prompt, whole = chat.text(talk, tokenizer, source), chat.text([*talk, turn], tokenizer, source, prompt=False)
        shared = shared_length(prompt, whole)
        added = whole[shared:]
        is_shown = not prompt[shared:].removesuffix(chat.prefill).strip()
        if is_shown:
            break
    header = chat.text(opening, tokenizer, source).removeprefix(chat.text(opening, tokenizer, source, prompt=False))
    rest = added.removeprefix(header)
    return added.removesuffix(rest), rest, is_shown
