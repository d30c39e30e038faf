"""Functions as rewards, unchanged, whether they were written for lit-rlvr, TRL or verl."""

from __future__ import annotations

import asyncio
import inspect
import os
import re
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from importlib import import_module
from typing import Any

from lit_rlvr.errors import UserError, defined_at, nearest
from lit_rlvr.rewards.base import Reward, as_result, check_rewards
from lit_rlvr.types import Completion, Pair, RewardResult, Sample
from lit_rlvr.workers.pool import Waiting

TRL = ("prompts", "completions", "completion_ids")
VERL = ("data_source", "solution_str", "ground_truth", "extra_info")
VERL_BATCH = ("data_sources", "solution_strs", "ground_truths", "extra_infos")
"""The parameters by which a function of each library is recognised."""

ANSWER_COLUMNS = ("answer", "solution", "ground_truth")
"""Columns that hold the reference answer, for functions of TRL and data without such a column."""


@dataclass
class TrainerState:
    """The progress of the run, as TRL's `trainer_state` gives it.

    Args:
        global_step: optimizer steps taken.
        max_steps: optimizer steps of the whole run.
    """

    global_step: int = 0
    max_steps: int = -1


class FunctionReward(Reward):
    """A function as a reward; the names of its parameters tell for which library it was written.

    lit-rlvr's `(completion, sample) -> float | bool | RewardResult | None` judges one completion, TRL's
    `(prompts, completions, **columns) -> list[float | None]` all completions of a rollout, verl's
    `compute_score(data_source, solution_str, ground_truth, extra_info)` one. Each may be `async`. A class, or a
    function that returns such a function (`trl.rewards.get_soft_overlong_punishment`), is called with `options` first.

    Args:
        path: the function as `module.function`; modules in the current directory work.
        options: further keyword arguments of the function.
        truncated_is_wrong: a completion cut off at max_tokens is not right and earns at most 0. Default: false for
            functions of TRL and verl, which judge the text so far, else true.
        kwargs: `weight`, `correct_from`, `name` and `isolate` of every reward; the default name is the function's.
            With `isolate`, a function of TRL gets one completion per call.

    Raises:
        UserError: the function cannot be imported, or takes other arguments; the message says which.
    """

    def __init__(
        self,
        path: str,
        options: dict[str, Any] | None = None,
        truncated_is_wrong: bool | None = None,
        **kwargs: Any,
    ) -> None:
        named = load_function(path)
        self.function = with_options(named, options or {}, path)
        parameters = parameters_of(self.function)
        self.is_trl, self.is_verl = is_for_trl(parameters), "solution_str" in parameters
        self.is_verl_batch = "solution_strs" in parameters
        self.takes_batch = self.is_trl or self.is_verl_batch
        is_foreign = self.takes_batch or self.is_verl
        super().__init__(
            truncated_is_wrong=not is_foreign if truncated_is_wrong is None else truncated_is_wrong, **kwargs
        )
        self.whole_rollout = self.takes_batch and self.isolation is None
        self.is_async = is_async(self.function)
        self.wants_messages = has_messages(parameters)
        self.state = TrainerState()
        self.dotted_path = path
        if kwargs.get("name") is None:
            self.name = getattr(self.function, "__name__", None) or getattr(named, "__name__", "") or path

    def begin_rollout(self, step: int, max_steps: int) -> None:
        self.state = TrainerState(step, max_steps)
        self.metrics = {name: [] for name in self.metrics}

    def __call__(self, completion: Completion, sample: Sample) -> float | RewardResult | None:
        (value,) = self.values([(completion, sample)])
        if isinstance(value, BaseException):
            raise value
        return value

    def score_here(self, pairs: Sequence[Pair]) -> list[RewardResult]:
        if not pairs or not (self.takes_batch or self.is_async):
            return super().score_here(pairs)
        with Waiting(self.dotted_path, [sample.id for _, sample in pairs]) as waiting, waiting.judging(0):
            try:
                values = self.values(pairs)
            except (UserError, KeyboardInterrupt):
                raise
            except BaseException as error:
                values = [error] * len(pairs)
        return [self.judged(value, completion) for value, (completion, _) in zip(values, pairs, strict=True)]

    def values(self, pairs: Sequence[Pair]) -> list[Any]:
        """Call the function; return a value, or the exception of an asynchronous call, for each completion.

        Raises:
            UserError: a function that judges all completions does not return one value for each.
        """
        if self.takes_batch:
            extra: dict[str, list[Any]] = {}
            arguments = trl_arguments(pairs, self.wants_messages) if self.is_trl else verl_batch_arguments(pairs)
            if self.is_trl:
                arguments |= {"trainer_state": self.state, "log_extra": _adder(extra), "log_metric": self._log_metric}
            values = self._run([self._call(arguments)])[0]
            if isinstance(values, BaseException):
                raise values
            return with_details(require_values(values, len(pairs), self), extra, self)
        if self.is_verl:
            calls = [self._call(verl_arguments(pair)) for pair in pairs]
        else:
            calls = [partial(self.function, *pair) for pair in pairs]
        return [verl_result(value) if self.is_verl else value for value in self._run(calls)]

    def _call(self, arguments: Mapping[str, Any]) -> Callable[[], Any]:
        """Prepare a call with the arguments that the function takes."""
        return partial(self.function, **accepted_arguments(self.function, arguments))

    def _run(self, calls: Sequence[Callable[[], Any]]) -> list[Any]:
        """Return the results of calls, which run concurrently if the function is asynchronous."""
        if not self.is_async:
            return [call() for call in calls]
        return asyncio.run_coroutine_threadsafe(_gather([call() for call in calls]), event_loop(os.getpid())).result()

    def _log_metric(self, name: str, value: float) -> None:
        self.metrics.setdefault(name, []).append(float(value))

    def judging_function(self) -> object:
        return self.function


