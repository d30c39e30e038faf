"""Sampled messages as replies, in OpenAI's form of chat completions and in Anthropic's of messages."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lit_rlvr.agents.requests import ChatRequest
from lit_rlvr.speech.calls import Call, split_calls, typed_value
from lit_rlvr.speech.thoughts import thoughts_in, without_thoughts

Body = dict[str, Any]


@dataclass(frozen=True)
class Reply:
    """A sampled message.

    Args:
        id: names the completion.
        content: its text, without thoughts and calls.
        thoughts: its thoughts, without the marks.
        calls: its tool calls, as chat templates take them, with ids.
        is_cut: it ended at its longest length.
        stop: the stop text of the request that ended it; "" = none did.
        prompt_tokens, tokens: numbers of tokens of its prompt and its own.
    """

    id: str
    content: str
    thoughts: str
    calls: tuple[Body, ...]
    is_cut: bool
    stop: str
    prompt_tokens: int
    tokens: int

    @property
    def finish_reason(self) -> str:
        """Why it ended, as OpenAI says it."""
        if self.is_cut:
            return "length"
        if self.calls:
            return "tool_calls"
        return "stop"

    @property
    def message(self) -> Body:
        """The message as chat templates take it."""
        message: Body = {"role": "assistant", "content": self.content}
        if self.calls:
            message["tool_calls"] = list(self.calls)
        return message


def read_reply(
    completion_id: str, text: str, request: ChatRequest, is_cut: bool, prompt_tokens: int, tokens: int
) -> Reply:
    """Read a sampled text as a message.

    Calls are read only if the request offers tools; a text without a call that can be read is the content as it is.

    Args:
        completion_id: names the completion.
        text: the text of the turn, with special tokens and with the beginning that stands in the prompt.
        request: the request that it answers.
        is_cut: it ended at its longest length.
        prompt_tokens, tokens: numbers of tokens.
    """
    ends = [(text.find(stop), stop) for stop in request.stop if stop in text]
    place, stop = min(ends, default=(len(text), ""))
    text = text[:place]
    content = without_thoughts(text)
    calls: list[Body] = []
    if request.tools:
        before, found = split_calls(text)
        schemas = {}
        for tool in request.tools:
            schemas[tool["function"]["name"]] = tool["function"].get("parameters") or {}
        for call in found:
            named = _arguments(call, schemas)
            if named is not None:
                function = {"name": call.name, "arguments": named}
                calls.append({"id": f"{completion_id}-{len(calls)}", "type": "function", "function": function})
        if calls:
            content = before
    return Reply(completion_id, content, thoughts_in(text).strip(), tuple(calls), is_cut, stop, prompt_tokens, tokens)


def _arguments(call: Call, schemas: dict[str, Body]) -> Body | None:
    """Return a call's arguments by name; None if it cannot be read."""
    if call.problem:
        return None
    properties = schemas.get(call.name, {}).get("properties") or {}
    names = list(properties)
    if len(call.positional) > len(names):
        return None
    named = dict(zip(names, call.positional, strict=False)) | call.named
    if not call.is_typed:
        named = {name: typed_value(text, properties.get(name, {})) for name, text in named.items()}
    try:
        return dict(json.loads(json.dumps(named)))
    except (TypeError, ValueError):
        return None


def openai_body(replies: Sequence[Reply], request: ChatRequest) -> Body:
    """Return the answer to a request for chat completions."""
    choices = []
    for index, reply in enumerate(replies):
        choices.append(
            {"index": index, "message": _openai_message(reply), "finish_reason": reply.finish_reason, "logprobs": None}
        )
    head = _openai_head(replies[0], request, "chat.completion")
    return head | {"choices": choices, "usage": _openai_usage(replies)}


