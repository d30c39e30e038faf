"""Tools: public methods that a model may call, and the parser of its calls."""

from __future__ import annotations

import ast
import asyncio
import inspect
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from lit_rlvr.environments.base import Environment, Observation
from lit_rlvr.errors import UserError, first_line, nearest, with_user_line
from lit_rlvr.types import RewardResult, Sample, Turn

_CALL = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)|<call>(.*?)(?:</call>|\Z)", re.DOTALL)
_FENCE = re.compile(r"\A```(?:json)?\s*(.*?)\s*(?:```)?\Z", re.DOTALL)


@dataclass(frozen=True)
class Call:
    """One tool call, or a failed attempt at one.

    Args:
        name: the tool.
        positional, named: its arguments.
        problem: why the text is no call; "" for a call.
    """

    name: str = ""
    positional: tuple[Any, ...] = ()
    named: dict[str, Any] = field(default_factory=dict)
    problem: str = ""


def find_calls(text: str) -> list[Call]:
    """Return the tool calls of a turn, in order; ignore text between `<think>` and `</think>`.

    Forms: Qwen's and Hermes' `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`; Llama 3's turn that is nothing
    but `{"name": ..., "parameters": {...}}`, several separated by semicolons; and `<call>name(arguments)</call>` with
    arguments as in Python, for models without a template for tools.
    """
    text = text.rpartition("</think>")[2].partition("<think>")[0]
    matches = list(_CALL.finditer(text))
    if matches:
        return [_plain_call(match[2]) if match[1] is None else _json_call(match[1]) for match in matches]
    return list(_bare_calls(text.strip()))


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


