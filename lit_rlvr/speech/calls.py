"""The parser of tool calls, in the forms in which models write them."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

from lit_rlvr.speech.thoughts import MARK, without_thoughts


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


_FENCE = re.compile(r"\A```(?:json)?\s*(.*?)\s*(?:```)?\Z", re.DOTALL)
_FUNCTION = re.compile(r"\A\s*<function=([^>\n]+)>(.*?)(?:</function>\s*)?\Z", re.DOTALL)
_PARAMETER = re.compile(r"\s*<parameter=([^>\n]+)>\n?(.*?)\n?</parameter>\s*(?=<parameter=|\Z)", re.DOTALL)
_KEYED = re.compile(r"\A(?:\s+(?=[\w.-]+\s*<arg_key>))?([\w.-]*\w)\s*(?:<tool_sep>\s*)?((?:<arg_key>.*)?)\Z", re.DOTALL)
_KEY_VALUE = re.compile(r"<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>\s*(?=<arg_key>|\Z)", re.DOTALL)
_GEMMA = re.compile(r"\A\s*call:([\w.-]+)(\{.*\})\s*\Z", re.DOTALL)
_GEMMA_PART = re.compile(r'(?P<quote><\|"\|>|<escape>)(?P<text>.*?)(?P=quote)|(?P<key>[\w.-]+)(?=:)', re.DOTALL)
_BAR = "\uff5c"
"""The fullwidth vertical line in DeepSeek's tokens."""
_SPACE = rf"(?:\w+:|{_BAR}DSML{_BAR} ?)?"
"""What stands before the names of tags: MiniMax has nothing, other families a name space."""
_NAME_AROUND = re.compile(r"\Afunctions\.|(?::\d+|\[CALL_ID\].*)\Z", re.DOTALL)
_NAMED_PARAMETER = re.compile(
    rf'\s*<{_SPACE}param(?:eter)? name="([^"\n]+)"[^>\n]*>(.*?)</{_SPACE}param(?:eter)?>\s*(?=<{_SPACE}param|\Z)',
    re.DOTALL,
)
_DECODER = json.JSONDecoder(strict=False)  # models break lines inside texts

MAX_MARKS = 256
"""Most marks of calls and thoughts in a turn that are looked at."""
MAX_ENDINGS = 16
"""Most endings to try for a call, because its arguments may contain the text that ends one."""


def find_calls(text: str) -> list[Call]:
    """Return the tool calls of a turn, in order, without those in its thoughts.

    Thoughts are those that `split_thoughts` tells, but for marks in arguments; if they never end, they may hold a call.
    A call that cannot be read is returned with its problem. The documentation lists the forms. The turn may contain
    special tokens, which some forms consist of.
    """
    return split_calls(text)[1]


def as_dicts(calls: Iterable[Call]) -> list[dict[str, Any]]:
    """Return the calls that could be read, each `{"name": ..., "arguments": {...}}`."""
    dicts = []
    for call in calls:
        if not call.problem:
            dicts.append({"name": call.name, "arguments": call.named})
    return dicts


def split_calls(text: str) -> tuple[str, list[Call]]:
    """Return the text behind a turn's thoughts and before its first call, and the calls as `find_calls` does."""
    calls: list[Call] = []
    before_thoughts: int | None = 0  # None = the text is behind thoughts that have ended
    place = start = 0
    is_open = False
    for _ in range(MAX_MARKS):
        match = _OPENING.search(text, place)
        if match is None:
            break
        place = match.end()
        if match["opening"]:
            before_thoughts = before_thoughts if is_open else len(calls)
            is_open = True
        elif match["closing"]:
            del calls[len(calls) if before_thoughts is None else before_thoughts :]
            before_thoughts = None
            is_open = False
        else:
            read, end = _read_calls(str(match.lastgroup), text, place)
            if not read[0].problem or not _is_mentioned(
                text[max(match.start() - 200, 0) : match.start()], text[place:end]
            ):
                start = start if calls else match.start()
                calls = calls + read
                place = end
    if calls:
        return (_WRAPPER.sub("", without_thoughts(text[:start])).strip(), calls)
    return _bare_calls(text)


