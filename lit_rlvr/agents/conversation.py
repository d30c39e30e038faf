"""Conversations as tokens: a whole prompt in the model's chat template, and what follows a sampled message."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from copy import copy, deepcopy
from typing import Any

from lit_rlvr.datamodules.reading.between_turns import BetweenTurns
from lit_rlvr.datamodules.reading.chat import Chat, break_up, find_tokens
from lit_rlvr.types import Sample

Message = dict[str, Any]


class Conversations:
    """Renders conversations of agents; a thread of its own may call it.

    Args:
        chat: the format of the data's prompts. Its system prompt and template are in the task that the agent gets.
        tokenizer: the model's.
        eos_token_ids: tokens that end a turn.
    """

    def __init__(self, chat: Chat, tokenizer: Any, eos_token_ids: tuple[int, ...]) -> None:
        self._tokenizer = deepcopy(tokenizer)  # threads must not share one
        self._eos_token_ids = eos_token_ids
        self._added_tokens = find_tokens(self._tokenizer.get_added_vocab())
        self._of_rows: dict[str, Conversations] = {}  # by the arguments of the chat template
        self._use(chat.with_tools(()))

    def _use(self, chat: Chat) -> None:
        self._chat = chat
        self._between = BetweenTurns(chat, self._tokenizer, self._eos_token_ids, "tool")
        self._between.choose_role()

    def for_row(self, sample: Sample) -> Conversations:
        """Return what renders conversations of a row, which may have arguments of the chat template of its own."""
        chat = self._chat.for_row(sample)
        if chat is self._chat:
            return self
        name = json.dumps(chat.chat_template_kwargs, sort_keys=True, default=str)
        if name not in self._of_rows:
            self._of_rows[name] = copy(self)
            self._of_rows[name]._use(chat)
        return self._of_rows[name]

    @property
    def opening(self) -> str:
        """The beginning of a turn's text that stands in the prompt, if it opens thoughts; else ""."""
        return self._between.opening

    def prompt(self, messages: Sequence[Message], tools: tuple[Any, ...]) -> tuple[int, ...]:
        """Return the tokens of a whole prompt; special tokens in its texts are broken up.

        Raises:
            UserError: the chat template refuses the conversation, or does not show all of it.
        """
        chat = self._chat.with_tools(break_up(list(tools), self._added_tokens))
        plain = break_up(with_tool_names(messages), self._added_tokens)
        text = chat.text(plain, self._tokenizer, "messages")
        return tuple(self._tokenizer(text, add_special_tokens=False).input_ids)

    def after_turn(self, messages: Sequence[Message], added: int, last: int) -> tuple[int, ...] | None:
        """Return the tokens of the last messages, which follow a turn of the model; None if the template hides one.

        Args:
            messages: the whole conversation.
            added: how many messages follow the turn.
            last: the last token of the turn.
        """
        return self._between.message_tokens(with_tool_names(messages)[-added:], last)


def with_tool_names(messages: Sequence[Message]) -> list[Message]:
    """Return messages in which the results of tools have the names of their tools."""
    names: dict[str, str] = {}
    named = []
    for message in messages:
        for call in message.get("tool_calls", ()):
            names[call["id"]] = call["function"]["name"]
        if message["role"] == "tool":
            name = message["name"] or names.get(message["tool_call_id"], "tool")
            message = {**message, "name": name}
        named.append(message)
    return named


def fingerprint(messages: Sequence[Message], tools: tuple[Any, ...]) -> str:
    """Return a digest of a conversation's content: roles, texts without blanks around them, calls, and tools.

    The ids of tool calls are not part of it, because some clients change them.
    """
    content = []
    for message in messages:
        calls = [call["function"] for call in message.get("tool_calls", ())]
        content.append([message["role"], message["content"].strip(), calls])
    return hashlib.sha256(json.dumps([content, list(tools)], sort_keys=True).encode()).hexdigest()