def load_function(path: str) -> Any:
    """Import what a dotted path names.

    Raises:
        UserError: it cannot be imported, or called; the message says which import failed.
    """
    module, _, function = path.rpartition(".")
    if not module or path.startswith("."):
        near = nearest(path, import_module("lit_rlvr.rewards").__all__)
        hint = f"did you mean {near!r}? " if near else ""
        raise UserError(
            f"rollout.rewards: there is no reward {path!r}; {hint}give a class of lit-rlvr, or module.function"
        )
    where = f"rewards.FunctionReward.path {path!r}"
    try:
        found = getattr(import_module(module), function)
    except (ImportError, SyntaxError) as error:
        install = ""
        if getattr(error, "name", None) == "trl":
            from lit_rlvr.common.packages import pip_command

            install = f"; {pip_command('trl')}"
        raise UserError(f"{where}: importing {module!r} failed: {error}{install}") from error
    except AttributeError as error:
        near = nearest(function, vars(import_module(module)))
        raise UserError(f"{where}: {error}{f'; did you mean {near!r}?' if near else ''}") from error
    if inspect.isabstract(found):
        raise UserError(f"{where}: it lacks {', '.join(sorted(found.__abstractmethods__))}; define it in the class")
    if not callable(found):
        raise UserError(f"{where} is not callable")
    return found


def with_options(function: Any, options: Mapping[str, Any], path: str) -> Any:
    """Return the reward function: `function` with its options, or what `function` makes of them.

    Raises:
        UserError: the options do not fit, or `function` is no reward function and makes none.
    """
    if is_reward_function(function, options):
        return partial(function, **options) if options else function
    where = f"rewards.FunctionReward.path {path!r}"
    try:
        inspect.signature(function).bind(**options)
    except ValueError:  # a class written in C
        pass
    except TypeError as error:
        raise UserError(
            f"{where} takes neither (completion, sample) nor the arguments of TRL "
            f"({', '.join(TRL)}) or verl ({', '.join(VERL)}), and as a function that makes a reward it lacks options: "
            f"{error}; give them as `options: {{NAME: VALUE}}`"
        ) from error
    made = function(**options)
    if not callable(made):
        raise UserError(f"{where}: it makes no reward function but {type(made).__name__}")
    return made