def _is_mentioned(before: str, behind: str) -> bool:
    """Return whether a mark of calls, behind which there is none, is only spoken of.

    It is in quotation marks, or a word within a line without any bracket behind it.
    """
    line = before.rpartition("\n")[2]
    further = _OPENING.search(behind)
    if further:
        behind = behind[: further.start()]
    is_word = re.match(r"[\s.,;:]|\Z", behind) and not re.search(r"[{(\[]|<[^/]", behind)
    return line.endswith(("`", '"', "'")) or bool(line.strip() and is_word)


def _read_calls(form: str, text: str, start: int) -> tuple[list[Call], int]:
    """Return the calls behind an opening, and where they end.

    They end at the first ending, or opening of a further call, before which they can be read; else at the first one.
    """
    endings, (*_, read) = _ENDINGS[form], _FORMS[form]
    spans = [match.span() for match in islice(endings.finditer(text, start), MAX_ENDINGS)] + [(len(text), len(text))]
    tried = []
    for end, after in spans:
        tried.append(read(text[start:end]))
        if not any(call.problem for call in tried[-1]):
            return tried[-1], after
    return tried[0], spans[0][1]


def _bare_calls(text: str) -> tuple[str, list[Call]]:
    """Return the text before the JSON calls of a turn, and the calls; [] for other JSON.

    Calls are JSON objects with a name and arguments, from the first line that begins with one. A turn of one line with
    the name and an object is one call. JSON that has the keys of a call and cannot be read is a call with a problem.
    """
    for match in islice(_JSON_LINE.finditer(text), MAX_ENDINGS):
        calls, end = _json_calls(text, match.end())
        before = text[: match.end()]
        with_calls = without_thoughts(before + "calls" + text[end:], True)
        without = without_thoughts(before + text[end:], True)
        if calls and with_calls != without:  # else they are thoughts
            return _WRAPPER.sub("", without_thoughts(before)).strip(), calls
    answer = without_thoughts(text)
    bare = _OUTER_TOKENS.sub("", answer)
    named = _NAMED_JSON.fullmatch(bare)
    if named:
        return "", [_with_arguments(named[1], named[2])]
    if _PYTHON_LIST.fullmatch(bare):
        return "", _python_calls(bare)
    return answer.strip(), []


def _json_calls(text: str, place: int) -> tuple[list[Call], int]:
    """Return the calls as JSON that follow each other from a place, and where they end."""
    calls: list[Call] = []
    while place < len(text):
        try:
            value, place = _DECODER.raw_decode(text, place)
        except (ValueError, RecursionError) as error:
            if _LIKE_A_CALL.match(text, place):
                calls.append(Call(problem=f"the call is not valid JSON: {error}"))
            break
        if not _is_call(value):
            break
        calls += _as_calls(value)
        place = _BETWEEN.match(text, place).end()  # type: ignore[union-attr]  # it matches ""
    return calls, place


