"""Requests for a sample, in OpenAI's form of chat completions and in Anthropic's of messages, read into one form."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lit_rlvr.datamodules.reading.images import ImageOptions, decode, locate, picture_hash, resize
from lit_rlvr.sampling import Sampling
from lit_rlvr.speech.prompts import content_text

Body = dict[str, Any]

IMAGE_PARTS = ("image", "image_url")
"""The types of images in contents, Anthropic's and OpenAI's."""
MAX_SAMPLES = 16
"""Most completions of one request."""
NO_EFFECT = {
    "metadata", "user", "store", "service_tier", "safety_identifier", "prompt_cache_key", "stream_options", "model",
    "cache_control", "verbosity",
}  # fmt: skip
"""Parameters that do not change what is sampled."""
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "presence_penalty": (0,), "frequency_penalty": (0,), "repetition_penalty": (1,), "logit_bias": ({},),
    "min_p": (0,), "logprobs": (False,), "top_logprobs": (0,), "parallel_tool_calls": (True,), "seed": (),
    "response_format": ({"type": "text"},), "thinking": ({"type": "disabled"},), "modalities": (["text"],),
}  # fmt: skip
"""Parameters -> their values that change nothing; training could not score tokens that are sampled with others."""


class RequestError(Exception):
    """A request that is refused.

    Args:
        message: what is wrong.
        status: the HTTP status.
        code: OpenAI's code of the error; "" = it has none.
    """

    def __init__(self, message: str, status: int = 400, code: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.code = code


@dataclass(frozen=True)
class ChatRequest:
    """A request for completions of a conversation.

    Args:
        messages: chat messages as chat templates take them; contents are texts, or parts if there are images:
            `{"type": "text", "text"}` and `{"type": "image", "image", "digest"}`.
        tools: JSON schemas of the tools that are offered.
        max_tokens: the longest completion; None = as long as the run allows.
        stop: texts that end the completion and are not in its message.
        count: number of completions.
        stream: answer as a stream of events.
        with_usage: a stream ends with the numbers of tokens.
        model: the name that the caller gives the model.
    """

    messages: list[dict[str, Any]]
    tools: tuple[dict[str, Any], ...] = ()
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    count: int = 1
    stream: bool = False
    with_usage: bool = False
    model: str = ""


@dataclass(frozen=True)
class SamplingRules:
    """The parameters that requests may give.

    Args:
        sampling: the run's settings, which requests may repeat; None = any, because nothing is trained on.
        ignore: names of parameters that are ignored.
        takes_stop: whether the engine ends completions at texts.
        images: in which size the model sees images; None = it is a model of text.
    """

    sampling: Sampling | None = None
    ignore: frozenset[str] = field(default_factory=frozenset)
    takes_stop: bool = True
    images: ImageOptions | None = None

    def check(self, body: Body, known: set[str]) -> None:
        """Refuse parameters that training could not score, and unknown ones.

        Args:
            body: the request.
            known: names of the parameters that are read elsewhere.

        Raises:
            RequestError: names the first.
        """
        allowed = dict(NEUTRAL)
        for name in ("temperature", "top_p", "top_k"):
            if self.sampling is None:
                allowed[name] = (body.get(name),)
            else:
                allowed[name] = (getattr(self.sampling, name),)
        for name, value in body.items():
            if value is None or name in known or name in NO_EFFECT or name in self.ignore:
                continue
            if name not in allowed:
                raise RequestError(f"{name}: this parameter is not supported; leave it out")
            if value not in allowed[name]:
                raise RequestError(
                    f"{name}: {json.dumps(value)[:80]} is not how the run samples, and training cannot score it; leave "
                    f"it out (rollout.environment: ignore: [{name}] ignores it)"
                )
        has_stop = body.get("stop") or body.get("stop_sequences")
        if has_stop and not self.takes_stop:
            raise RequestError("stop: the run's engine ends completions at EOS tokens only; leave it out")


def read_openai(body: Body, rules: SamplingRules) -> ChatRequest:
    """Read a request for `/v1/chat/completions`.

    Raises:
        RequestError: it is malformed, or asks for what is not supported.
    """
    known = {"messages", "tools", "tool_choice", "max_tokens", "max_completion_tokens", "stop", "n", "stream"}
    rules.check(body, known)
    tools = tuple(_items(body, "tools"))
    for tool in tools:
        if tool.get("type") != "function" or not isinstance(tool.get("function"), dict):
            raise RequestError("tools: each must be {'type': 'function', 'function': {...}}")
        if not isinstance(tool["function"].get("name"), str):
            raise RequestError("tools: a function has no name")
    stop = body.get("stop") or []
    if isinstance(stop, str):
        stop = [stop]
    options = body.get("stream_options") or {}
    return ChatRequest(
        messages=[_openai_message(message, rules) for message in _messages(body)],
        tools=_offered(tools, body.get("tool_choice"), rules),
        max_tokens=_whole(body, "max_completion_tokens") or _whole(body, "max_tokens"),
        stop=_texts(stop, "stop"),
        count=_whole(body, "n", MAX_SAMPLES) or 1,
        stream=bool(body.get("stream")),
        with_usage=isinstance(options, dict) and bool(options.get("include_usage")),
        model=str(body.get("model", "")),
    )


def read_anthropic(body: Body, rules: SamplingRules) -> ChatRequest:
    """Read a request for `/v1/messages`.

    Raises:
        RequestError: it is malformed, or asks for what is not supported.
    """
    rules.check(body, {"messages", "system", "tools", "tool_choice", "max_tokens", "stop_sequences", "stream"})
    messages: list[dict[str, Any]] = []
    if body.get("system"):
        messages.append({"role": "system", "content": _text(body["system"])})
    for message in _messages(body):
        messages += _anthropic_messages(message, rules)
    tools = []
    for tool in _items(body, "tools"):
        if not isinstance(tool.get("name"), str) or "input_schema" not in tool:
            raise RequestError("tools: each must have a name and an input_schema; tools of a server are not supported")
        function = {"name": tool["name"], "description": tool.get("description", "")}
        tools.append({"type": "function", "function": function | {"parameters": tool["input_schema"]}})
    choice = body.get("tool_choice")
    if isinstance(choice, dict):
        choice = choice.get("type")
    return ChatRequest(
        messages=messages,
        tools=_offered(tuple(tools), choice, rules),
        max_tokens=_whole(body, "max_tokens"),
        stop=_texts(body.get("stop_sequences") or [], "stop_sequences"),
        stream=bool(body.get("stream")),
        model=str(body.get("model", "")),
    )


def _offered(tools: tuple[Body, ...], choice: Any, rules: SamplingRules) -> tuple[Body, ...]:
    """Return the tools that the prompt offers."""
    if choice == "none":
        return ()
    if choice not in (None, "auto") and "tool_choice" not in rules.ignore:
        raise RequestError(
            f"tool_choice: {json.dumps(choice)[:80]} restricts what is sampled, and training cannot score it; use auto "
            "or none (rollout.environment: ignore: [tool_choice] takes it as auto)"
        )
    return tools


def _items(body: Body, name: str) -> list[Body]:
    value = body.get(name) or []
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise RequestError(f"{name}: it must be a list of objects")
    return value


def _messages(body: Body) -> list[Body]:
    messages = _items(body, "messages")
    if not messages:
        raise RequestError("messages: there is none")
    return messages


def _whole(body: Body, name: str, most: float = math.inf) -> int | None:
    """Return a parameter that is a whole number; None if it is not given."""
    value = body.get(name)
    if value is not None and (type(value) is not int or not 1 <= value <= most):
        raise RequestError(f"{name}: it must be a whole number from 1 to {most}")
    return value


def _texts(value: Any, name: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(text, str) and text for text in value):
        raise RequestError(f"{name}: it must be a list of texts")
    return tuple(value)


def _text(content: Any) -> str:
    """Return the text of a content, which is None, a text or a list of parts.

    Raises:
        RequestError: a part is no text.
    """
    if isinstance(content, list):
        for part in content:
            kind = part.get("type") if isinstance(part, dict) else None
            if kind in IMAGE_PARTS:
                raise RequestError("messages: images are supported in messages of the user and of tools only")
            if kind not in ("text", "input_text") or not isinstance(part.get("text"), str):
                raise RequestError(f"messages: a content of type {kind!r} is not supported; send texts")
    elif content is not None and not isinstance(content, str):
        raise RequestError("messages: a content must be a text or a list of parts")
    return content_text(content).encode("utf-8", "replace").decode()  # without lone surrogates


def _content(content: Any, rules: SamplingRules) -> str | list[Body]:
    """Return a content of a user or of a tool: its text, or its parts if there are images.

    Raises:
        RequestError: a part is neither a text nor an image that can be read.
    """
    if not isinstance(content, list):
        return _text(content)
    parts = []
    for part in content:
        if isinstance(part, dict) and part.get("type") in IMAGE_PARTS:
            parts.append(_image(part, rules))
        else:
            parts.append({"type": "text", "text": _text([part])})
    if any(part["type"] == "image" for part in parts):
        return parts
    return content_text(parts)


def _image(part: Body, rules: SamplingRules) -> Body:
    """Return an image as the model sees it, with a digest of it.

    Raises:
        RequestError: the model takes none, or it is not in the request.
    """
    if rules.images is None:
        raise RequestError("messages: the policy is a model of text, which takes no images; send texts")
    source = part.get("image_url") or part.get("source")
    if isinstance(source, dict) and source.get("type") == "base64":
        url = f"data:{source.get('media_type')};base64,{source.get('data')}"
    elif isinstance(source, dict):
        url = str(source.get("url", ""))
    else:
        url = str(source)
    if not url.startswith("data:"):
        raise RequestError(
            "messages: an image must be in the request, as a data URL or in base64; URLs are not fetched"
        )
    try:
        image = resize(decode(locate(url, Path())), rules.images.min_pixels, rules.images.max_pixels)
    except Exception as error:  # broken files can raise anything
        reason = getattr(error, "reason", str(error))
        raise RequestError(f"messages: an image cannot be read: {reason}") from error
    return {"type": "image", "image": image, "digest": picture_hash(image)}


def _openai_message(message: Body, rules: SamplingRules) -> Body:
    """Return a message as chat templates take it."""
    role = message.get("role")
    if role == "developer":
        role = "system"
    if role not in ("system", "user", "assistant", "tool"):
        raise RequestError(f"messages: the role {role!r} is not supported")
    content: Any = message.get("content")
    if role in ("user", "tool"):
        content = _content(content, rules)
    else:
        content = _text(content)
    read: Body = {"role": role, "content": content}
    calls = message.get("tool_calls")
    if calls:
        if role != "assistant" or not isinstance(calls, list):
            raise RequestError("messages: tool_calls must be a list, in a message of the assistant")
        read["tool_calls"] = [_call(call) for call in calls]
    if role == "tool":
        read |= {"tool_call_id": str(message.get("tool_call_id", "")), "name": str(message.get("name") or "")}
    return read


def _call(call: Any) -> Body:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise RequestError("messages: a tool call must be {'id': ..., 'type': 'function', 'function': {...}}")
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            raise RequestError("messages: the arguments of a tool call are not valid JSON") from None
    return _named_call(function["name"], arguments, call.get("id"))


def _named_call(name: str, arguments: Any, call_id: Any) -> Body:
    if not isinstance(arguments, dict):
        raise RequestError("messages: the arguments of a tool call must be an object")
    return {"id": str(call_id or ""), "type": "function", "function": {"name": name, "arguments": arguments}}


def _anthropic_messages(message: Body, rules: SamplingRules) -> list[Body]:
    """Return the messages that one of Anthropic's stands for: results of tools are messages of their own."""
    role = message.get("role")
    if role not in ("user", "assistant"):
        raise RequestError(f"messages: the role {role!r} is not supported")
    content = message.get("content")
    if not isinstance(content, list):
        return [{"role": role, "content": _text(content)}]
    texts: list[Any] = []
    calls: list[Body] = []
    results: list[Body] = []
    for block in content:
        kind = block.get("type") if isinstance(block, dict) else None
        if kind == "tool_use" and role == "assistant" and isinstance(block.get("name"), str):
            calls.append(_named_call(block["name"], block.get("input") or {}, block.get("id")))
        elif kind == "tool_result" and role == "user":
            given = _content(block.get("content"), rules)
            results.append(
                {"role": "tool", "content": given, "tool_call_id": str(block.get("tool_use_id", "")), "name": ""}
            )
        elif kind not in ("thinking", "redacted_thinking"):  # the path has the thoughts
            texts.append(block)
    own: Body = {"role": role, "content": _content(texts, rules) if role == "user" else _text(texts)}
    if calls:
        own["tool_calls"] = calls
    if role == "assistant" or texts or not results:
        return [*results, own]
    return results