def openai_events(replies: Sequence[Reply], request: ChatRequest) -> Iterator[str]:
    """Yield the answer as a stream of chunks."""
    head = _openai_head(replies[0], request, "chat.completion.chunk")
    for index, reply in enumerate(replies):
        delta = _openai_message(reply)
        for number, call in enumerate(delta.get("tool_calls", ())):
            call["index"] = number
        choice = {"index": index, "delta": delta, "finish_reason": reply.finish_reason}
        yield _event(head | {"choices": [choice]})
    if request.with_usage:
        yield _event(head | {"choices": [], "usage": _openai_usage(replies)})
    yield "data: [DONE]\n\n"


def anthropic_body(replies: Sequence[Reply], request: ChatRequest) -> Body:
    """Return the answer to a request for messages, which has one reply."""
    (reply,) = replies
    return _anthropic_head(reply, request) | {"content": _blocks(reply)} | _anthropic_end(reply)


def anthropic_events(replies: Sequence[Reply], request: ChatRequest) -> Iterator[str]:
    """Yield the answer as a stream of events."""
    (reply,) = replies
    head = _anthropic_head(reply, request) | {"content": [], "stop_reason": None, "stop_sequence": None}
    yield _named_event("message_start", {"message": head})
    for index, block in enumerate(_blocks(reply)):
        kind = block["type"]
        if kind == "tool_use":
            start = block | {"input": {}}
            delta = {"type": "input_json_delta", "partial_json": json.dumps(block["input"])}
        else:
            start = block | {kind: ""}
            delta = {"type": f"{kind}_delta", kind: block[kind]}
        yield _named_event("content_block_start", {"index": index, "content_block": start})
        yield _named_event("content_block_delta", {"index": index, "delta": delta})
        yield _named_event("content_block_stop", {"index": index})
    usage = {"output_tokens": reply.tokens}
    yield _named_event("message_delta", {"delta": _anthropic_end(reply), "usage": usage})
    yield _named_event("message_stop", {})


def _openai_head(reply: Reply, request: ChatRequest, kind: str) -> Body:
    return {"id": reply.id, "object": kind, "created": int(time.time()), "model": request.model}


def _openai_message(reply: Reply) -> Body:
    message: Body = {"role": "assistant", "content": reply.content}
    if reply.calls:
        message["tool_calls"] = []
        for call in reply.calls:
            arguments = json.dumps(call["function"]["arguments"])
            message["tool_calls"].append(call | {"function": call["function"] | {"arguments": arguments}})
    if reply.thoughts:
        message["reasoning_content"] = reply.thoughts
    return message


def _openai_usage(replies: Sequence[Reply]) -> Body:
    prompt = replies[0].prompt_tokens
    tokens = sum(reply.tokens for reply in replies)
    return {"prompt_tokens": prompt, "completion_tokens": tokens, "total_tokens": prompt + tokens}


def _anthropic_head(reply: Reply, request: ChatRequest) -> Body:
    usage = {"input_tokens": reply.prompt_tokens, "output_tokens": reply.tokens}
    return {"id": reply.id, "type": "message", "role": "assistant", "model": request.model, "usage": usage}


def _anthropic_end(reply: Reply) -> Body:
    reason = {"length": "max_tokens", "tool_calls": "tool_use", "stop": "end_turn"}[reply.finish_reason]
    if reply.stop and reason == "end_turn":
        reason = "stop_sequence"
    return {"stop_reason": reason, "stop_sequence": reply.stop or None}


def _blocks(reply: Reply) -> list[Body]:
    """Return a message's blocks of content."""
    blocks: list[Body] = []
    if reply.thoughts:
        blocks.append({"type": "thinking", "thinking": reply.thoughts, "signature": ""})
    if reply.content or not reply.calls:
        blocks.append({"type": "text", "text": reply.content})
    for call in reply.calls:
        function = call["function"]
        blocks.append({"type": "tool_use", "id": call["id"], "name": function["name"], "input": function["arguments"]})
    return blocks


def _event(body: Body) -> str:
    return f"data: {json.dumps(body)}\n\n"


def _named_event(name: str, body: Body) -> str:
    return f"event: {name}\n{_event({'type': name} | body)}"
