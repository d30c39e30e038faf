"""Turns a sample into the exact text the model sees: template, system prompt, chat template, prefill."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from jinja2.exceptions import TemplateSyntaxError

from lit_rlvr.datamodules.reading.placeholders import as_parts
from lit_rlvr.datamodules.reading.tool_texts import describe
from lit_rlvr.errors import UserError
from lit_rlvr.types import Sample

OURS = ("tokenize", "add_generation_prompt", "continue_final_message", "conversation", "return_dict", "tools")
"""Arguments of `apply_chat_template` that this module sets."""


@dataclass(frozen=True)
class Chat:
    """The format of prompts. The options are those of `PromptDataModule`."""

    system_prompt: str | None = None
    template: str = "{prompt}"
    prefill: str = ""
    plain_template: str = "{system}{prompt}\n"
    template_kwargs: dict[str, Any] = field(default_factory=dict)
    tools: tuple[dict[str, Any], ...] = ()

    def __post_init__(self) -> None:
        for option, template in (("template", self.template), ("plain_template", self.plain_template)):
            if "{prompt}" not in template:
                raise UserError(f"{option}: {template!r} has no {{prompt}}, the model would not see the question")
        for key in self.template_kwargs:
            if key in OURS:
                raise UserError(f"chat_template_kwargs: {key!r} is set by lit-rlvr and cannot be given")

    def messages(self, sample: Sample) -> list[dict[str, Any]]:
        """The conversation: the template around the last user text, the system prompt in front.

        A `system_prompt` replaces the data's own system message. With images, contents are lists of parts.
        """
        if isinstance(sample.prompt, str):
            messages: list[dict[str, Any]] = [{"role": "user", "content": sample.prompt}]
        else:
            messages = [dict(message) for message in sample.prompt]
        last = max(i for i, message in enumerate(messages) if message["role"] == "user")
        messages[last]["content"] = self._wrap(messages[last]["content"])
        if sample.images:
            messages = as_parts(messages, len(sample.images))
        if self.system_prompt is None:
            return messages
        rest = [message for message in messages if message["role"] != "system"]
        return [{"role": "system", "content": self.system_prompt}, *rest]

    def text(self, messages: list[dict[str, Any]], tokenizer: Any, source: str = "") -> str:
        """The whole prompt as text, special tokens included, to be tokenised without adding any.

        Args:
            messages: the conversation.
            tokenizer: its chat template is applied once; without one (a base model), `plain_template` is used, after
                the tokenizer's beginning-of-text token.
            source: "file:row", for errors.
        """
        if not tokenizer.chat_template:
            if any(not isinstance(message["content"], str) for message in messages):
                raise UserError(f"{source}: images need a model with a chat template, this one has none")
            return _beginning(tokenizer) + self._plain(self._told(messages)) + self.prefill
        text = self.apply(messages, tokenizer, source)
        if self.tools and text == self.apply(messages, tokenizer, source, offer=False):  # it knows of no tools
            text = self.apply(self._told(messages), tokenizer, source)
        return text + self.prefill

    def apply(
        self, messages: list[dict[str, Any]], tokenizer: Any, source: str = "", prompt: bool = True, offer: bool = True
    ) -> str:
        """The model's chat template applied to a conversation.

        Args:
            prompt: end with the beginning of the model's next turn.
            offer: pass the tools to the template.
        """
        more = {"tools": list(self.tools)} if self.tools and offer else {}
        try:
            return str(
                tokenizer.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=prompt, **more, **self.template_kwargs
                )
            )
        except TemplateSyntaxError as error:
            where = tokenizer.name_or_path
            raise UserError(f"model: the chat template of {where} is broken in line {error.lineno}: {error}") from error
        except Exception as error:  # the template is third-party code
            raise UserError(f"{source}: the model's chat template refuses this conversation: {error}") from error

    def _told(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The conversation with the tools described in its system message, for models without a place for them."""
        if not self.tools:
            return messages
        first = messages[0] if messages[0]["role"] == "system" else None
        parts = [] if first is None else [str(first["content"])]
        text = "\n\n".join([*parts, describe(self.tools)])
        return [{"role": "system", "content": text}, *(messages if first is None else messages[1:])]

    def _wrap(self, content: Any) -> Any:
        """The template around a message: around its text, or around the text part of a list of parts."""
        if isinstance(content, str):
            return self.template.replace("{prompt}", content)
        parts = [dict(part) for part in content]
        texts = [part for part in parts if part.get("type") == "text"]
        if texts:
            texts[-1]["text"] = self.template.replace("{prompt}", texts[-1]["text"])
        return parts

    def _plain(self, messages: list[dict[str, Any]]) -> str:
        """`plain_template` filled in, in one pass, so that braces in the data stay unchanged."""
        system = "".join(f"{m['content']}\n\n" for m in messages if m["role"] == "system")
        prompt = "\n\n".join(str(m["content"]) for m in messages if m["role"] != "system")
        values = {"{system}": system, "{prompt}": prompt}
        return re.sub(r"\{system\}|\{prompt\}", lambda match: values[match[0]], self.plain_template)


def _beginning(tokenizer: Any) -> str:
    """The beginning-of-text token if the tokenizer puts one in front of a text, else ""."""
    first = tokenizer("").input_ids[:1]
    return str(tokenizer.bos_token) if first and first[0] == tokenizer.bos_token_id else ""
