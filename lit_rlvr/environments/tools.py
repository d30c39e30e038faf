"""Tools: an object whose public methods a model may call."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Callable
from importlib import import_module
from typing import Any

from lit_rlvr.environments.base import Environment, Observation
from lit_rlvr.environments.calls import Call, find_calls
from lit_rlvr.errors import UserError, first_line
from lit_rlvr.types import RewardResult, Sample, Turn


class Tools(Environment):
    """An environment whose public methods are tools, which the prompt offers to the model.

    A turn's calls are run in order, and their results (text, anything that JSON can hold, or a PIL image) are the
    observation; a turn without a call ends the episode. A call that cannot be read, names no tool, has wrong arguments
    or raises gets its error as the observation.

    Args:
        offer: describe the tools in the prompt; false for a model that knows them.
        kwargs: `limits` of every environment.

    Raises:
        UserError: there is no public method, or one without types or a docstring.
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
        """The result of a call, and whether it failed."""
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
            return _awaited(methods[call.name](*call.positional, **call.named)), False
        except (MemoryError, RecursionError):
            raise
        except Exception as error:
            return f"error: {first_line(error)}", True


class WrappedTools(Tools):
    """Tools that are the public methods of an object of any class.

    The object may have `reset`, called with the row's columns, `prompt` and `answer` by name, whose text is appended to
    the user's last message, and `get_reward` without arguments. So a class written for TRL's `environment_factory`
    works unchanged.

    Args:
        wrapped: the object.
        kwargs: `limits` and `offer` of every environment with tools.
    """

    def __init__(self, wrapped: object, **kwargs: Any) -> None:
        self._wrapped = wrapped
        super().__init__(**kwargs)

    @property
    def holder(self) -> object:
        return self._wrapped

    def reset(self, sample: Sample) -> str | None:
        begin = getattr(self._wrapped, "reset", None)
        if begin is None:
            return None
        columns = {**sample.row, "prompt": sample.prompt, "answer": sample.answer}
        parameters = inspect.signature(begin).parameters.values()
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            columns = {name: value for name, value in columns.items() if name in {p.name for p in parameters}}
        return _awaited(begin(**columns))

    def reward(self) -> float | bool | RewardResult | None:
        judge = getattr(self._wrapped, "get_reward", None)
        return None if judge is None else _awaited(judge())

    @property
    def rewards(self) -> bool:
        return hasattr(self._wrapped, "get_reward")


NOT_TOOLS = {"get_reward", *(name for name in dir(Tools) if not name.startswith("_"))}
"""Public names that are no tools: those of every environment, and the reward of TRL's."""


def tool_methods(holder: object) -> dict[str, Callable[..., Any]]:
    """The public methods of an object that are tools, by name."""
    names = [name for name, _ in inspect.getmembers(type(holder), inspect.isfunction)]
    return {name: getattr(holder, name) for name in names if not name.startswith("_") and name not in NOT_TOOLS}


def schema(method: Callable[..., Any]) -> dict[str, Any]:
    """A method's JSON schema, as chat templates take it.

    Raises:
        UserError: an argument has no type or no description.
    """
    from transformers.utils import get_json_schema

    try:
        return dict(get_json_schema(method))
    except Exception as error:  # transformers raises its own kinds, which moved between versions
        raise UserError(
            f"rollout.environment: {method.__qualname__} cannot be offered as a tool: {first_line(error)}; give every "
            "argument a type, and a line under `Args:` in the docstring"
        ) from error


def as_environment(environment: Environment | str | None) -> Environment | None:
    """The environment of a config; a dotted path names a class of tools, or an `Environment` without options.

    Raises:
        UserError: it cannot be imported or made.
    """
    if not isinstance(environment, str):
        return environment
    found = _found(environment)
    if isinstance(found, type) and issubclass(found, Environment):
        return found()
    if not isinstance(found, type):
        raise UserError(f"rollout.environment: {environment} is not a class")
    return WrappedTools(found())


def _found(path: str) -> Any:
    module, _, name = path.rpartition(".")
    try:
        return getattr(import_module(module or "lit_rlvr.environments"), name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"rollout.environment: {path} cannot be imported: {first_line(error)}") from error


def _awaited(value: Any) -> Any:
    async def finish() -> Any:
        return await value

    return asyncio.run(finish()) if inspect.isawaitable(value) else value


def _is_image(value: Any) -> bool:
    """Whether it is a PIL image; PIL is not imported for it."""
    return any(cls.__module__ == "PIL.Image" and cls.__name__ == "Image" for cls in type(value).__mro__)


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _name(made: object) -> str:
    return f"{type(made).__module__}.{type(made).__qualname__}"