def _is_call(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(map(_is_call, value))
    if not isinstance(value, dict):
        return False
    if isinstance(value.get("function"), dict):
        return "name" in value["function"]
    if "tool_calls" in value:
        return _is_call(value["tool_calls"])
    return bool({"name", "tool_name"} & value.keys()) and bool({"parameters", "arguments"} & value.keys())


def _tagged_calls(text: str) -> list[Call]:
    """Read what is between `<tool_call>` tags: XML with a function, a name with keys and values, or JSON."""
    match = _FUNCTION.match(text)
    if match:
        if match[2].lstrip().startswith("{"):
            return [_with_arguments(match[1].strip(), match[2])]
        return [_bare_text_call(match[1].strip(), _PARAMETER, match[2])]
    match = _KEYED.match(text)
    if match:
        return [_bare_text_call(match[1], _KEY_VALUE, match[2])]
    return _written_calls(text)


def _without_fence(text: str) -> str:
    fenced = _FENCE.match(text.strip())
    if fenced:
        return fenced[1]
    return text


def _bare_text_call(name: str, argument: re.Pattern[str], text: str) -> Call:
    """Read arguments whose values are bare text."""
    rest = argument.sub("", text).strip()
    if rest:
        return Call(name, problem=f"the arguments cannot be read: {rest[:40]!r} is in no argument")
    return Call(name, named={key.strip(): value for key, value in argument.findall(text)}, is_typed=False)


def _as_calls(value: Any) -> list[Call]:
    """Read a call as a JSON object, in OpenAI's form too, or a list of them."""
    if isinstance(value, dict) and isinstance(value.get("tool_calls"), list):
        value = value["tool_calls"]
    if isinstance(value, list) and value:
        calls: list[Call] = []
        for item in value:
            calls.extend(_as_calls(item if isinstance(item, dict) else None))
        return calls
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        value = value["function"]
    if isinstance(value, dict):
        name = value.get("name", value.get("tool_name"))
    else:
        name = None
    if not isinstance(name, str):
        return [Call(problem='the call must be a JSON object such as {"name": "...", "arguments": {...}}')]
    for key in ("arguments", "parameters", "args"):
        if key in value:
            return [_with_arguments(name, value[key])]
    return [_with_other_keys(name, {key: value[key] for key in value if key not in _ABOUT_A_CALL})]


_ABOUT_A_CALL = {"name", "tool_name", "id", "call_id", "type", "index", "description"}
"""Keys of a call that are not its arguments."""


def _with_other_keys(name: str, others: dict[str, Any]) -> Call:
    """Read a call whose arguments stand under no usual key: the only other key has them, if it has an object.

    Args:
        name: the tool.
        others: what else the call's object has.
    """
    if not others:
        return Call(name, named={})
    values = list(others.values())
    if len(values) == 1 and isinstance(values[0], dict):
        return Call(name, named=values[0])
    return Call(name, problem=f'the arguments must be a JSON object under "arguments"; there is {", ".join(others)}')


def _as_mapped_calls(value: Any) -> list[Call]:
    """Read a list of objects in which a tool's name is the key of its arguments."""
    calls = []
    for part in value if isinstance(value, list) else ():
        if isinstance(part, dict):
            for name, named in part.items():
                calls.append(_with_arguments(name, named))
    return calls or _as_calls(None)


def _written_calls(text: str, read: Callable[[Any], list[Call]] = _as_calls) -> list[Call]:
    """Read calls as JSON, which may be fenced.

    Args:
        text: the JSON.
        read: makes calls of the value.
    """
    try:
        value = _DECODER.decode(_without_fence(text))
    except (ValueError, RecursionError) as error:
        return [Call(problem=f"the call is not valid JSON: {error}")]
    return read(value)


def _with_arguments(name: str, named: Any) -> Call:
    if isinstance(named, str):  # some models quote the object
        try:
            named = _DECODER.decode(named)
        except (ValueError, RecursionError):
            named = {} if not named.strip() else None
    if named is None or not isinstance(named, dict):
        return Call(name, problem="the arguments must be a JSON object")
    return Call(name, named=named)


def _python_calls(text: str) -> list[Call]:
    """Read calls as in Python, one on each line, or a list of them."""
    try:
        parsed = _JSONNames().visit(ast.parse(text.strip()))
        lines = []
        for line in parsed.body:
            lines.append(line.value if isinstance(line, ast.Expr) else line)
        nodes = lines[0].elts if len(lines) == 1 and isinstance(lines[0], ast.List) else lines
        calls: list[Call] = []
        for node in nodes or [None]:
            calls.append(_python_call(node))
        return calls
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError) as error:
        return [Call(problem=f"the call cannot be read: {type(error).__name__}: {error}")]


_JSON_NAMES = {"true": True, "false": False, "null": None}


class _JSONNames(ast.NodeTransformer):
    """A replacement of `true`, `false` and `null`, which LFM2 writes in calls as in Python."""

    def visit_Name(self, node: ast.Name) -> ast.expr:
        if node.id in _JSON_NAMES:
            return ast.Constant(_JSON_NAMES[node.id])
        return node


