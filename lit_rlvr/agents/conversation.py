"""Conversations as tokens: a whole prompt in the model's chat template, and what follows a sampled message."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from copy import copy, deepcopy
from typing import Any

from lit_rlvr.datamodules.reading.between_turns import BetweenTurns
from lit_rlvr.datamodules.reading.chat import Chat, break_up, find_tokens
from lit_rlvr.errors import UserError
from lit_rlvr.media import Pixels
from lit_rlvr.policy.families.base import ImageProcessor
from lit_rlvr.types import Sample

Message = dict[str, Any]
Text = tuple[tuple[int, ...], Pixels | None]
"""Tokens, and the images of the placeholders among them."""


class Conversations:
    """Renders conversations of agents; a thread of its own may call it.

    Args:
        chat: the format of the data's prompts. Its system prompt and template are in the task that the agent gets.
        tokenizer: the model's.
        eos_token_ids: tokens that end a turn.
        processor: returns the model's image processor; called only if there is an image.
    """

    def __init__(
        self,
        chat: Chat,
        tokenizer: Any,
        eos_token_ids: tuple[int, ...],
        processor: Callable[[], ImageProcessor] | None = None,
    ) -> None:
        self._processor = processor
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

    def prompt(self, messages: Sequence[Message], tools: tuple[Any, ...]) -> Text:
        """Return a whole prompt; special tokens in its texts are broken up.

        Raises:
            UserError: the chat template refuses the conversation, or does not show all of it.
        """
        chat = self._chat.with_tools(break_up(list(tools), self._added_tokens))
        images = images_of(messages)
        plain = break_up(without_images(with_tool_names(messages)), self._added_tokens)
        text = chat.text(plain, self._tokenizer, "messages")
        return self._with_images(self._tokenizer(text, add_special_tokens=False).input_ids, images)

    def _with_images(self, token_ids: Sequence[int], images: Sequence[Any]) -> Text:
        """Put the placeholders of images in place of the one of each.

        Raises:
            UserError: the chat template does not show each image once.
        """
        if not images or self._processor is None:
            return tuple(token_ids), None
        processor = self._processor()
        pixels = processor.pixels(images)
        return tuple(processor.expand(token_ids, pixels.placeholders)), pixels

    def after_turn(self, messages: Sequence[Message], added: int, last: int) -> Text | None:
        """Return the last messages, which follow a turn of the model; None if the template hides one.

        Args:
            messages: the whole conversation.
            added: how many messages follow the turn.
            last: the last token of the turn.
        """
        plain = without_images(with_tool_names(messages))[-added:]
        token_ids = self._between.message_tokens(plain, last)
        if token_ids is None:
            return None
        try:
            return self._with_images(token_ids, images_of(messages[-added:]))
        except UserError:  # the template shows no images there
            return None


def images_of(messages: Sequence[Message]) -> list[Any]:
    """Return the images of messages, in their order."""
    parts = []
    for message in messages:
        if not isinstance(message["content"], str):
            parts.extend(message["content"])
    images = []
    for part in parts:
        if part["type"] == "image":
            images.append(part["image"])
    return images


def without_images(messages: Sequence[Message]) -> list[Message]:
    """Return messages as chat templates take them: if there are images, all contents are parts, and images have no
    data."""
    if not images_of(messages):
        return list(messages)
    plain = []
    for message in messages:
        parts: Any = message["content"]
        if isinstance(parts, str):
            parts = [{"type": "text", "text": parts}]
        shown = []
        for part in parts:
            shown.append({name: value for name, value in part.items() if name in ("type", "text")})
        plain.append({**message, "content": shown})
    return plain


def with_marks(token_ids: Sequence[int], pixels: Pixels | None) -> tuple[int, ...]:
    """Return a prompt's tokens with a number below 0, which names the image, in place of each of its placeholders.

    Prompts that begin alike have the same of these, and so the same images.
    """
    if pixels is None:
        return tuple(token_ids)
    marked = list(token_ids)
    for number, (span, image) in enumerate(zip(pixels.spans(token_ids), pixels.images, strict=True)):
        digest = hashlib.sha256(f"{number} {image.size}".encode() + image.tobytes())
        name = -1 - int.from_bytes(digest.digest()[:7], "big")
        marked[span.start : span.stop] = [name] * len(span)
    return tuple(marked)


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
    """Return a digest of a conversation's content: roles, texts without blanks around them, images, calls, and tools.

    The ids of tool calls are not part of it, because some clients change them.
    """
    content = []
    for message in messages:
        calls = []
        for call in message.get("tool_calls", ()):
            calls.append(call["function"])
        content.append([message["role"], _compared(message["content"]), calls])
    return hashlib.sha256(json.dumps([content, list(tools)], sort_keys=True).encode()).hexdigest()


def _compared(content: str | list[Message]) -> str | list[str]:
    """Return what of a content makes a difference: texts without blanks around them, and digests of images."""
    if isinstance(content, str):
        return content.strip()
    return [part.get("digest") or part["text"].strip() for part in content]
