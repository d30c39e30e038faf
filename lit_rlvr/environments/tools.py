"""Tools: public methods that a model may call."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from importlib import import_module
from typing import Any

from lit_rlvr.common.arguments import check_within
from lit_rlvr.common.did_you_mean import did_you_mean
from lit_rlvr.common.init_arguments import dotted_path_of
from lit_rlvr.common.packages import import_path
from lit_rlvr.common.user_code import with_user_line
from lit_rlvr.environments.agent import Agent
from lit_rlvr.environments.base import Environment, Observation, Opening
from lit_rlvr.errors import UserError, first_line
from lit_rlvr.rewards.forms import accepted_arguments
from lit_rlvr.rewards.function import resolved
from lit_rlvr.speech.calls import Call, find_calls, typed_value
from lit_rlvr.types import RewardResult, Sample, ToolResult, Turn
from lit_rlvr.workers.process import Isolation


class Tools(Environment):
    """An environment whose public methods are tools, which the prompt offers to the model.

    The environment runs a turn's calls in order, and each result becomes a tool message: content blocks and PIL images
    as they are, anything else as Python's `str`. A call that is malformed, names no tool, has wrong arguments or raises
    gets `{'error': ...}`. A turn without a call ends the episode.

    Args:
        offer: describe the tools in the prompt; false for a model that knows them.
        error_cost: what each failed call takes from the reward of its turn; 0 = turns have no rewards.
        kwargs: `limits` of every environment.

    Raises:
        UserError: there is no public method, or one lacks types or a docstring.

    Attributes:
        needs_tools: True if it makes no sense without a tool.
    """

    needs_turns = True
    role = "tool"
    needs_tools = True

    def __init__(self, offer: bool = True, error_cost: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_within("[0, inf)", "rollout.environment", error_cost=error_cost)
        self.error_cost = error_cost
        self.rewards_turns = error_cost > 0
        methods = tool_methods(self.holder)
        if not methods and self.needs_tools:
            raise UserError(
                f"rollout.environment: {dotted_path_of(type(self.holder))} has no public method to offer as a tool"
            )
        self.tools = tuple(map(schema, methods.values())) if offer else ()

    @property
    def holder(self) -> object:
        """The object whose methods are the tools."""
        return self

    def step(self, turn: Turn) -> Observation:
        calls = find_calls(turn.raw or turn.text)
        if not calls:
            return Observation(done=True, reward=self._turn_reward(0))
        results = []
        errors = 0
        for call in calls:
            try:
                results.append(as_tool_result(call.name, self._run(call)))
            except (MemoryError, RecursionError):
                raise
            except BaseException as error:  # SystemExit too
                errors += 1
                results.append(as_tool_result(call.name or "unknown", {"error": str(error)}))
        reward = self._turn_reward(errors)
        return Observation(calls=len(calls), errors=errors, results=tuple(results), reward=reward)

    def _turn_reward(self, errors: int) -> float | None:
        """Return the reward of a turn with so many failed calls."""
        if not self.error_cost:
            return None
        return 0.0 - self.error_cost * errors

    def _run(self, call: Call) -> Any:
        """Return what a call returns."""
        methods = tool_methods(self.holder)
        if call.problem:
            raise ValueError(call.problem)
        if call.name not in methods:
            raise ValueError(f"Tool {call.name} not found.")
        named = call.named
        if not call.is_typed:
            arguments = schema(methods[call.name])["function"]["parameters"]["properties"]
            named = {name: typed_value(text, arguments.get(name, {})) for name, text in named.items()}
        return resolved(methods[call.name](*call.positional, **named))


class WrappedTools(Tools):
    """Tools that are the public methods of an object of any class.

    The object may have `reset`, which gets the row's columns, `prompt` and `answer` by name and whose text extends the
    user's last message, and `get_reward` without arguments. So a class written for TRL's `environment_factory` works
    unchanged. An object without tools ends the episode after the first turn.

    Args:
        factory: a class, or a function that returns the object, or the dotted path of one; the worker calls it without
            arguments for each episode.
        kwargs: `limits` and `offer` of every environment with tools.
    """

    needs_tools = False

    def __init__(self, factory: Callable[[], Any] | str, **kwargs: Any) -> None:
        if isinstance(factory, str):
            self._factory = import_path("rollout.environment", factory)
        else:
            self._factory = factory
        self._instance: Any = None
        super().__init__(**kwargs)
        self.source_classes = (type(self.holder),)
        self.needs_turns = bool(tool_methods(self.holder))

    @property
    def title(self) -> str:
        return type(self.holder).__name__

    @property
    def holder(self) -> object:
        if self._instance is None:
            self._instance = self._factory()
        return self._instance

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_instance": None}

    @property
    def begins(self) -> bool:
        return callable(getattr(self.holder, "reset", None))

    def reset(self, sample: Sample) -> Opening:
        if not self.begins:
            return None
        begin = self.holder.reset  # type: ignore[attr-defined]
        columns = {**sample.row, "prompt": sample.prompt, "answer": sample.answer}
        return resolved(begin(**accepted_arguments(begin, columns)))

    def reward(self) -> float | bool | RewardResult | None:
        return resolved(self.holder.get_reward()) if self.has_reward else None  # type: ignore[attr-defined]

    @property
    def has_reward(self) -> bool:
        return callable(getattr(self.holder, "get_reward", None))


class SingleTurn(Environment):
    """Nothing to act in: the completion is one turn. For the rows or data sets of a choice that have no environment."""

    def step(self, turn: Turn) -> Observation:
        return Observation(done=True)


class EnvironmentChoice(Environment):
    """Several environments, of which each row has one: the column `environment` names it, else the row's data set.

    Args:
        environments: the environments by their names. Each limit is the largest of theirs.

    Raises:
        UserError: there is none, or their observations have different roles.
    """

    def __init__(self, environments: Mapping[str, Environment]) -> None:
        self._environments = dict(environments)
        if any(isinstance(environment, Agent) for environment in environments.values()):
            raise UserError("rollout.environment: an Agent plays all rows; give it alone")
        playing = []
        for environment in environments.values():
            if not isinstance(environment, SingleTurn):
                playing.append(environment)
        roles = {environment.role for environment in playing}
        if len(roles) != 1:
            raise UserError(
                "rollout.environment: give at least one environment"
                if not roles
                else "rollout.environment: environments with and without tools cannot be mixed; give tools to all"
            )
        limits: dict[str, Any] = {}
        for environment in playing:
            for name, limit in asdict(environment.limits).items():
                limits[name] = max(limit, limits.get(name, limit))
        super().__init__(Isolation(**limits))
        (self.role,) = roles
        self._chosen = playing[0]
        self.needs_turns = any(environment.needs_turns for environment in playing)
        self.rewards_turns = any(environment.rewards_turns for environment in playing)
        source_classes: list[type] = []
        for other in playing:
            source_classes += (type(other), *other.source_classes)
        self.source_classes = source_classes
        tools_by_name = {}
        for other in playing:
            for tool in other.tools:
                tools_by_name[tool["function"]["name"]] = tool
        self.tools = tuple(tools_by_name.values())

    @property
    def title(self) -> str:
        return " or ".join(environment.title for environment in self._environments.values())

    def _of(self, sample: Sample) -> Environment:
        name = sample.row.get("environment", sample.dataset)
        if name not in self._environments:
            known = ", ".join(self._environments)
            if "environment" in sample.row:
                what = "column 'environment'"
            else:
                what = "its data set"
            raise UserError(f"{sample.source or sample.id}: {what} is {name!r}, but rollout.environment has {known}")
        return self._environments[name]

    def tools_of(self, sample: Sample) -> Sequence[dict[str, Any]]:
        return self._of(sample).tools_of(sample)

    @property
    def begins(self) -> bool:
        for environment in self._environments.values():
            if environment.begins:
                return True
        return False

    def reset(self, sample: Sample) -> Opening:
        self._chosen = self._of(sample)
        row = {}
        for name, value in sample.row.items():
            if name != "environment":
                row[name] = value
        return self._chosen.reset(replace(sample, row=row))

    @property
    def holder(self) -> object:
        return self._chosen.holder

    def step(self, turn: Turn) -> Observation:
        return self._chosen.step(turn)

    def reward(self) -> float | bool | RewardResult | None:
        return self._chosen.reward()

    @property
    def has_reward(self) -> bool:
        for environment in self._environments.values():
            if environment.has_reward:
                return True
        return False


RESERVED_NAMES = {name for name in dir(Tools) if not name.startswith("_")}
"""Public names of `Tools` itself, which are no tools."""


def tool_methods(holder: object) -> dict[str, Callable[..., Any]]:
    """Return the methods of an object that are tools, by name."""
    if isinstance(holder, Tools):
        reserved = RESERVED_NAMES
    else:
        reserved = {"reset", "get_reward"}
    names = []
    for name, _ in inspect.getmembers(type(holder), inspect.isfunction):
        names.append(name)
    methods = {}
    for name in names:
        if not name.startswith("_") and name not in reserved:
            methods[name] = getattr(holder, name)
    return methods


def schema(method: Callable[..., Any]) -> dict[str, Any]:
    """Return a method's JSON schema, as chat templates take it.

    Raises:
        UserError: an argument has no type or no description.
    """
    from transformers.utils import get_json_schema

    variable = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
    if any(parameter.kind in variable for parameter in inspect.signature(method).parameters.values()):
        raise UserError(f"rollout.environment: {method.__qualname__} takes *args or **kwargs; name a tool's arguments")
    try:
        return dict(get_json_schema(method))
    except Exception as error:  # transformers raises its own kinds, which moved between versions
        raise UserError(
            f"rollout.environment: {method.__qualname__} cannot be offered as a tool: {first_line(error)}; give every "
            "argument a type, and a line under `Args:` in the docstring"
        ) from error


def as_environment(environment: Any) -> Environment | None:
    """Return the environment of a config.

    Args:
        environment: an `Environment`; the dotted path of a class of tools, of a function that returns an object with
            tools, or of an `Environment` without options; such a class or function itself; or several of these by the
            names in the column `environment` of the data.

    Raises:
        UserError: the class cannot be imported, or calling it fails.
    """
    if environment is None or isinstance(environment, Environment):
        return environment
    if isinstance(environment, Mapping) and "class_path" not in environment:
        choices = {}
        for name, item in environment.items():
            made = as_environment(item)
            if made:
                choices[name] = made
        return EnvironmentChoice(choices)
    if "class_path" in (environment if isinstance(environment, str | Mapping) else ""):
        raise UserError(
            f"rollout.environment: {environment} names no Environment; give a class of another kind by its dotted path "
            "alone, such as my_env.Shop"
        )
    if isinstance(environment, str):
        name = environment
        ours = import_module("lit_rlvr.environments")
        if "." not in name and name not in ours.__all__:
            hint = did_you_mean(name, ours.__all__, "give the dotted path of a class of yours, such as my_env.Shop")
            raise UserError(f"rollout.environment: there is no environment {name!r}; {hint}")
        factory = import_path("rollout.environment", name if "." in name else f"{ours.__name__}.{name}")
    else:
        factory = environment
        name = getattr(environment, "__qualname__", repr(environment))
    if not callable(factory):
        raise UserError(f"rollout.environment: {name} is neither a class nor a function that returns an environment")
    try:
        is_environment = isinstance(factory, type) and issubclass(factory, Environment)
        if is_environment:
            return factory()
        return WrappedTools(factory)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"rollout.environment: {name}() fails: {with_user_line(error)}") from error


def as_tool_result(name: str, value: Any) -> ToolResult:
    """Make a tool message of what a tool returned.

    Raises:
        ValueError: an image block holds no PIL image.
    """
    if not is_content(value):
        if is_image(value):
            value = [{"type": "image", "image": value}]
        else:
            value = [{"type": "text", "text": str(value)}]
    images = tuple(block.get("image") for block in value if block["type"] == "image")
    if not all(map(is_image, images)):
        raise ValueError("an image block must hold a PIL image")
    texts = []
    for block in value:
        if block["type"] == "text":
            texts.append(str(block.get("text", "")))
    return ToolResult(name, "".join(texts), images)


def is_content(value: Any) -> bool:
    """Return True for a list of content blocks: texts and images."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(block, dict) and block.get("type") in ("text", "image") for block in value)
    )


def is_image(value: Any) -> bool:
    """Return True for a PIL image, without importing PIL."""
    for cls in type(value).__mro__:
        if cls.__module__ == "PIL.Image" and cls.__name__ == "Image":
            return True
    return False