class Tools(Environment):
    """An environment whose public methods are tools, which the prompt offers to the model.

    The environment runs a turn's calls in order, and their results (text, anything that JSON can hold, or a PIL image)
    are the observation. A call that is malformed, names no tool, has wrong arguments or raises gets its error as the
    observation. A turn without a call ends the episode.

    Args:
        offer: describe the tools in the prompt; false for a model that knows them.
        kwargs: `limits` of every environment.

    Raises:
        UserError: there is no public method, or one lacks types or a docstring.
    """

    needs_turns = True
    role = "tool"

    def __init__(self, offer: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        methods = tool_methods(self.holder)
        if not methods:
            raise UserError(f"rollout.environment: {_name(self.holder)} has no public method to offer as a tool")
        self.tools = tuple(map(schema, methods.values())) if offer else ()

    @property
    def holder(self) -> object:
        """The object whose methods are the tools."""
        return self

    def step(self, turn: Turn) -> Observation:
        calls = find_calls(turn.text)
        if not calls:
            return Observation(done=True)
        results = [self._run(call) for call in calls]
        texts = [_as_text(value) for value, _ in results if not _is_image(value)]
        images = tuple(value for value, _ in results if _is_image(value))
        errors = sum(failed for _, failed in results)
        return Observation("\n".join(texts), calls=len(calls), errors=errors, images=images)

    def _run(self, call: Call) -> tuple[Any, bool]:
        """Run a call; return (result, True if it failed)."""
        methods = tool_methods(self.holder)
        if call.problem:
            return f"error: {call.problem}", True
        if call.name not in methods:
            return f"error: there is no tool {call.name!r}; the tools are {', '.join(methods)}", True
        try:
            inspect.signature(methods[call.name]).bind(*call.positional, **call.named)
        except TypeError as error:
            return f"error: {call.name}: {error}", True
        try:
            return _await(methods[call.name](*call.positional, **call.named)), False
        except (MemoryError, RecursionError):
            raise
        except BaseException as error:  # SystemExit too
            return f"error: {first_line(error)}", True


class WrappedTools(Tools):
    """Tools that are the public methods of an object of any class.

    The object may have `reset`, which gets the row's columns, `prompt` and `answer` by name and whose text extends the
    user's last message, and `get_reward` without arguments. So a class written for TRL's `environment_factory` works
    unchanged.

    Args:
        cls: the class of the object; the worker calls it without arguments for each episode.
        kwargs: `limits` and `offer` of every environment with tools.
    """

    def __init__(self, cls: type, **kwargs: Any) -> None:
        self._cls, self._instance = cls, None
        self.source_classes = (cls,)
        super().__init__(**kwargs)

    @property
    def holder(self) -> object:
        self._instance = self._cls() if self._instance is None else self._instance
        return self._instance

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_instance": None}

    def reset(self, sample: Sample) -> str | None:
        begin = getattr(self.holder, "reset", None)
        if begin is None:
            return None
        columns = {**sample.row, "prompt": sample.prompt, "answer": sample.answer}
        parameters = inspect.signature(begin).parameters.values()
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            columns = {name: value for name, value in columns.items() if name in {p.name for p in parameters}}
        return _await(begin(**columns))

    def reward(self) -> float | bool | RewardResult | None:
        judge = getattr(self.holder, "get_reward", None)
        return _await(judge()) if callable(judge) else None

    @property
    def judges(self) -> bool:
        return callable(getattr(self.holder, "get_reward", None))


RESERVED_NAMES = {name for name in dir(Tools) if not name.startswith("_")}
"""Public names of `Tools` itself, which are no tools."""


def tool_methods(holder: object) -> dict[str, Callable[..., Any]]:
    """Return the methods of an object that are tools, by name."""
    reserved = RESERVED_NAMES if isinstance(holder, Tools) else {"reset", "get_reward"}
    names = [name for name, _ in inspect.getmembers(type(holder), inspect.isfunction)]
    return {name: getattr(holder, name) for name in names if not name.startswith("_") and name not in reserved}


def schema(method: Callable[..., Any]) -> dict[str, Any]:
    """Return a method's JSON schema, as chat templates take it.

    Raises:
        UserError: an argument has no type or no description.
    """
    from transformers.utils import get_json_schema

    kinds = {p.kind for p in inspect.signature(method).parameters.values()}
    if kinds & {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}:
        raise UserError(f"rollout.environment: {method.__qualname__} takes *args or **kwargs; name a tool's arguments")
    try:
        return dict(get_json_schema(method))
    except Exception as error:  # transformers raises its own kinds, which moved between versions
        raise UserError(
            f"rollout.environment: {method.__qualname__} cannot be offered as a tool: {first_line(error)}; give every "
            "argument a type, and a line under `Args:` in the docstring"
        ) from error


def as_environment(environment: Environment | str | None) -> Environment | None:
    """Return the environment of a config; a dotted path names a class of tools, or an `Environment` without options.

    Raises:
        UserError: the class cannot be imported, or calling it fails.
    """
    if not isinstance(environment, str):
        return environment
    if "class_path" in environment:
        raise UserError(
            f"rollout.environment: {environment} names no Environment; give a class of another kind by its dotted path "
            "alone, such as my_env.Shop"
        )
    cls = _import(environment)
    if not isinstance(cls, type):
        raise UserError(f"rollout.environment: {environment} is not a class")
    try:
        return cls() if issubclass(cls, Environment) else WrappedTools(cls)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"rollout.environment: {environment}() fails: {with_user_line(error)}") from error


def _import(path: str) -> Any:
    module, _, name = path.rpartition(".")
    try:
        return getattr(import_module(module or "lit_rlvr.environments"), name)
    except (ImportError, AttributeError) as error:
        from lit_rlvr.environments import __all__ as shipped

        near = nearest(name, shipped) if not module else []
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"rollout.environment: {path} cannot be imported: {first_line(error)}{hint}") from error


def _await(value: Any) -> Any:
    async def finish() -> Any:
        return await value

    return asyncio.run(finish()) if inspect.isawaitable(value) else value


def _is_image(value: Any) -> bool:
    """Return True for a PIL image, without importing PIL."""
    return any(cls.__module__ == "PIL.Image" and cls.__name__ == "Image" for cls in type(value).__mro__)


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _name(instance: object) -> str:
    return f"{type(instance).__module__}.{type(instance).__qualname__}"
