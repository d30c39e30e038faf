"""Functions as rewards, unchanged, whether they were written for lit-rlvr or for another library."""

from __future__ import annotations

import asyncio
import inspect
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from types import SimpleNamespace
from typing import Any

from lit_rlvr.common.arguments import type_text
from lit_rlvr.common.did_you_mean import did_you_mean
from lit_rlvr.common.init_arguments import dotted_path_of
from lit_rlvr.common.log import log
from lit_rlvr.common.packages import import_path
from lit_rlvr.common.user_code import defined_at
from lit_rlvr.errors import UserError, refuse_all
from lit_rlvr.rewards.base import Reward, as_result, check_rewards
from lit_rlvr.rewards.format import TAG
from lit_rlvr.rewards.forms import (
    KNOWN,
    OWN,
    SLIME,
    TRL,
    TRL_HELPERS,
    Form,
    accepted_arguments,
    as_list,
    form_of,
    numbers_of,
    parameters_of,
    read_result,
    required,
    rows_of_columns,
)
from lit_rlvr.types import Completion, Pair, RewardResult, Sample
from lit_rlvr.workers.pool import Waiting

NO_COMPLETION, NO_SAMPLE = Completion("", (), "stop"), Sample("", "", "")
"""What shows the names of a form's arguments."""


class FunctionReward(Reward):
    """A function as a reward; the names of its parameters tell for which library it was written.

    lit-rlvr's `(completion, sample) -> float | bool | RewardResult | None` judges one completion. So do verl's
    `compute_score(data_source, solution_str, ground_truth, extra_info)`, EasyR1's `compute_score(reward_input)` and
    slime's `reward_func(args, sample)`. TRL's `(prompts, completions, **columns) -> list[float | None]`, OpenRLHF's
    `reward_func(queries, prompts, labels)`, EasyR1's `compute_score(reward_inputs)` and verl's with lists in plural
    names judge all completions of a rollout. Each may be `async`. A class, or a function that returns such a function
    (`trl.rewards.get_soft_overlong_punishment`), is called with `options` first.

    Args:
        path: the function as `module.function`, modules in the current directory included; from Python also the
            function itself.
        options: further keyword arguments of the function; for slime's, the attributes of `args`.
        truncated_is_wrong: a completion cut off at max_tokens is not right and earns at most 0. Default: false for
            functions of other libraries, which judge the text so far, else true.
        kwargs: `weight`, `correct_from`, `name` and `isolate` of every reward; the default name is the function's.
            With `isolate`, a function that judges all completions gets one per call.

    Raises:
        UserError: the function cannot be imported, or takes other arguments; the message says which.
    """

    def __init__(
        self,
        path: str | Callable[..., Any],
        options: dict[str, Any] | None = None,
        truncated_is_wrong: bool | None = None,
        **kwargs: Any,
    ) -> None:
        if isinstance(path, partial) and not path.args:
            options = {**path.keywords, **(options or {})}
            path = path.func
        if isinstance(path, str):
            named = load_function(path)
        else:
            named = path
        if not isinstance(path, str):
            path = dotted_path_of(path if hasattr(path, "__qualname__") else type(path))
        if isinstance(named, type) and issubclass(named, Reward):
            raise UserError(f"rollout.rewards: {path} is a class; give one with its options, {named.__name__}(...)")
        self.function, self.form = with_options(named, options or {}, path)
        if truncated_is_wrong is None:
            truncated_is_wrong = self.form is OWN
        super().__init__(truncated_is_wrong=truncated_is_wrong, **kwargs)
        self.whole_rollout = self.form.is_batch and self.isolation is None
        callables = self.function, getattr(self.function, "__call__", None)  # noqa: B004
        self.is_async = any(map(inspect.iscoroutinefunction, callables))
        self.state = SimpleNamespace(global_step=0, max_steps=-1)  # optimizer steps, as in TRL's `trainer_state`
        self.dotted_path = path
        if kwargs.get("name") is None:
            self.name = getattr(self.function, "__name__", None) or getattr(named, "__name__", "") or path

    def begin_rollout(self, step: int, max_steps: int) -> None:
        self.state = SimpleNamespace(global_step=step, max_steps=max_steps)
        super().begin_rollout(step, max_steps)

    def __call__(self, completion: Completion, sample: Sample) -> float | RewardResult | None:
        (value,) = self.values([(completion, sample)])
        if isinstance(value, BaseException):
            raise value
        return value

    def score_in_process(self, pairs: Sequence[Pair]) -> list[RewardResult]:
        if not pairs or not (self.form.is_batch or self.is_async):
            return super().score_in_process(pairs)
        with Waiting(self.dotted_path, [sample.id for _, sample in pairs]) as waiting, waiting.judging(0):
            try:
                values = self.values(pairs)
            except (UserError, KeyboardInterrupt):
                raise
            except BaseException as error:
                values = [error] * len(pairs)
        results = []
        for value, (completion, _) in zip(values, pairs, strict=True):
            results.append(self.result_of(value, completion))
        return results

    def values(self, pairs: Sequence[Pair]) -> list[Any]:
        """Call the function; return a value, or the exception of an asynchronous call, for each completion.

        Raises:
            UserError: a function that judges all completions does not return one value for each.
        """
        if self.form.is_batch:
            extra: dict[str, list[Any]] = {}
            helpers = {
                "trainer_state": self.state,
                "log_extra": lambda column, values: extra.setdefault(column, []).extend(values),
                "log_metric": lambda name, value: self.metrics.setdefault(name, []).append(float(value)),
            }
            (values,) = self._run([self._call(pairs, helpers if self.form is TRL else {})])
            if isinstance(values, BaseException):
                raise values
            self._log_numbers(values)
            return with_details(self._read(require_values(values, len(pairs), self)), extra, self)
        return self._read(self._run([self._call([pair], {}) for pair in pairs]))

    def _call(self, pairs: Sequence[Pair], more: Mapping[str, Any]) -> Callable[[], Any]:
        """Prepare a call with the arguments that the function takes."""
        arguments = {**self.form.arguments(pairs, self.function), **more}
        if self.form is OWN and not set(OWN.parameters) <= parameters_of(self.function).keys():  # they have no names
            return partial(self.function, *arguments.values())
        return partial(self.function, **accepted_arguments(self.function, arguments))

    def _run(self, calls: Sequence[Callable[[], Any]]) -> list[Any]:
        """Return the results of calls, which run concurrently if the function is asynchronous."""
        results = [call() for call in calls]
        if any(map(inspect.isawaitable, results)):
            return resolved(_gather(results))
        return results

    def _read(self, values: Sequence[Any]) -> list[Any]:
        """Return the values as results, or the exceptions in their places; log the further numbers of dicts."""
        read: list[Any] = []
        for value in values:
            self._log_numbers(value)
            try:
                if isinstance(value, BaseException):
                    read.append(value)
                else:
                    read.append(read_result(value))
            except (TypeError, ValueError) as error:
                read.append(error)
        return read

    def _log_numbers(self, value: Any) -> None:
        for name, numbers in numbers_of(value).items():
            self.metrics.setdefault(f"{self.name}/{name}", []).extend(numbers)

    def check_reference(self, sample: Sample) -> None:
        given = {*self.form.arguments([(NO_COMPLETION, sample)], self.function), *TRL_HELPERS}
        missing = []
        for name in required(parameters_of(self.function)):
            if name not in given:
                missing.append(name)
        if self.form is TRL and missing:
            raise UserError(
                f"reward {self.name!r}: {self.dotted_path} takes {', '.join(missing)}, which is no column of "
                f"{sample.source or sample.id}; name the parameter after a column, or give it a default"
            )

    def check_prefill(self, prefill: str) -> None:
        try:
            source = inspect.getsource(inspect.unwrap(getattr(self.function, "func", self.function)))
        except (OSError, TypeError):  # it has no file, or is an object
            return
        tag = next((tag for tag in TAG.findall(prefill) if tag in source), None)
        if tag:
            log.warning(
                "reward %r: its code names %s, which the chat template or the data's prefill writes (%r) and so no "
                "completion has; set data.init_args.chat.score_prefill: true if it looks for that in the text",
                self.name,
                tag,
                prefill,
            )