def _python_call(node: ast.AST | None) -> Call:
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        return Call(problem="a call is written as name(arguments)")
    positional = tuple(ast.literal_eval(argument) for argument in node.args)
    if any(keyword.arg is None for keyword in node.keywords):
        return Call(problem="a call names each of its arguments")
    return Call(node.func.id, positional, {str(k.arg): ast.literal_eval(k.value) for k in node.keywords})


def _gemma_calls(text: str) -> list[Call]:
    """Read `call:name{key:value}`, which is JSON with bare keys and `<|"|>` as quotation marks."""
    call_match = _GEMMA.match(text)
    if not call_match:
        return [Call(problem="a call is written as call:name{key:value}")]

    def quoted(match: re.Match[str]) -> str:
        return json.dumps(match["key"] if match["text"] is None else match["text"])

    return [_with_arguments(call_match[1], _GEMMA_PART.sub(quoted, call_match[2]))]


def _harmony_calls(text: str) -> list[Call]:
    """Read `name<|channel|>commentary json<|message|>{...}`."""
    head, _, arguments = text.partition("<|message|>")
    return [_with_arguments(re.split(r"[^\w.-]", head)[0], arguments)]


def _named_calls(separator: str, text: str) -> list[Call]:
    """Read a name and its arguments as JSON, with a separator between.

    `functions.f:0` and `f[CALL_ID]abc` are `f`; where the head is `function`, the name is the first line behind the
    separator.
    """
    head, mark, arguments = text.partition(separator)
    if not mark:
        return _written_calls(text)
    if head.strip() == "function":
        head, _, arguments = arguments.partition("\n")
    return [_with_arguments(_NAME_AROUND.sub("", head.strip()), _without_fence(arguments))]


def _invoked_calls(text: str) -> list[Call]:
    """Read `f"><parameter name="x">value</parameter>`."""
    name, _, arguments = text.partition('">')
    return [_bare_text_call(name, _NAMED_PARAMETER, arguments)]


