"""Conversations in ShareGPT's form, {"from", "value"}, as chat messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lit_rlvr.datamodules.reading.bad_row import BadRow
from lit_rlvr.datamodules.reading.cells import as_python, is_blank, parse_text
from lit_rlvr.datamodules.reading.conversations import LOSS_KEYS

SPEAKERS = {
    "human": "user", "user": "user",
    "gpt": "assistant", "chatgpt": "assistant", "assistant": "assistant", "bot": "assistant", "model": "assistant",
    "function_call": "assistant", "tool_call": "assistant",
    "system": "system",
    "tool": "tool", "observation": "tool", "function_response": "tool", "tool_response": "tool",
}  # fmt: skip
"""`from` -> role."""


def sharegpt_to_messages(value: Any, system: Any = None) -> Any:
    """Convert a ShareGPT conversation, or its JSON text, to messages {"role", "content"}; return any other cell as is.

    Args:
        system: the row's system prompt, for a conversation without one.

    Raises:
        BadRow: a speaker is unknown.
    """
    turns = parse_text(as_python(value))
    has_speakers = isinstance(turns, list) and all(isinstance(t, Mapping) and t.get("from") is not None for t in turns)
    if not has_speakers or not turns:
        return value
    messages = [_message(turn) for turn in turns]
    if isinstance(system, str) and not is_blank(system) and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system})
    return messages


def _message(turn: Mapping[str, Any]) -> dict[str, Any]:
    speaker = str(turn["from"]).strip().lower()
    if speaker not in SPEAKERS:
        raise BadRow(f"unknown speaker {turn['from']!r} in `from`; the known ones are {', '.join(SPEAKERS)}", "prompt")
    content, weights = turn.get("value", turn.get("content")), {key: turn[key] for key in LOSS_KEYS if key in turn}
    if speaker in ("function_call", "tool_call"):
        calls = parse_text(content)
        calls = [calls] if isinstance(calls, dict) else calls
        if isinstance(calls, list) and all(isinstance(call, dict) and "name" in call for call in calls):
            return {"role": "assistant", "content": "", "tool_calls": [{"function": call} for call in calls]} | weights
    return {"role": SPEAKERS[speaker], "content": content} | weights
