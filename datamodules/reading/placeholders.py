"""Places a prompt's images: at each `<image>` in its text, or in front of the question if there is none."""

from __future__ import annotations

from typing import Any

from lit_rlvr.datamodules.reading.rows import BadRow

PLACEHOLDER = "<image>"

Messages = list[dict[str, Any]]


def as_parts(messages: Messages, images: int) -> Messages:
    """Chat messages in a processor's format: content as `{"type": "image"}` and `{"type": "text", "text"}` parts.

    Args:
        messages: each `<image>` in them becomes an image part; if there is none, all image parts go in front of the
            last user message.
        images: number of images of the prompt.
    """
    messages = [message | {"content": _parts(message["content"])} for message in messages]
    if not _count(messages):
        last = next(message for message in reversed(messages) if message["role"] == "user")
        last["content"] = [{"type": "image"}] * images + last["content"]
    return messages


def check_placeholders(prompt: str | Messages, images: int) -> None:
    """Check that there are as many placeholders as images; a prompt without placeholders takes any number.

    Raises:
        BadRow: the numbers differ.
    """
    content = prompt if isinstance(prompt, list) else [{"content": prompt}]
    places = _count([{"content": _parts(message["content"])} for message in content])
    if places not in (0, images):
        raise BadRow(f"{places} {PLACEHOLDER} placeholders for {images} images", "image")


def _parts(content: Any) -> list[dict[str, Any]]:
    """Text or a list of parts, as a list of parts with each `<image>` an image part and without empty texts."""
    parts: list[dict[str, Any]] = []
    for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
        if part.get("type") != "text":
            parts.append(part)
            continue
        for i, text in enumerate(part["text"].split(PLACEHOLDER)):
            parts += [{"type": "image"}] if i else []
            parts += [{"type": "text", "text": text}] if text else []
    return parts


def _count(messages: Messages) -> int:
    return sum(part.get("type") == "image" for message in messages for part in message["content"])
