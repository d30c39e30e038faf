"""The tokens between two turns of the model: an observation inside the chat template's markup.

`BetweenTurns` never renders or tokenises the model's own tokens again. It renders a conversation with a placeholder in
the model's place, and returns the tokens that follow the placeholder; rollouts append these to the sampled tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from lit_rlvr.datamodules.reading.chat import Chat
from lit_rlvr.errors import UserError
from lit_rlvr.types import Pixels

if TYPE_CHECKING:
    from lit_rlvr.policy.images import ImageProcessor

_TURN = "\ue000"  # placeholder of a turn of the model; a private code point, which observations lose
_PROBE = "An observation."
_TRUNCATED = "\n[... cut ...]\n"
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
        self, chat: Chat, tokenizer: Any, eos_token_ids: tuple[int, ...], role: str,
        processor: Callable[[], ImageProcessor] | None = None,
    ) -> None:  # fmt: skip
        self._chat, self._tokenizer, self._role, self._processor = chat, tokenizer, role, processor
        self._eos_texts = {token: str(tokenizer.decode([token])) for token in eos_token_ids}
        self._special_tokens = sorted(tokenizer.get_added_vocab(), key=len, reverse=True)

    def tokens(self, text: str, last: int, max_tokens: int, images: Sequence[Any] = ()) -> RenderedObservation:
        """Return the observation as the model sees it.

        It breaks up special tokens in the text, so that an observation cannot end its own message or begin another.

        Args:
            last: the last token of the model's turn; if it is an end token, the result has no second one.
            max_tokens: longest result in tokens. A longer text loses its middle. If the images do not fit, the text
                says so instead.
            images: PIL images, shown before the text.

        Raises:
            UserError: there are images, and the model takes none.
        """
        pixels = self._processor().pixels(images) if images and self._processor is not None else None
        if pixels is not None:
            fitted, ids = self._truncate(text, last, max_tokens, pixels)
            if len(ids) <= max_tokens:
                return RenderedObservation(fitted, tuple(ids), pixels)
            text = f"error: the image does not fit into {max_tokens} tokens\n{text}"
        fitted, ids = self._truncate(text, last, max_tokens, None)
        return RenderedObservation(fitted, tuple(ids))

    def _truncate(self, text: str, last: int, max_tokens: int, pixels: Pixels | None) -> tuple[str, list[int]]:
        """Cut the text until its tokens fit; return both."""
        if len(text) > 32 * max_tokens:
            text = f"{text[: 16 * max_tokens]}{_TRUNCATED}{text[-16 * max_tokens :]}"
        text = self._break_special_tokens(text)
        ids = self._encode(text, last, pixels)
        kept = list(self._tokenizer(text, add_special_tokens=False).input_ids)
        while len(ids) > max_tokens and kept:
            keep = max(len(kept) - (len(ids) - max_tokens) - 8, 0)  # 8: about the tokens of the note
            kept = kept[: keep // 2] + kept[len(kept) - keep // 2 :] if keep > 1 else []
            head, tail = (self._tokenizer.decode(part) for part in (kept[: keep // 2], kept[keep // 2 :]))
            text = self._break_special_tokens(f"{head}{_TRUNCATED}{tail}")
            ids = self._encode(text, last, pixels)
        return text, ids

    def _encode(self, text: str, last: int, pixels: Pixels | None) -> list[int]:
        after = self._render_after_turn(text, 0 if pixels is None else len(pixels.images))
        end = self._eos_texts.get(last, "")
        after = after[len(end) :] if end and after.startswith(end) else after
        ids = list(self._tokenizer(after, add_special_tokens=False).input_ids)
        if pixels is None or self._processor is None:
            return ids
        return self._processor().expand(ids, [(t, h, w) for t, h, w in pixels.grid.tolist()])

    def _render_after_turn(self, text: str, images: int = 0) -> str:
        """Render the text between the model's turn and its next turn."""
        if not self._tokenizer.chat_template:
            return f"\n{text}\n{self._chat.prefill}"
        content: Any = [*([{"type": "image"}] * images), {"type": "text", "text": text}] if images else text
        messages = [_QUESTION, _assistant(_TURN), {"role": self._role, "content": content}]
        return self._chat.apply(messages, self._tokenizer).rpartition(_TURN)[2] + self._chat.prefill

    def _break_special_tokens(self, text: str) -> str:
        """Return the text with a zero-width space in each special token."""
        for token in self._special_tokens:
            if len(token) > 1 and not token.isspace():
                text = text.replace(token, f"{token[0]}\u200b{token[1:]}")
        return text.replace(_TURN, "")

    @cached_property
    def min_tokens(self) -> int:
        """Number of tokens that the template puts around an observation without text."""
        return len(self._encode(_TRUNCATED, -1, None))

    def choose_role(self) -> None:
        """Choose the role of observations: `user` instead of `tool` if the chat template does not render tool messages.

        Raises:
            UserError: the template renders neither, or it changes earlier turns when later ones follow, so that the
                model would see other tokens in use than in training.
        """
        if not self._tokenizer.chat_template:
            return
        if self._role == "tool" and not self._renders_observations():
            self._role = "user"
        if not self._renders_observations():
            raise UserError(
                f"rollout.environment: the chat template of {self._tokenizer.name_or_path} does not show messages that "
                "follow a turn of the model; use another template"
            )
        for turn in (_TURN, f"<think>\n{_TURN}\n</think>\n\n{_TURN}"):
            talk = [_QUESTION, _assistant(turn)]
            for more in (
                [{"role": self._role, "content": "."}],
                [_assistant(turn), {"role": self._role, "content": "."}],
            ):
                before = self._chat.apply(talk, self._tokenizer, prompt=False)
                talk = [*talk, *more]
                if not self._chat.apply(talk, self._tokenizer, prompt=False).startswith(before.rstrip()):
                    raise UserError(
                        f"rollout.environment: the chat template of {self._tokenizer.name_or_path} changes earlier "
                        f"turns of the model when a {self._role!r} message follows, so episodes cannot be appended to; "
                        "use tools if it does so for user messages only, or another template"
                    )

    def _renders_observations(self) -> bool:
        """Return True if the template renders an observation."""
        try:
            return _PROBE in self._render_after_turn(_PROBE)
        except UserError:  # it refuses such messages
            return False


def _assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}
