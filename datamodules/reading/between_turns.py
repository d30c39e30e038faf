"""The tokens between two turns of the model: what the chat template writes around an observation.

The model's own tokens are never rendered or tokenised again. A conversation with a placeholder in the model's place is
rendered, and what follows the placeholder is appended to the tokens that the model sampled.
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

_TURN = "\ue000"  # stands for a turn of the model; a private code point, removed from observations
_PROBE = "An observation."
_CUT = "\n[... cut ...]\n"
_QUESTION = {"role": "user", "content": "?"}


@dataclass(frozen=True)
class Shown:
    """An observation as the model sees it.

    Args:
        text: without the chat template around it.
        token_ids: with it, each image's placeholder repeated once per image feature.
        pixels: its images.
    """

    text: str
    token_ids: tuple[int, ...]
    pixels: Pixels | None = None


class BetweenTurns:
    """Turns observations into tokens.

    Args:
        chat: the format of the prompts.
        tokenizer: the model's.
        eos_token_ids: tokens that end a turn.
        role: whose messages the observations are, `user` or `tool`.
        processor: makes the model's image processor, when there is an image.
    """

    def __init__(
        self, chat: Chat, tokenizer: Any, eos_token_ids: tuple[int, ...], role: str,
        processor: Callable[[], ImageProcessor] | None = None,
    ) -> None:  # fmt: skip
        self._chat, self._tokenizer, self._role, self._processor = chat, tokenizer, role, processor
        self._ends = {token: str(tokenizer.decode([token])) for token in eos_token_ids}
        self._marked = sorted(tokenizer.get_added_vocab(), key=len, reverse=True)

    def tokens(self, text: str, last: int, most: int, images: Sequence[Any] = ()) -> Shown:
        """The observation as the model sees it.

        Special tokens in the text are broken up, so that an observation cannot end its own message or begin another.

        Args:
            last: the last token of the model's turn; if it ends the message, the template's own end is left out.
            most: longest result in tokens; the text is cut in the middle to fit. Images that do not fit are left out,
                and the text says so.
            images: PIL images, shown before the text.

        Raises:
            UserError: there are images, and the model takes none.
        """
        pixels = self._processor().pixels(images) if images and self._processor is not None else None
        if pixels is not None:
            shown, ids = self._fitted(text, last, most, pixels)
            if len(ids) <= most:
                return Shown(shown, tuple(ids), pixels)
            text = f"error: the image does not fit into {most} tokens\n{text}"
        shown, ids = self._fitted(text, last, most, None)
        return Shown(shown, tuple(ids))

    def _fitted(self, text: str, last: int, most: int, pixels: Pixels | None) -> tuple[str, list[int]]:
        """The text, cut until its tokens fit, and the tokens."""
        if len(text) > 32 * most:
            text = f"{text[: 16 * most]}{_CUT}{text[-16 * most :]}"
        text = self._harmless(text)
        ids = self._encode(text, last, pixels)
        kept = list(self._tokenizer(text, add_special_tokens=False).input_ids)
        while len(ids) > most and kept:
            room = max(len(kept) - (len(ids) - most) - 8, 0)  # 8: about what the note takes
            kept = kept[: room // 2] + kept[len(kept) - room // 2 :] if room > 1 else []
            head, tail = (self._tokenizer.decode(part) for part in (kept[: room // 2], kept[room // 2 :]))
            text = self._harmless(f"{head}{_CUT}{tail}")
            ids = self._encode(text, last, pixels)
        return text, ids

    def _encode(self, text: str, last: int, pixels: Pixels | None) -> list[int]:
        after = self._after(text, 0 if pixels is None else len(pixels.images))
        end = self._ends.get(last, "")
        after = after[len(end) :] if end and after.startswith(end) else after
        ids = list(self._tokenizer(after, add_special_tokens=False).input_ids)
        if pixels is None or self._processor is None:
            return ids
        return self._processor().expand(ids, [(t, h, w) for t, h, w in pixels.grid.tolist()])

    def _after(self, text: str, images: int = 0) -> str:
        """What follows the model's turn, up to where its next turn begins."""
        if not self._tokenizer.chat_template:
            return f"\n{text}\n{self._chat.prefill}"
        content: Any = [*([{"type": "image"}] * images), {"type": "text", "text": text}] if images else text
        messages = [_QUESTION, _said(_TURN), {"role": self._role, "content": content}]
        return self._chat.apply(messages, self._tokenizer).rpartition(_TURN)[2] + self._chat.prefill

    def _harmless(self, text: str) -> str:
        """The text with a zero-width space in each special token."""
        for token in self._marked:
            if len(token) > 1 and not token.isspace():
                text = text.replace(token, f"{token[0]}\u200b{token[1:]}")
        return text.replace(_TURN, "")

    @cached_property
    def least(self) -> int:
        """The tokens of the template around an observation that is cut to nothing."""
        return len(self._encode(_CUT, -1, None))

    def check(self) -> None:
        """Find out whose messages observations can be. A template without tool messages gets them as the user's.

        Raises:
            UserError: the template shows no such messages, or it renders earlier turns differently when later ones
                come: what the model was trained on would not be what it sees when it is used.
        """
        if not self._tokenizer.chat_template:
            return
        if self._role == "tool" and not self._shows():
            self._role = "user"
        if not self._shows():
            raise UserError(
                f"rollout.environment: the chat template of {self._tokenizer.name_or_path} does not show messages that "
                "follow a turn of the model; use another template"
            )
        for turn in (_TURN, f"<think>\n{_TURN}\n</think>\n\n{_TURN}"):
            talk = [_QUESTION, _said(turn)]
            for more in ([{"role": self._role, "content": "."}], [_said(turn), {"role": self._role, "content": "."}]):
                before = self._chat.apply(talk, self._tokenizer, prompt=False)
                talk = [*talk, *more]
                if not self._chat.apply(talk, self._tokenizer, prompt=False).startswith(before.rstrip()):
                    raise UserError(
                        f"rollout.environment: the chat template of {self._tokenizer.name_or_path} changes earlier "
                        f"turns of the model when a {self._role!r} message follows, so episodes cannot be appended to; "
                        "use tools if it does so for user messages only, or another template"
                    )

    def _shows(self) -> bool:
        """Whether the template shows an observation."""
        try:
            return _PROBE in self._after(_PROBE)
        except UserError:  # it refuses such messages
            return False


def _said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}
