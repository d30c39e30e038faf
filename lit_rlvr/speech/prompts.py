"""Prompts as text."""

from __future__ import annotations

from typing import Any


def prompt_text(prompt: Any) -> str:
    """Return a prompt, which is text or chat messages, as text."""
    if not isinstance(prompt, list):
        return str(prompt)
    return "\n".join(
        f"{m.get('role')}: {content_text(m.get('content'))}" if isinstance(m, dict) else str(m) for m in prompt
    )


def content_text(content: Any) -> str:
    """Return a message's content as text; it is None, text, or parts, of which an image becomes `<image>`."""
    if not isinstance(content, list):
        if content is None:
            return ""
        return str(content)
    return "".join(
        part.get("text", f"<{part.get('type', 'image')}>") if isinstance(part, dict) else str(part) for part in content
    )
