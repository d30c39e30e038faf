"""Finds tool calls in what a model writes, in the forms that models are trained on."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

_CALL = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)|<call>(.*?)(?:</call>|\Z)", re.DOTALL)
_FENCE = re.compile(r"\A```(?:json)?\s*(.*?)\s*(?:```)?\Z", re.DOTALL)


@dataclass(frozen=True)
class Call:
    """One tool call, or text that was meant as one.

    Args:
        name: the tool.
        positional, named: its arguments.
        problem: why the text is no call; "" if it is one.
    """

    name: str = ""
    positional: tuple[Any, ...] = ()
    named: dict[str, Any] = field(default_factory=dict)
    problem: str = ""


def find_calls(text: str) -> list[Call]:
    """The tool calls of a turn, in order. What stands between `<think>` and `</think>` does not count.

    Forms: Qwen's and Hermes' `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`; Llama 3's turn that is nothing
    but `{"name": ..., "parameters": {...}}`, several separated by semicolons; and `<call>name(arguments)</call>` with
    arguments as in Python, for models without a template for tools.
    """
    text = text.rpartition("</think>")[2].partition("<think>")[0]
    found = list(_CALL.finditer(text))
    if found:
        return [_plain_call(match[2]) if match[1] is None else _json_call(match[1]) for match in found]
    return list(_bare_calls(text.strip()))


def _bare_calls(text: str) -> Iterator[Call]:
    """Calls in a turn that is nothing but JSON objects with a name and arguments; none in any other JSON."""
    decoder = json.JSONDecoder()
    place, found = 0, []
    while place < len(text):
        try:
            value, place = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            return
        if not isinstance(value, dict) or "name" not in value or not {"parameters", "arguments"} & value.keys():
            return
        found.append(value)
        while place < len(text) and text[place] in "; \n\t":
            place += 1
    yield from map(_as_call, found)


def _json_call(text: str) -> Call:
    fenced = _FENCE.match(text.strip())
    try:
        value = json.loads(fenced[1] if fenced else text)
    except (ValueError, RecursionError) as error:
        return Call(problem=f"the call is not valid JSON: {error}")
    return _as_call(value)


def _as_call(value: Any) -> Call:
    name = value.get("name") if isinstance(value, dict) else None
    if not isinstance(name, str):
        return Call(problem='the call must be a JSON object such as {"name": "...", "arguments": {...}}')
    named = value.get("arguments", value.get("parameters", {}))
    if isinstance(named, str):  # some models quote the object
        try:
            named = json.loads(named)
        except (ValueError, RecursionError):
            named = None
    if not isinstance(named, dict):
        return Call(name, problem="the arguments must be a JSON object")
    return Call(name, named=named)


def _plain_call(text: str) -> Call:
    try:
        node = ast.parse(text.strip(), mode="eval").body
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            return Call(problem="a call is written as name(arguments)")
        positional = tuple(ast.literal_eval(argument) for argument in node.args)
        if any(keyword.arg is None for keyword in node.keywords):
            return Call(problem="a call names each of its arguments")
        named = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in node.keywords}
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError) as error:
        return Call(problem=f"the call cannot be read: {type(error).__name__}: {error}")
    return Call(node.func.id, positional, named)
