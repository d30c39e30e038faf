"""The conversations of rows: chat messages and their parts, in the forms that data sets hold them.

Data sets hold messages as lists, as arrays, as JSON text (in a CSV file) or under the key `messages`, with parts in the
forms of Hugging Face, OpenAI, Anthropic and Qwen. `as_conversation` turns all of them into one form: a content is a
text, or a list of `{"type": "text", "text"}`, `{"type": "image"}` and `{"type": "image", "image"}` parts, and of the
last two for videos, whose source is a `Video`. `sharegpt_to_messages` reads ShareGPT's form, {"from", "value"}.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from lit_rlvr.common.columns import as_python, parse_text
from lit_rlvr.datamodules.reading.cells import BadRow, is_blank, is_empty
from lit_rlvr.media import Video

Messages = list[dict[str, Any]]

ROLES = ("system", "developer", "user", "assistant", "tool")

LOSS_KEYS = ("weight", "loss", "train", "trainable")
"""Keys by which data sets leave a message of the assistant out of the loss, with 0 or false."""

THOUGHT_KEYS = ("reasoning_content", "reasoning", "thinking")
"""Keys of the thoughts in a message of the assistant. Chat templates read one of them, so a message gets all."""

TEXT_TYPES = {"text", "input_text", "output_text"}
MEDIA_TYPES = {"image": "image", "image_url": "image", "input_image": "image", "video": "video", "video_url": "video"}
SOURCE_KEYS = ("url", "path", "source", "base64", "data")
"""Keys of an image or video part that hold it, by precedence, after those of `MEDIA_KEYS`."""
MEDIA_KEYS = ("image", "image_url", "video", "video_url", "audio", "audio_url", "input_audio", "file")
"""Keys that tell what a part without a type is, and that a text part must not have."""
NO_AUDIO = "audio is not supported yet"

_MESSAGES_AS_TEXT = re.compile(r"""\s*(?:\[\s*)?\{\s*["'](?:role|content|messages)["']\s*:.*[\]}]\s*""", re.DOTALL)
_ROLE = re.compile(r"""\s*\[.*["']role["']\s*:""", re.DOTALL)
_NO_CONTENT = 'a message whose content is neither text nor a list of parts {"type", ...}'


def as_conversation(value: Any) -> Messages | None:
    """Read a cell as chat messages; return None for any other cell.

    Messages are a list of them, {"messages": [...]}, a single one, or the JSON or Python text of one of these. Null
    keys, with which Parquet pads messages, parts and tool calls, are removed.

    Raises:
        BadRow: a message has an unknown role, no content, or a part of a type that is not supported.
    """
    if isinstance(value, str):
        value = _parsed(value)
    else:
        value = without_nulls(value)
    if isinstance(value, Mapping) and {"messages", "role"} & value.keys():
        value = value.get("messages", [value])
    if isinstance(value, list):
        return [_message(message) for message in value]
    return None


def without_nulls(value: Any) -> Any:
    """Return nested values without the null keys of dicts, and with lists in place of tuples and arrays."""
    if getattr(value, "ndim", 0) == 1:
        value = value.tolist()
    if isinstance(value, Mapping):
        nulls = {}
        for key, item in value.items():
            if item is not None:
                nulls[key] = without_nulls(item)
        return nulls
    if isinstance(value, list | tuple):
        return [without_nulls(item) for item in value]
    return value


def without_closing_turns(messages: Messages) -> Messages:
    """Return the messages without the assistant's turns at their end."""
    while messages and messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    return messages


def text_of(content: str | list[dict[str, Any]]) -> str:
    """Return the text of a content, a line for each text part."""
    if isinstance(content, str):
        return content
    texts = []
    for p in content:
        if p.get("type") == "text":
            texts.append(p["text"])
    return "\n".join(texts)


def _parsed(text: str) -> Any:
    """Return the messages that a text holds as JSON, or as a Python literal; return any other text as it is."""
    if not _MESSAGES_AS_TEXT.fullmatch(text):
        return text
    value = without_nulls(parse_text(text))
    if isinstance(value, str) and _ROLE.match(text):
        raise BadRow("messages as text that is neither JSON nor a Python list; write them with json.dumps", "prompt")
    if isinstance(value, dict):
        if value.get("role") in ROLES or isinstance(value.get("messages"), list):
            return value
        return text
    if isinstance(value, list) and all(isinstance(m, dict) and "role" in m for m in value):
        return value
    return text


def _message(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or "role" not in value:
        raise BadRow('a list that does not hold messages {"role", "content"}', "prompt")
    message = dict(value)
    role = value["role"]
    if role not in ROLES:
        raise BadRow(f"unknown role {role!r}; the roles are {', '.join(ROLES)}", "prompt")
    if "function_call" in message:
        raise BadRow("a message with `function_call`, which chat templates do not show; use `tool_calls`", "prompt")
    calls = message.pop("tool_calls", None)
    if calls:
        message["tool_calls"] = _tool_calls(calls)
    thoughts = next((text for text in map(message.get, THOUGHT_KEYS) if isinstance(text, str) and text.strip()), "")
    if thoughts:
        message |= dict.fromkeys(THOUGHT_KEYS, thoughts)
    content = message.get("content", "" if calls and role == "assistant" else None)
    if isinstance(content, list):
        content = [_part(part) for part in content]
    elif not isinstance(content, str):
        raise BadRow(_NO_CONTENT, "prompt")
    return message | {"content": content}


def _tool_calls(calls: Any) -> list[dict[str, Any]]:
    """Return tool calls with their arguments as dicts, as chat templates take them; OpenAI's are JSON text."""
    calls = parse_text(calls)
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise BadRow("tool_calls: expected a list of {'function': {'name', 'arguments'}}", "prompt")
    tool_calls = []
    for call in calls:
        function = call.get("function", call)
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise BadRow("tool_calls: a call without the name of its function", "prompt")
        function = function | {"arguments": parse_text(function.get("arguments", {}))}
        if "function" in call:
            tool_calls.append(call | {"function": function})
        else:
            tool_calls.append(function)
    return tool_calls


def _part(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadRow(_NO_CONTENT, "prompt")
    part = {key: item for key, item in value.items() if key not in MEDIA_KEYS or not is_empty(item)}
    media = [key for key in MEDIA_KEYS if key in part]
    kind = part.get("type") or (media[0] if media else "text")
    if kind in TEXT_TYPES:
        if not isinstance(part.get("text"), str):
            raise BadRow(_NO_CONTENT, "prompt")
        if media:
            raise BadRow(f"a part of type {kind!r} that also holds {media[0]!r}", "prompt")
        return part | {"type": "text"}
    if kind not in MEDIA_TYPES:
        if "audio" in str(kind):
            reason = NO_AUDIO
        else:
            reason = "use text, image or video"
        raise BadRow(f"a part of type {kind!r}: {reason}", "prompt")
    if part.get("text"):
        raise BadRow(f"a part of type {kind!r} that also holds text", "prompt")
    medium = MEDIA_TYPES[kind]
    key = next((key for key in (medium, f"{medium}_url", *SOURCE_KEYS) if not is_empty(part.get(key))), None)
    more = part.keys() - {"type", "text", key}
    if medium == "video" and more:
        names = ", ".join(sorted(map(str, more)))
        raise BadRow(f"a part of type {kind!r} with {names}; set data.images.video_fps, max_frames, ...", "prompt")
    if key is None:
        return {"type": medium}
    source = _source(part[key], key, part)
    return {"type": medium, medium: source if medium == "image" or isinstance(source, Video) else Video(source)}


def _source(value: Any, key: str, part: dict[str, Any]) -> Any:
    """Return the image or video of a part: a path, an URL, bytes, a picture or a list of frames."""
    if isinstance(value, dict) and "url" in value:  # OpenAI's {"url", "detail"}
        return value["url"]
    if isinstance(value, dict) and "data" in value:  # Anthropic's {"type": "base64", "media_type", "data"}
        return _source(value["data"], "data", value)
    if key in ("base64", "data") and isinstance(value, str) and not value.startswith("data:"):
        return f"data:{part.get('media_type') or part.get('mimeType') or 'image/png'};base64,{value}"
    return value


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
        value: the cell.
        system: the row's system prompt, for a conversation without one.

    Raises:
        BadRow: a speaker is unknown.
    """
    turns = parse_text(as_python(value))
    has_speakers = isinstance(turns, list) and all(isinstance(t, Mapping) and t.get("from") is not None for t in turns)
    if not has_speakers or not turns:
        return value
    messages = [_sharegpt_message(turn) for turn in turns]
    if isinstance(system, str) and not is_blank(system) and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system})
    return messages


def _sharegpt_message(turn: Mapping[str, Any]) -> dict[str, Any]:
    speaker = str(turn["from"]).strip().lower()
    if speaker not in SPEAKERS:
        raise BadRow(f"unknown speaker {turn['from']!r} in `from`; the known ones are {', '.join(SPEAKERS)}", "prompt")
    content = turn.get("value", turn.get("content"))
    weights = {}
    for key in LOSS_KEYS:
        if key in turn:
            weights[key] = turn[key]
    if speaker in ("function_call", "tool_call"):
        calls = parse_text(content)
        if isinstance(calls, dict):
            calls = [calls]
        if isinstance(calls, list) and all(isinstance(call, dict) and "name" in call for call in calls):
            return {"role": "assistant", "content": "", "tool_calls": [{"function": call} for call in calls]} | weights
    return {"role": SPEAKERS[speaker], "content": content} | weights