def load_function(path: str) -> Any:
    """Import what a dotted path names.

    Raises:
        UserError: it cannot be imported, or called; the message says which import failed.
    """
    if "." not in path or path.startswith("."):
        from lit_rlvr import rewards

        hint = did_you_mean(path, rewards.__all__)
        remedy = " ".join(filter(None, (hint, "give a class of lit-rlvr, or module.function")))
        raise UserError(f"rollout.rewards: there is no reward {path!r}; {remedy}")
    where = f"rewards.FunctionReward.path {path!r}"
    function = import_path("rewards.FunctionReward.path", path)
    if inspect.isabstract(function):
        raise UserError(f"{where}: it lacks {', '.join(sorted(function.__abstractmethods__))}; define it in the class")
    if not callable(function):
        raise UserError(f"{where} is not callable")
    return function


def with_options(function: Any, options: Mapping[str, Any], path: str) -> tuple[Any, Form]:
    """Return the reward function, `function` with its options or what `function` makes of them, and its form.

    Raises:
        UserError: the options do not fit, or `function` is no reward function and makes none.
    """
    where = f"rewards.FunctionReward.path {path!r}"
    returned = str(getattr(function, "__annotations__", {}).get("return", ""))
    if isinstance(function, type) or "Callable" in returned:
        form = None
    else:
        form = form_of(function)
    if form is not None:
        if form is SLIME:
            given = {"args": SimpleNamespace(**options)}
        else:
            given = dict(options)
        check_arguments(function, form, given, where)
        return (partial(function, **given) if given else function), form
    parameters = parameters_of(function)
    signature = inspect.signature(function) if parameters else "()"
    try:
        if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters.values()):
            raise TypeError("its parameters have no names (functools.wraps keeps those of a decorated function)")
        inspect.signature(function).bind(**options)
    except ValueError:  # a class written in C
        pass
    except TypeError as error:
        raise UserError(
            f"{where}: its parameters {signature} are of no known form, which are {KNOWN}; and as a function that "
            f"makes a reward from `options: {{NAME: VALUE}}` it lacks options: {error}"
        ) from error
    scorer = function(**options)
    form = form_of(scorer) if callable(scorer) else None
    if form is None:
        raise UserError(f"{where}: it makes {type_text(scorer)} of none of the known forms, which are {KNOWN}")
    check_arguments(scorer, form, {}, where)
    return scorer, form


