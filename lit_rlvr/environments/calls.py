"""The parser of tool calls, in the forms in which models write them."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Call:
    """One tool call, or a failed attempt at one.

    Args:
        name: the tool.
        positional, named: its arguments.
        problem: why the text is no call; "" for a call.
        is_typed: False if the form writes values as bare text, so that only the tool's schema tells their types.
    """

    name: str = ""
    positional: tuple[Any, ...] = ()
    named: dict[str, Any] = field(default_factory=dict)
    problem: str = ""
    is_typed: bool = True


_FORMS = re.compile(
    r"<tool_call>(?P<tagged>.*?)(?:</tool_call>|\Z)"  # Qwen, Hermes, Nemotron, GLM
    r"|<call>(?P<plain>.*?)(?:</call>|\Z)"
    r"|<\|tool_call_start\|>(?P<listed>.*?)(?:<\|tool_call_end\|>|\Z)"  # LFM2
    r"|<\|tool_call>(?P<gemma>.*?)(?:<tool_call\|>|\Z)"  # Gemma 4
    r"|\bto=functions\.(?P<harmony>[\w.-]+[^\n]*?<\|message\|>.*?)(?:<\|call\|>|<\|end\|>|<\|start\|>|\Z)",  # GPT-OSS
    re.DOTALL,
)
_FENCE = re.compile(r"\A```(?:json)?\s*(.*?)\s*(?:```)?\Z", re.DOTALL)
_FUNCTION = re.compile(r"\A\s*<function=([^>\n]+)>(.*?)(?:</function>\s*)?\Z", re.DOTALL)
_PARAMETER = re.compile(r"<parameter=([^>\n]+)>\n?(.*?)\n?</parameter>", re.DOTALL)
_KEYED = re.compile(r"\A\s*([\w.-]+)\s*((?:<arg_key>.*)?)\Z", re.DOTALL)
_KEY_VALUE = re.compile(r"<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>", re.DOTALL)
_GEMMA = re.compile(r"\A\s*call:([\w.-]+)(\{.*\})\s*\Z", re.DOTALL)
_GEMMA_PART = re.compile(r'<\|"\|>(?P<text>.*?)<\|"\|>|(?P<key>[\w.-]+)(?=:)', re.DOTALL)


def find_calls(text: str) -> list[Call]:
    """Return the tool calls of a turn, in order; ignore text between `<think>` and `</think>`.

    The documentation lists the forms. The turn may contain special tokens, which some forms consist of.
    """
    text = text.rpartition("</think>")[2].partition("<think>")[0]
    matches = list(_FORMS.finditer(text))
    if matches:
        return [call for match in matches for call in _READERS[str(match.lastgroup)](match[str(match.lastgroup)])]
    return list(_bare_calls(re.sub(r"<\|\w+\|>", "", text).strip()))


def _bare_calls(text: str) -> Iterator[Call]:
    """Yield the calls of a turn that is only JSON objects with a name and arguments; yield none for any other JSON."""
    decoder = json.JSONDecoder()
    place, objects = 0, []
    while place < len(text):
        try:
            value, place = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            return
        if not isinstance(value, dict) or "name" not in value or not {"parameters", "arguments"} & value.keys():
            return
        objects.append(value)
        while place < len(text) and text[place] in "; \n\t":
            place += 1
    yield from map(_as_call, objects)


def _tagged_calls(text: str) -> list[Call]:
    """Read what is between `<tool_call>` tags: XML with a function, a name with keys and values, or JSON."""
    if found := _FUNCTION.match(text):
        return [Call(found[1].strip(), named=dict(_PARAMETER.findall(found[2])), is_typed=False)]
    if found := _KEYED.match(text):
        named = {key.strip(): value.strip() for key, value in _KEY_VALUE.findall(found[2])}
        return [Call(found[1], named=named, is_typed=False)]
    return [_json_call(text)]


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
    return _with_arguments(name, value.get("arguments", value.get("parameters", {})))


def _with_arguments(name: str, named: Any) -> Call:
    if isinstance(named, str):  # some models quote the object
        try:
            named = json.loads(named)
        except (ValueError, RecursionError):
            named = {} if not named.strip() else None
    if named is None or not isinstance(named, dict):
        return Call(name, problem="the arguments must be a JSON object")
    return Call(name, named=named)


def _python_calls(text: str) -> list[Call]:
    """Read one call as in Python, or a list of them."""
    try:
        node = ast.parse(text.strip(), mode="eval").body
        nodes = node.elts if isinstance(node, ast.List) else [node]
        return [_python_call(node) for node in nodes]
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError) as error:
        return [Call(problem=f"the call cannot be read: {type(error).__name__}: {error}")]


def _python_call(node: ast.expr) -> Call:
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        return Call(problem="a call is written as name(arguments)")
    positional = tuple(ast.literal_eval(argument) for argument in node.args)
    if any(keyword.arg is None for keyword in node.keywords):
        return Call(problem="a call names each of its arguments")
    return Call(node.func.id, positional, {str(k.arg): ast.literal_eval(k.value) for k in node.keywords})


def _gemma_calls(text: str) -> list[Call]:
    """Read `call:name{key:value}`, which is JSON with bare keys and `<|"|>` as quotation marks."""
    found = _GEMMA.match(text)
    if not found:
        return [Call(problem="a call is written as call:name{key:value}")]

    def quoted(match: re.Match[str]) -> str:
        return json.dumps(match["key"] if match["text"] is None else match["text"])

    return [_with_arguments(found[1], _GEMMA_PART.sub(quoted, found[2]))]


def _harmony_calls(text: str) -> list[Call]:
    """Read `name<|channel|>commentary json<|message|>{...}`."""
    head, _, arguments = text.partition("<|message|>")
    return [_with_arguments(re.split(r"[^\w.-]", head)[0], arguments)]


_READERS = {
    "tagged": _tagged_calls,
    "plain": _python_calls,
    "listed": _python_calls,
    "gemma": _gemma_calls,
    "harmony": _harmony_calls,
}


def typed_value(text: str, schema: dict[str, Any]) -> Any:
    """Return a value that a call writes as bare text, in the type of its argument's JSON schema.

    A text that does not fit stays a text.
    """
    kinds = schema.get("type", "any")
    if kinds == "string":
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return {"true": True, "false": False, "none": None}.get(text.strip().lower(), text)