def is_reward_function(function: Any, options: Mapping[str, Any]) -> bool:
    """Return True if a callable takes completions, False if it makes such a callable of its options."""
    parameters = parameters_of(function)
    if isinstance(function, type) or "Callable" in str(getattr(function, "__annotations__", {}).get("return", "")):
        return False
    if is_for_trl(parameters) or {"solution_str", "solution_strs"} & parameters.keys():
        return True
    try:
        signature = inspect.signature(function)
    except ValueError:  # a C function
        return True
    return not _binds(signature, **options) and _binds(signature, None, None, **options)


def _binds(signature: inspect.Signature, *args: Any, **kwargs: Any) -> bool:
    """Return True if a function with this signature takes these arguments."""
    try:
        signature.bind(*args, **kwargs)
    except TypeError:
        return False
    return True


def parameters_of(function: Any) -> dict[str, inspect.Parameter]:
    """Return the parameters of a callable; none if Python does not know them."""
    try:
        return dict(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return {}


def is_for_trl(parameters: Mapping[str, inspect.Parameter]) -> bool:
    """Return True for the parameters of a reward function for TRL: one of its names, or keyword arguments alone."""
    kinds = {parameter.kind for parameter in parameters.values()}
    return bool({*TRL, "environments"} & parameters.keys()) or kinds == {inspect.Parameter.VAR_KEYWORD}


def accepted_arguments(function: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return those arguments that a function has parameters for; all, if it has a `**kwargs`."""
    parameters = parameters_of(function)
    takes_all = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    return {name: value for name, value in arguments.items() if takes_all or name in parameters}


def has_messages(parameters: Mapping[str, inspect.Parameter]) -> bool:
    """Return True if the annotation of `completions` says that each is a list of messages."""
    return "completions" in parameters and bool(
        re.search(r"[Ll]ist\[(typing\.)?[Ll]ist\b", str(parameters["completions"].annotation))
    )


def is_async(function: Any) -> bool:
    """Return True if calls of a function or an object must be awaited."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


def trl_arguments(pairs: Sequence[Pair], messages: bool) -> dict[str, Any]:
    """Return the arguments that TRL's GRPOTrainer gives to a reward function: prompts, completions, tokens, columns.

    A completion is a list of messages if the data set's prompt is one, else text.

    Args:
        messages: give messages in any case.
    """
    rows = [sample.row for _, sample in pairs]
    names = dict.fromkeys(name for row in rows for name in row)
    columns: dict[str, Any] = {name: [row.get(name) for row in rows] for name in names}
    answers = [sample.answer for _, sample in pairs]
    prompts: list[Any] = []
    completions: list[Any] = []
    for completion, sample in pairs:
        chat = messages or not isinstance(sample.prompt, str)
        prompts.append(as_messages(sample.prompt) if chat else sample.prompt)
        completions.append(completion_messages(completion) if chat else completion.text)
    for name in ("prompt", "completion"):
        columns.pop(name, None)
    return {
        **{name: answers for name in ANSWER_COLUMNS},
        **columns,
        "prompts": prompts,
        "completions": completions,
        "completion_ids": [list(completion.token_ids) for completion, _ in pairs],
    }


def as_messages(prompt: str | list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a prompt as chat messages."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def completion_messages(completion: Completion) -> list[dict[str, Any]]:
    """Return a completion as chat messages; of an episode, its turns and what the environment answered."""
    if not completion.turns:
        return [{"role": "assistant", "content": completion.text}]
    messages = []
    for turn in completion.turns:
        messages.append({"role": "assistant", "content": turn.text})
        if turn.observation is not None:
            messages.append({"role": "tool", "content": turn.observation})
    return messages


def verl_arguments(pair: Pair) -> dict[str, Any]:
    """Return the arguments that verl gives to `compute_score`; without its columns, the reference is the answer."""
    completion, sample = pair
    row = sample.row
    model = row.get("reward_model")
    truth = model.get("ground_truth") if isinstance(model, Mapping) else None
    return {
        "data_source": row.get("data_source", ""),
        "solution_str": completion.text,
        "ground_truth": sample.answer if truth is None else truth,
        "extra_info": dict(row.get("extra_info") or {}),
    }


def verl_batch_arguments(pairs: Sequence[Pair]) -> dict[str, list[Any]]:
    """Return the arguments that verl's batch reward manager gives."""
    calls = [verl_arguments(pair) for pair in pairs]
    return {many: [call[one] for call in calls] for one, many in zip(VERL, VERL_BATCH, strict=True)}


def verl_result(value: Any) -> Any:
    """Return a result of verl's as one of ours: `{"score": ..., "acc": ...}` gives the reward and `correct`."""
    if not isinstance(value, Mapping):
        return value
    accuracy = value.get("acc")
    correct = bool(accuracy) if accuracy in (0, 1) else None
    detail = "; ".join(f"{name}: {part}" for name, part in value.items() if name not in ("score", "acc"))
    return replace(as_result(float(value["score"])), correct=correct, detail=detail)


def require_values(values: Any, count: int, reward: FunctionReward) -> list[Any]:
    """Return the values of a whole rollout as a list.

    Raises:
        UserError: they are not one for each completion.
    """
    listed = values.tolist() if hasattr(values, "tolist") else values
    if not isinstance(listed, list | tuple) or len(listed) != count:
        got = f"{len(listed)} values" if isinstance(listed, list | tuple) else type(values).__name__
        raise UserError(
            f"reward {reward.name!r}: {defined_at(reward.function)} must return a list with one value for each of the "
            f"{count} completions, it returned {got}"
        )
    return [verl_result(value) for value in listed]


def with_details(values: list[Any], extra: Mapping[str, Sequence[Any]], reward: FunctionReward) -> list[Any]:
    """Return the values with what the function gave to `log_extra` as the details of the completions.

    Raises:
        UserError: a column does not have one value for each completion.
    """
    for column, logged in extra.items():
        if len(logged) != len(values):
            raise UserError(
                f"reward {reward.name!r}: log_extra({column!r}, ...) must get one value for each of the {len(values)} "
                f"completions, it got {len(logged)}"
            )
    if not extra:
        return values
    results = [as_result(value) for value in values]
    details = ["; ".join(f"{name}: {column[i]}" for name, column in extra.items()) for i in range(len(values))]
    return [replace(result, detail=detail) for result, detail in zip(results, details, strict=True)]


def _adder(extra: dict[str, list[Any]]) -> Callable[[str, list[Any]], None]:
    """Return TRL's `log_extra`, which collects the values of a column."""
    return lambda column, values: extra.setdefault(column, []).extend(values)


@lru_cache(maxsize=1)
def event_loop(process: int) -> asyncio.AbstractEventLoop:
    """Return the loop of this process's asynchronous functions: one, so that their clients stay connected."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="lit-rlvr-async", daemon=True).start()
    return loop


async def _gather(calls: Sequence[Awaitable[Any]]) -> list[Any]:
    return await asyncio.gather(*calls, return_exceptions=True)


def as_rewards(rewards: Sequence[Reward | str]) -> list[Reward]:
    """Resolve the rewards of a config: a dotted path becomes a `FunctionReward`, a `Reward` stays unchanged.

    Raises:
        UserError: the rewards cannot be used together, or one cannot be isolated as requested.
    """
    made = [FunctionReward(reward) if isinstance(reward, str) else reward for reward in rewards]
    check_rewards(made)
    for reward in made:
        if reward.isolation is not None:
            _ = reward.for_workers
    return made