def check_arguments(function: Any, form: Form, options: Mapping[str, Any], where: str) -> None:
    """Refuse a function that takes more than its library and the options give, or does not take the options.

    Args:
        function: the user's function.
        form: the library whose arguments it takes.
        options: further arguments from the config.
        where: the function's place, for messages.

    Raises:
        UserError: names the arguments.
    """
    parameters = parameters_of(function)
    if form.takes_columns or not parameters:
        return  # the data have the others
    names = {*form.arguments([(NO_COMPLETION, NO_SAMPLE)], function), *options}
    missing = []
    for name in required(parameters):
        if name not in names:
            missing.append(name)
    if missing:
        raise UserError(
            f"{where}: as a function of {form.library} it gets {', '.join(form.parameters)}, not {', '.join(missing)}; "
            "give these as `options: {NAME: VALUE}`"
        )
    unknown = options.keys() - accepted_arguments(function, options).keys()
    if unknown:
        raise UserError(f"{where}: it has no parameter {', '.join(sorted(unknown))}; mend its options")


def require_values(values: Any, count: int, reward: FunctionReward) -> list[Any]:
    """Return the values of a whole rollout as a list.

    Raises:
        UserError: they are not one for each completion.
    """
    if isinstance(values, Mapping):
        listed = rows_of_columns(values)
    else:
        listed = as_list(values)
    if not isinstance(listed, list | tuple) or len(listed) != count:
        if isinstance(listed, list | tuple):
            text = f"{len(listed)} values"
        else:
            text = type(values).__name__
        raise UserError(
            f"reward {reward.name!r}: {defined_at(reward.function)} must return a list with one value for each of the "
            f"{count} completions, it returned {text}"
        )
    return list(listed)


def with_details(values: list[Any], extra: Mapping[str, Sequence[Any]], reward: FunctionReward) -> list[Any]:
    """Return the values with what the function gave to `log_extra` as the details of the completions.

    Raises:
        UserError: a column does not have one value for each completion.
    """
    problems = []
    for column, logged in extra.items():
        if len(logged) != len(values):
            problems.append(
                f"reward {reward.name!r}: log_extra({column!r}, ...) must get one value for each of the {len(values)} "
                f"completions, it got {len(logged)}"
            )
    refuse_all(problems)
    if not extra:
        return values
    results: list[Any] = []
    for i, value in enumerate(values):
        if isinstance(value, BaseException):
            results.append(value)
            continue
        detail = "; ".join(f"{name}: {column[i]}" for name, column in extra.items())
        results.append(replace(as_result(value), detail=detail))
    return results


@lru_cache(maxsize=1)
def event_loop(process: int) -> asyncio.AbstractEventLoop:
    """Return the loop of this process's asynchronous functions: one, so that their clients stay connected."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="lit-rlvr-async", daemon=True).start()
    return loop


def resolved(value: Any) -> Any:
    """Return a value, or what it awaits."""
    if not inspect.isawaitable(value):
        return value
    return asyncio.run_coroutine_threadsafe(_awaited(value), event_loop(os.getpid())).result()


async def _gather(results: Sequence[Any]) -> list[Any]:
    return await asyncio.gather(*map(_awaited, results), return_exceptions=True)


async def _awaited(result: Any) -> Any:
    if inspect.isawaitable(result):
        return await result
    return result


def as_rewards(rewards: Sequence[Reward | str]) -> list[Reward]:
    """Resolve the rewards of a config: a dotted path becomes a `FunctionReward`, a `Reward` stays.

    Raises:
        UserError: the rewards cannot be used together, or one cannot be isolated as requested.
    """
    built = []
    for reward in rewards:
        built.append(FunctionReward(reward) if isinstance(reward, str) else reward)
    check_rewards(built)
    for reward in built:
        if reward.isolation is not None:
            _ = reward.for_workers
    return built