_FORMS: dict[str, tuple[str, str, Callable[[str], list[Call]]]] = {
    # Qwen, Hermes, Nemotron, GLM; LongCat; Granite 20B; Hunyuan, Jamba
    "tagged": (
        r"<(?:(?:longcat_)?tool_call|function_call|tool_calls(?=>\s*[\[{]))>",
        r"</(?:(?:longcat_)?tool_call|function_call|tool_calls)>", _tagged_calls,
    ),
    # the same without <tool_call>, and Llama 3.1
    "function": (
        r"<function=(?=[^>\n]+>)", r"</function>(?:\s*</tool_call>)?|</tool_call>",
        lambda text: _tagged_calls(f"<function={text}"),
    ),
    "plain": (r"<call>", r"</call>", _python_calls),
    # LFM2; Llama 4; Olmo 3
    "listed": (
        r"<\|tool_call_start\|>|<\|python_start\|>|<function_calls>(?!\s*<)",
        r"<\|tool_call_end\|>|<\|python_end\|>|</function_calls>", _python_calls,
    ),
    # Gemma 4; FunctionGemma
    "gemma": (r"<\|tool_call>|<start_function_call>", r"<tool_call\|>|<end_function_call>", _gemma_calls),
    # gpt-oss
    "harmony": (
        r"\bto=functions\.(?=[\w.-]+[^\n]*?<\|message\|>)", r"<\|call\|>|<\|end\|>|<\|start\|>", _harmony_calls,
    ),
    # Mistral, Ministral, Devstral; before them a list as JSON
    "mistral": (r"\[TOOL_CALLS\]", r"</s>", partial(_named_calls, "[ARGS]")),
    # DeepSeek-V3, R1 and V3.1
    "deepseek": (
        rf"<{_BAR}tool▁call▁begin{_BAR}>", rf"<{_BAR}tool▁call▁end{_BAR}>",
        partial(_named_calls, f"<{_BAR}tool▁sep{_BAR}>"),
    ),
    # Kimi-K2
    "kimi": (
        r"<\|tool_call_begin\|>", r"<\|tool_call_end\|>", partial(_named_calls, "<|tool_call_argument_begin|>"),
    ),
    # Command R7B and A; Inkling; Phi-4-mini
    "command": (
        r"<\|START_ACTION\|>|<\|content_invoke_tool_json\|>|\bfunctools(?=\[)", r"<\|(?:END_ACTION|end_message|end)\|>",
        _written_calls,
    ),
    # Apertus
    "mapped": (r"<\|tools_prefix\|>", r"<\|tools_suffix\|>", partial(_written_calls, read=_as_mapped_calls)),
    # MiniMax-M2, DeepSeek-V3.2 and V4; MiniCPM5
    "invoked": (
        rf'<(?:{_SPACE}invoke|function) name="(?=[^"\n]+">)', rf"</(?:{_SPACE}invoke|function)>", _invoked_calls,
    ),
}  # fmt: skip
"""Form -> what opens a call, what closes it, and what reads the text between. The first form that fits counts."""
_OPENING = re.compile("|".join([MARK.pattern, *(f"(?P<{form}>{opening})" for form, (opening, *_) in _FORMS.items())]))
_ANY_MARK = re.sub(r"\?P<\w+>", "?:", MARK.pattern)
_ENDINGS = {form: re.compile(f"{closing}|(?={opening}|{_ANY_MARK})") for form, (opening, closing, _) in _FORMS.items()}
_OUTER_TOKENS = re.compile(r"\A(?:\s|<\|\w+\|>)+|(?:(?<!\s)|(?=<))(?:\s|</s>|</tool_call>|<\|\w+\|>)+\Z")
_JSON_LINE = re.compile(rf'(?:^|{_ANY_MARK})(?:[ \t]|<\|\w+\|>)*(?=[{{\[]\s*(?:\{{\s*)?")', re.MULTILINE)
_WRAPPER = re.compile(r"(?:\s*<[^<>\s]+>(?:assistant)?)+\s*\Z")
"""Tags around all calls of a turn, and gpt-oss's head of one."""
_PYTHON_LIST = re.compile(r"\[\s*[A-Za-z_][\w.]*\((?:\s*\w+\s*=.*)?\)\s*\]", re.DOTALL)  # Llama 3.2 and 4
_NAMED_JSON = re.compile(r"(?!json\n)([A-Za-z_][\w.-]*)\n(\{.*\})", re.DOTALL)  # GLM-4
_BETWEEN = re.compile(r"[;,\s]*")
_LIKE_A_CALL = re.compile(r'[{\[](?=.*"(?:arguments|parameters)"\s*:).*"(?:name|function)"\s*:', re.DOTALL)


def typed_value(text: str, schema: dict[str, Any]) -> Any:
    """Return a value that a call writes as bare text, in the type of its argument's JSON schema.

    With several types the first that fits counts: null, then any type but text, then text. A text that does not fit
    stays a text.
    """
    kinds = _types(schema)
    if kinds == {"string"} or text in schema.get("enum", ()):
        return text
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = {"true": True, "false": False, "none": None}.get(text.strip().lower(), text)
    if "string" not in kinds or _JSON_TYPES[type(value)] & kinds:
        return value
    return text


_JSON_TYPES = {
    str: set(),
    bool: {"boolean"},
    int: {"integer", "number"},
    float: {"number"},
    list: {"array"},
    dict: {"object"},
    type(None): {"null"},
}


def _types(schema: dict[str, Any]) -> set[str]:
    """Return the types that a JSON schema allows; none if it allows all."""
    kinds = schema.get("type", [])
    parts = []
    for key in ("anyOf", "oneOf"):
        parts.extend(schema.get(key, ()))
    nullable = {"null"} if schema.get("nullable") else set()
    return {*([kinds] if isinstance(kinds, str) else kinds)}.union(nullable, *map(_types, parts))
