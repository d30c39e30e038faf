"""Prompts as text."""

from __future__ import annotations

from typing import Any


def prompt_text(prompt: Any) -> str:
    """Return a prompt, which is text or chat messages, as text."""
    if not isinstance(prompt, list):
        return str(prompt)
    lines = []
    for message in prompt:
        if isinstance(message, dict):
            lines.append(f"{message.get('role')}: {content_text(message.get('content'))}")
        else:
            lines.append(str(message))
    return "\n".join(lines)


def content_text(content: Any) -> str:
    """Return a message's content as text; it is None, text, or parts, of which an image becomes `<image>`."""
    if not isinstance(content, list):
        if content is None:
            return ""
        return str(content)
    texts = []
    for part in content:
        if isinstance(part, dict):
            texts.append(str(part.get("text", f"<{part.get('type', 'image')}>")))
        else:
            texts.append(str(part))
    return "".join(texts)
