"""The tokens between two turns of the model: an observation inside the chat template's markup.

`BetweenTurns` never renders or tokenises the model's own tokens again: it renders a conversation with another turn in
place of the model's, and returns the tokens that follow it; rollouts append these to the sampled tokens. So it does not
matter that a chat template renders earlier turns otherwise when later ones follow, as Qwen3's drops their thoughts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from lit_rlvr.common.log import log
from lit_rlvr.datamodules.reading.chat import MODEL_TURN, Chat, break_up, find_tokens, shared_length
from lit_rlvr.errors import UserError
from lit_rlvr.media import Pixels
from lit_rlvr.policy.families.base import ImageProcessor
from lit_rlvr.speech.prompts import content_text
from lit_rlvr.speech.thoughts import ends_in_thoughts
from lit_rlvr.types import ToolResult

_PROBE = "An observation."
_TRUNCATED = "\n[... cut ...]\n"
_ARGUMENT = "argument"
_QUESTION = {"role": "user", "content": "?"}


@dataclass(frozen=True)
class RenderedObservation:
    """An observation as the model sees it.

    Args:
        text: the observation without the chat template around it.
        token_ids: the tokens with the chat template, each image's placeholder repeated once per image feature.
        pixels: the observation's images.
    """

    text: str
    token_ids: tuple[int, ...]
    pixels: Pixels | None = None


class BetweenTurns:
    """A renderer of observations to tokens.

    Args:
        chat: the format of the prompts.
        tokenizer: the model's tokenizer.
        eos_token_ids: tokens that end a turn.
        role: the chat role of observations, `user` or `tool`.
        processor: returns the model's image processor; called only if there is an image.
    """

    def __init__(
        self,
        chat: Chat,
        tokenizer: Any,
        eos_token_ids: tuple[int, ...],
        role: str,
        processor: Callable[[], ImageProcessor] | None = None,
    ) -> None:
        self._chat = chat
        self._tokenizer = tokenizer
        self._role = role
        self._processor = processor
        added = tokenizer.get_added_vocab()
        self._added_tokens = find_tokens(added)
        self._eos_ids = {*eos_token_ids}
        texts = {}
        for token in eos_token_ids:
            texts[token] = str(tokenizer.decode([token]))
        self._ends = {token: text for token, text in texts.items() if text in added}

    def tokens(
        self, text: str, last: int, max_tokens: int, images: Sequence[Any] = (), results: Sequence[ToolResult] = ()
    ) -> RenderedObservation:
        """Return the observation as the model sees it.

        It breaks up special tokens in the text, so that an observation cannot end its own message or begin another.

        Args:
            text: the text of the observation.
            last: the last token of the model's turn; if it is an end token, the template's is left out.
            max_tokens: longest result in tokens. A longer text loses its middle. If the images do not fit, the text
                says so instead.
            images: PIL images, shown before the text.
            results: the results of tool calls, one message each, in place of text and images.

        Raises:
            UserError: there are images, and the model takes none.
        """
        seen = list(results) or [ToolResult("", text, tuple(images))]
        pictures = tuple(image for result in seen for image in result.images)
        if self._role != "tool" and len(seen) > 1:  # the template shows no tool messages
            seen = [ToolResult("", "\n".join(result.text for result in seen), pictures)]
        if pictures and not self._shows_images:
            if self._role == "tool":
                return self._as_user.tokens(text, last, max_tokens, images, results)
            names = " and ".join(dict.fromkeys(result.name for result in results)) or "a turn"
            raise UserError(
                f"rollout.environment: {self._of_template} does not show the image that {names} returns; use another "
                "template, or return text"
            )
        if pictures and self._processor is not None:
            pixels = self._processor().pixels(pictures)
            observation = self._truncate(seen, last, max_tokens, pixels)
            if len(observation.token_ids) <= max_tokens:
                return observation
            note = f"error: the image does not fit into {max_tokens} tokens\n"
            seen = [ToolResult(r.name, note + r.text if r.images else r.text) for r in seen]
        without_images = []
        for result in seen:
            without_images.append(replace(result, images=()))
        return self._truncate(without_images, last, max_tokens, None)

    def _truncate(
        self, results: Sequence[ToolResult], last: int, max_tokens: int, pixels: Pixels | None
    ) -> RenderedObservation:
        """Cut the middle of the longest text until the tokens fit."""

        def cut(text: str) -> str:
            if len(text) > 32 * max_tokens:
                text = f"{text[: 16 * max_tokens]}{_TRUNCATED}{text[-16 * max_tokens :]}"
            return self._as_text(text)

        truncated = []
        for result in results:
            truncated.append(replace(result, text=cut(result.text)))
        kept = []
        for result in truncated:
            kept.append(list(self._tokenizer(result.text, add_special_tokens=False).input_ids))
        ids = self._encode(truncated, last, pixels)
        while len(ids) > max_tokens and any(kept):
            k = max(range(len(kept)), key=lambda i: len(kept[i]))
            keep = max(len(kept[k]) - (len(ids) - max_tokens) - 8, 0)  # 8: about the tokens of the note
            if keep > 1:
                kept[k] = kept[k][: keep // 2] + kept[k][len(kept[k]) - keep // 2 :]
            else:
                kept[k] = []
            head = self._tokenizer.decode(kept[k][: keep // 2])
            tail = self._tokenizer.decode(kept[k][keep // 2 :])
            truncated[k] = replace(truncated[k], text=self._as_text(f"{head}{_TRUNCATED}{tail}"))
            ids = self._encode(truncated, last, pixels)
        return RenderedObservation("\n".join(result.text for result in truncated), tuple(ids), pixels)

    def message_tokens(self, messages: Sequence[dict[str, Any]], last: int) -> tuple[int, ...] | None:
        """Return chat messages of any roles that follow a turn of the model, whole; None if the template hides one.

        It breaks up special tokens in their texts.

        Args:
            messages: the messages, none of which is the model's; contents are texts, or parts: texts and images, each
                of which becomes the one placeholder that the template gives it.
            last: the last token of the model's turn.
        """
        shown = []
        for message in messages:
            role = message["role"]
            if role == "tool":
                role = self._role
            shown.append({**message, "role": role, "content": self._as_plain(message["content"])})
        try:
            if not self._tokenizer.chat_template:
                end, after = "", "".join(f"\n{content_text(message['content'])}" for message in shown) + "\n"
            elif shown[0]["role"] == "tool":
                end, after = self._after_call(shown)
            else:
                end, after = self._after_text(shown)
        except UserError:  # the template takes no such conversation
            return None
        if not all(text.strip() in after for message in shown for text in _texts(message["content"])):
            return None
        text = self._join_ends(end, after + self._chat.prefill, last)
        return tuple(self._tokenizer(text, add_special_tokens=False).input_ids)

    def _encode(self, results: Sequence[ToolResult], last: int, pixels: Pixels | None) -> list[int]:
        end, after = self._render_after_turn(results)
        ids = list(self._tokenizer(self._join_ends(end, after, last), add_special_tokens=False).input_ids)
        if pixels and self._processor:
            return self._processor().expand(ids, pixels.placeholders)
        return ids

    def _join_ends(self, end: str, after: str, last: int) -> str:
        """Return the text behind a turn, with the end of the turn if its last token is not one.

        Args:
            end: the template's end of a turn.
            after: the text behind it.
            last: the last token of the turn.
        """
        if last not in self._ends:
            after = end + after
        elif not end:
            after = after.removeprefix(self._ends[last])
        elif self._ends[last] != end and not after.endswith(self._header):  # the template continues an open turn
            after = end + after.removesuffix(self._chat.prefill) + self._header
        return after

    def _render_after_turn(self, results: Sequence[ToolResult]) -> tuple[str, str]:
        """Render the text between the model's turn and its next turn.

        Returns:
            The text that ends the model's turn, "" if the template has none, and the text after it.
        """
        if not self._tokenizer.chat_template:
            return "", "\n" + "\n".join(result.text for result in results) + f"\n{self._chat.prefill}"
        messages = [self._message(result) for result in results]
        if self._role == "tool":
            end, after = self._after_call(messages)
        else:
            end, after = self._after_text(messages)
        return end, after + self._chat.prefill

    def _after_text(self, messages: list[dict[str, Any]]) -> tuple[str, str]:
        """Return the end of a turn without a call, and what the template shows of the messages after it."""
        turn = {"role": "assistant", "content": MODEL_TURN}
        rendered = self._render([_QUESTION, turn, *messages]).rpartition(MODEL_TURN)[2]
        end = next((text for text in self._ends.values() if rendered.startswith(text)), "")
        return end, rendered.removeprefix(end)

    def _message(self, result: ToolResult) -> dict[str, Any]:
        content: Any = result.text
        if result.images:
            content = [*([{"type": "image"}] * len(result.images)), {"type": "text", "text": result.text}]
        return {"role": self._role, "content": content} | ({"name": result.name} if self._role == "tool" else {})

    def _after_call(self, messages: list[dict[str, Any]]) -> tuple[str, str]:
        """Return the end of a turn that calls a tool, and what the template shows of the results after it.

        It is what the tool messages add to the conversation. If they also change the turn before them, it is what
        follows the end of that turn.
        """
        name = messages[0]["name"] or "tool"
        call = _call(name, {})
        question = self._render([_QUESTION], prompt=False)
        before = self._render([_QUESTION, call], prompt=False)
        whole = self._render([_QUESTION, call, *messages])
        start = shared_length(question, before)
        ends = []
        for text in self._ends.values():
            if text in before[start:]:
                ends.append((before.rfind(text, start), text))
        place, end = max(ends, default=(len(before), ""))
        if whole.startswith(before[:place] + end):
            return end, whole[place + len(end) :]
        after = self._render([_QUESTION, _call(name, {_ARGUMENT: MODEL_TURN}), *messages]).rpartition(MODEL_TURN)[2]
        places = {}
        for text in self._ends.values():
            if text in after:
                places[text] = after.find(text)
        if not places:
            raise UserError(
                f"rollout.environment: {self._of_template} changes turns of the model when a tool's result "
                "follows; use another template"
            )
        end = min(places, key=lambda text: places[text])
        return end, after[places[end] + len(end) :]

    @cached_property
    def _header(self) -> str:
        """What the prompt of a turn ends with: the header of the turn, its opening and the prefill."""
        return self._render([_QUESTION]).removeprefix(self._render([_QUESTION], prompt=False)) + self._chat.prefill

    def _render(self, messages: list[dict[str, Any]], prompt: bool = True) -> str:
        return self._chat.apply(messages, self._tokenizer, prompt=prompt, offer=False)

    @cached_property
    def opening(self) -> str:
        """The beginning of a turn's text in the prompt, such as `<think>`, if it opens thoughts; else ""."""
        opening = self._chat.opening(self._tokenizer)
        if ends_in_thoughts(opening):
            return opening
        return ""

    def _as_text(self, text: str) -> str:
        """Return the text without special tokens: each has a zero-width space in it."""
        return str(break_up(text.replace(MODEL_TURN, ""), self._added_tokens))

    def _as_plain(self, content: str | list[dict[str, Any]]) -> str | list[dict[str, Any]]:
        """Return a content without special tokens in its texts."""
        if isinstance(content, str):
            return self._as_text(content)
        parts = []
        for part in content:
            if "text" in part:
                parts.append(part | {"text": self._as_text(part["text"])})
            else:
                parts.append(part)
        return parts

    @cached_property
    def min_tokens(self) -> int:
        """Number of tokens that the template puts around an observation without text."""
        return len(self._encode([ToolResult("tool", _TRUNCATED)], -1, None))

    def choose_role(self) -> None:
        """Choose the role of observations: `user` instead of `tool` if the chat template does not render tool messages.

        Raises:
            UserError: the template renders neither, or it offers tools whose results it does not render.
        """
        if not self._tokenizer.chat_template:
            return
        if self._role == "tool" and _PROBE not in self._rendered_probe():
            if self.offers_tools:
                raise UserError(
                    f"rollout.environment: {self._of_template} offers tools but does not show their results; use "
                    "another template, or `offer: false`"
                )
            self._role = "user"
        if _PROBE not in self._rendered_probe():
            raise UserError(
                f"rollout.environment: {self._of_template} does not show messages that follow a turn of the model; use "
                "another template"
            )

    def check_calls(self, find: Callable[[str], list[tuple[str, dict[str, Any]]]]) -> None:
        """Refuse a chat template whose form of tool calls cannot be read.

        Args:
            find: returns the tools and arguments of a turn's calls.

        Raises:
            UserError: it does not find the call that the template renders.
        """
        if not self.offers_tools:
            return
        name = self._chat.tools[0]["function"]["name"]
        arguments = {_ARGUMENT: "some text"}
        text = self._render([_QUESTION, _call(name, arguments)], prompt=False)
        for prompt in (True, False):
            start = self._render([_QUESTION], prompt=prompt)
            if text.startswith(start):
                text = text.removeprefix(start)
                break
        if find(text) != [(name, arguments)]:
            raise UserError(
                f"rollout.environment: {self._of_template} writes tool calls in a form that cannot be read "
                f"({' '.join(text.split())[:80]}); use another template, or `offer: false` with calls as "
                "<call>name(arguments)</call>"
            )

    @cached_property
    def offers_tools(self) -> bool:
        """True if the chat template itself describes the tools to the model."""
        if not self._chat.tools or not self._tokenizer.chat_template:
            return False
        return self._render([_QUESTION]) != self._chat.apply([_QUESTION], self._tokenizer)

    @property
    def _of_template(self) -> str:
        return f"the chat template of {self._tokenizer.name_or_path}"

    @cached_property
    def _shows_images(self) -> bool:
        """True if the template shows an image in the role of observations, where it has one placeholder."""
        if self._processor is None:
            return True
        ids = self._tokenizer(self._rendered_probe((None,)), add_special_tokens=False).input_ids
        return list(ids).count(self._processor().family.prompt_token_id) == 1

    @cached_property
    def _as_user(self) -> BetweenTurns:
        """The renderer of images that the template does not show in role tool."""
        log.warning(
            "rollout.environment: %s shows no image in role tool, so an observation with images is given in role user",
            self._of_template,
        )
        return BetweenTurns(self._chat, self._tokenizer, (*self._eos_ids,), "user", self._processor)

    def _rendered_probe(self, images: tuple[Any, ...] = ()) -> str:
        """Return what the template shows after a turn for the observation `_PROBE`; "" if it refuses such messages."""
        try:
            return self._render_after_turn([ToolResult("tool", _PROBE, images)])[1]
        except UserError:
            return ""


def _texts(content: str | list[dict[str, Any]]) -> list[str]:
    """Return the texts of a content."""
    if isinstance(content, str):
        return [content]
    texts = []
    for part in content:
        if "text" in part:
            texts.append(part["text"])
    return texts


def _call(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return a turn of the model that calls a tool."""
    call = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return {"role": "assistant", "content": "", "tool_calls": [call]}
