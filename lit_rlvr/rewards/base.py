"""The base class of rewards: callables on (completion, sample), scored in batches."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lit_rlvr.common.arguments import ChecksArguments
from lit_rlvr.common.columns import as_object
from lit_rlvr.common.init_arguments import dotted_path_of, init_arguments, snake_case
from lit_rlvr.common.log import log
from lit_rlvr.common.user_code import check_calls_super, first_line_of, user_line
from lit_rlvr.errors import UserError, first_line
from lit_rlvr.types import Completion, Pair, Prompt, RewardResult, Sample
from lit_rlvr.workers.pool import Waiting, shared_pool
from lit_rlvr.workers.process import Function, Isolation, Outcome, pickle_for_worker

if TYPE_CHECKING:
    import torch


_IS_LOGGED = ContextVar("is_logged", default=True)
"""Whether rewards may log metrics. The thread that scores has the context in which it was started."""


@contextmanager
def unlogged() -> Iterator[None]:
    """Forget what rewards log in this context; training, which may judge at the same time, still logs."""
    token = _IS_LOGGED.set(False)
    try:
        yield
    finally:
        _IS_LOGGED.reset(token)


class RunProcess(NamedTuple):
    """The place of a process in a run.

    Args:
        device: the device on which it trains.
        processes: the number of the run's processes, on all machines.
        machine: the number of its machine.
        machines: the number of machines.
    """

    device: torch.device
    processes: int = 1
    machine: int = 0
    machines: int = 1

    @classmethod
    def within(cls, trainer: Any) -> RunProcess:
        """Return the place of this process in a Trainer's run."""
        return cls(trainer.strategy.root_device, trainer.world_size, trainer.node_rank, trainer.num_nodes)


class Reward(ChecksArguments, ABC):
    """Base class of rewards: scores completions.

    Subclasses pass their `**kwargs` to it. A run calls, in this order: `check_reference` for each row, `set_process`,
    `connect`, `begin_run`; then for each rollout `begin_rollout` and `score`; at the end `close`. A subclass needs only
    `__call__`.

    Example:
        ```python
        from lit_rlvr import Reward


        class EndsWithAnswer(Reward):
            def __call__(self, completion, sample):
                return completion.text.strip().endswith(sample.answer)  # True and False also report `correct`
        ```

    Args:
        weight: factor of this reward in the weighted sum.
        correct_from: take `correct` (accuracy, pass@k) from this reward. If no reward sets this, `correct` comes from
            the first one that reports it; if none does in the whole run, value 1 of the first reward is correct.
        name: the reward's name in metrics (`reward/<name>`). Default: the class name in snake case.
        isolate: judge each completion in a worker process, where a crash, a hang or a leak affects only that
            completion; true, or limits other than `{cpu_seconds: 2, wall_seconds: 20, memory_mb: 2048}`.
        truncated_is_wrong: a completion cut off at max_tokens is not right and earns at most 0, because its answer has
            not ended. False judges the text so far.

    Raises:
        UserError: the weight is not a finite number, or this reward does not support `isolate`.

    Attributes:
        whole_rollout: True = `score` gets all completions of a rollout at once, after the last of them is generated;
            False = groups of them as they come.
        reports_correct: True = it says whether an answer is right; False = it never does, and its rows have no accuracy
            unless `correct_from` asks for it; None = its values tell.
        needs_answer: it judges by the row's reference answer, which its rows may not lack.
        compares: a completion's value depends on the others of its group.
        assumed_max_tokens: the `max_tokens` of completions that its settings assume; None = any.
        metrics: numbers to log as `reward/<name>`: their means over what training judged since the rollout before; [] =
            none this time.
    """

    config_key = "rewards.{}"
    whole_rollout = False
    reports_correct: bool | None = None
    needs_answer = True
    compares = False
    assumed_max_tokens: int | None = None

    def __init__(
        self,
        weight: float = 1.0,
        correct_from: bool = False,
        name: str | None = None,
        isolate: bool | Isolation = False,
        truncated_is_wrong: bool = True,
    ) -> None:
        self.init_args = init_arguments()
        cls = type(self)
        if not math.isfinite(weight):
            raise UserError(f"rewards.{cls.__name__}.weight must be a finite number, got {weight}")
        if isolate and cls.score is not Reward.score:
            raise UserError(
                f"rewards.{cls.__name__}.isolate: leave it out, {cls.__name__} judges batches with its own method "
                "(MathAnswer, CodeTests and SQLExecution already use worker processes)"
            )
        self.weight = weight
        self.correct_from = correct_from
        self.name = name or snake_case(cls.__name__)
        self.dotted_path = dotted_path_of(cls)
        if isinstance(isolate, bool):
            self.isolation = Isolation() if isolate else None
        else:
            self.isolation = isolate
        self.truncated_is_wrong = truncated_is_wrong
        self._metrics: dict[str, list[float]] = {}

    @property
    def metrics(self) -> dict[str, list[float]]:
        """The numbers to log; during a validation, a dictionary that nobody reads."""
        if _IS_LOGGED.get():
            return self._metrics
        return {}

    @metrics.setter
    def metrics(self, metrics: dict[str, list[float]]) -> None:
        if _IS_LOGGED.get():
            self._metrics = metrics

    def set_process(self, process: RunProcess) -> None:
        """Learn which process of the run this is; called first, before `begin_run` and `connect`.

        Raises:
            UserError: this reward cannot have a copy of its own in each process.
        """

    def connect(self) -> None:
        """Reach what this reward needs outside of this process; called once, before the weights load.

        Raises:
            UserError: it is not there.
        """

    def begin_run(self, folder: Path) -> None:
        """Learn the run's folder, which is ready for files; called before the first step, and perhaps earlier too."""

    def begin_rollout(self, step: int, max_steps: int) -> None:
        """Learn that a rollout of training begins; its completions are scored next.

        Args:
            step: optimizer steps that the run has taken.
            max_steps: optimizer steps of the whole run.
        """

    def check_reference(self, sample: Sample) -> None:
        """Refuse a sample whose reference this reward cannot read; called for all samples when the data are loaded.

        Raises:
            UserError: says what is wrong with the reference, and what to do.
        """

    def check_prefill(self, prefill: str) -> None:
        """Refuse, or warn of, a prefill that this reward looks for in the text, where it never is.

        Args:
            prefill: what begins every answer in the prompt and is not scored.
        """

    @abstractmethod
    def __call__(self, completion: Completion, sample: Sample) -> float | RewardResult | None:
        """Return the reward of one completion; True and False also report `correct`, a number does not.

        None means that this reward does not judge the completion: the others decide. A completion that none of them
        judges is masked out of the loss, unless there is a teacher.
        """

    def gold_completion(self, sample: Sample) -> str | None:
        """Return a completion that answers a sample as its reference does; None if the reward knows no such text."""
        return None

    def explain(self, completion: Completion, sample: Sample) -> list[tuple[str, str]]:
        """Judge one completion; return each stage of the judgement with its result."""
        (result,) = self.score([(completion, sample)])
        correct = {True: "yes", False: "no", None: "not reported"}[result.correct]
        stages = [("value", f"{result.value:g}"), ("correct", correct), ("status", result.status)]
        for criterion, score in result.criteria.items():
            stages.append((criterion, f"{score:g}"))
        if result.detail:
            return [*stages, ("detail", result.detail)]
        return stages

    def summarise(self, criteria: Sequence[Mapping[str, float]]) -> dict[str, float]:
        """Return further results of a suite from the criteria of its completions; none by default."""
        return {}

    def score(self, pairs: Sequence[Pair]) -> list[RewardResult]:
        """Judge a batch, in order. Rewards with their own worker processes override this.

        An exception in the checker becomes status "error" for that completion alone, which masks it out of the loss. A
        `UserError` is about the configuration, so it ends the run.
        """
        if self.isolation:
            return self._score_isolated(pairs, self.isolation)
        return self.score_in_process(pairs)

    def score_in_process(self, pairs: Sequence[Pair]) -> list[RewardResult]:
        """Judge a batch in this process, in order."""
        results = []
        with Waiting(self.dotted_path, [sample.id for _, sample in pairs]) as waiting:
            for number, pair in enumerate(pairs):
                with waiting.judging(number):
                    results.append(self._judge(*pair))
        return results

    def _score_isolated(self, pairs: Sequence[Pair], limits: Isolation) -> list[RewardResult]:
        """Judge a batch in worker processes, where a reward can neither hang nor end the run.

        Raises:
            UserError: a sample cannot be pickled, or the reward cannot be loaded or raised it.
        """
        remedy = f"yield rows of plain values, or leave out isolate of {self.dotted_path}"
        for sample in {id(sample): sample for _, sample in pairs}.values():
            pickle_for_worker(sample, f"{sample.source or sample.id}: the row", remedy)
        with Waiting(self.dotted_path, [sample.id for _, sample in pairs]) as waiting:
            outcomes = shared_pool().run(self.for_workers, pairs, waiting=waiting, **asdict(limits))
        results = []
        for outcome in outcomes:
            if outcome.status == "ok":
                results.append(outcome.value)
            else:
                results.append(RewardResult(0.0, None, outcome.status, outcome.detail))
        return results

    def _judge(
        self, completion: Completion, sample: Sample, passed_on: type[BaseException] = KeyboardInterrupt
    ) -> RewardResult:
        try:
            return self._result_if_truncated(self(completion, sample), completion)
        except (UserError, passed_on):
            raise
        except BaseException as error:  # SystemExit too: a reward must not end the run
            return self._error_result(error)

    def result_of(self, value: Any, completion: Completion) -> RewardResult:
        """Return the result for a value that judges a completion, or for the exception in its place."""
        if isinstance(value, BaseException):
            return self._error_result(value)
        try:
            return self._result_if_truncated(value, completion)
        except (TypeError, ValueError) as error:  # it is no number
            return self._error_result(error)

    def _result_if_truncated(self, value: Any, completion: Completion) -> RewardResult:
        """Return a value as a result; with `truncated_is_wrong`, that of a truncated completion is not right."""
        result = as_result(value)
        if not (self.truncated_is_wrong and completion.truncated) or result.status in ("error", "unjudged"):
            return result
        is_correct = None if result.correct is None else False
        return RewardResult(min(result.value, 0.0), is_correct, "ok", "cut off", places=result.places)

    @cached_property
    def for_workers(self) -> Function:
        """The function that worker processes call: a method, so that it has this reward's options.

        Raises:
            UserError: this reward cannot be sent to a worker.
        """
        remedy = "define it at the top level of a module, without open files or nested functions, or leave out isolate"
        judge = partial(self._judge, passed_on=MemoryError)  # a worker itself handles running out of memory
        return Function(self.dotted_path, pickle_for_worker(judge, f"rewards: {self.dotted_path}", remedy))

    def _error_result(self, error: BaseException) -> RewardResult:
        place = user_line(error) or first_line_of(getattr(self, "function", type(self).__call__))
        return RewardResult(0.0, None, "error", ": ".join(filter(None, (place, first_line(error)))))

    def close(self) -> None:
        """Release the reward's resources; none by default."""


def reaches(value: float, threshold: float) -> bool:
    """Return whether a value is at least a threshold, or below it by rounding alone."""
    return value >= threshold or math.isclose(value, threshold, rel_tol=1e-9, abs_tol=1e-9)


LARGEST = 1e15
"""The largest size of a reward: statistics of groups square it in float32."""


def as_result(value: object) -> RewardResult:
    """Make a reward's return value a RewardResult.

    True and False, including numpy's and torch's, report `correct`; None has status "unjudged".

    Raises:
        TypeError: it is neither a number nor a RewardResult.
        ValueError: the number is not finite, or its square overflows float32.
    """
    if value is None:
        return RewardResult(0.0, None, "unjudged")
    if isinstance(value, RewardResult):
        result = replace(value, value=_reward_number(value.value))
    else:
        is_bool = isinstance(value, bool) or str(getattr(value, "dtype", "")) in ("bool", "torch.bool")
        result = RewardResult(_reward_number(value), bool(value) if is_bool else None)
    if not math.isfinite(result.value):
        raise ValueError(f"the reward is not finite: {result.value}")
    if abs(result.value) > LARGEST:
        raise ValueError(f"the reward {result.value:g} is not between -{LARGEST:g} and {LARGEST:g}")
    return result


def _reward_number(value: object) -> float:
    if not hasattr(value, "__float__") or "complex" in str(getattr(value, "dtype", "")):
        raise TypeError(f"a reward must return a number, a bool, a RewardResult or None, got {type(value).__name__}")
    return float(value)


class NoReward(Reward):
    """The reward of a run with `rollout.rewards: []`, which learns from a teacher alone; it judges nothing."""

    needs_answer = False

    def __call__(self, completion: Completion, sample: Sample) -> None:
        return None


def check_rewards(rewards: Sequence[Reward]) -> None:
    """Refuse rewards that cannot be used together.

    Raises:
        UserError: no reward, one without the state of its base, two of the same name, or two marked `correct_from`.
    """
    for reward in rewards:
        check_calls_super(reward, "rollout.rewards")
    names = [reward.name for reward in rewards]
    if not names:
        raise UserError("rollout.rewards is empty: give at least one reward")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"rollout.rewards: two rewards are named {', '.join(twice)}; set `name` on one of them")
    marked = [reward.name for reward in rewards if reward.correct_from]
    if len(marked) > 1:
        raise UserError(f"rollout.rewards: correct_from is set on {', '.join(marked)}; mark only one")


REWARD_COLUMNS = ("data_source", "dataset")
"""The columns by which verl and open-instruct choose the reward of a row."""


def own_weights(rewards: Sequence[Reward]) -> dict[str, float]:
    """Return the weight of each reward, where a row does not give another."""
    return {reward.name: reward.weight for reward in rewards}


def reward_weights_of(sample: Sample, weights: Mapping[str, float]) -> dict[str, float]:
    """Return the rewards that judge completions of a row, each with its weight.

    These are the row's own (`Sample.rewards`), else the one that a column of verl's or open-instruct's data names, else
    all.

    Args:
        sample: the row.
        weights: all rewards -> their own weights.
    """
    named = sample.rewards
    if named is None:
        in_columns = (named_rewards(sample, column, weights) for column in REWARD_COLUMNS)
        named = dict.fromkeys(next(filter(None, in_columns), list(weights)))
    chosen = {}
    for name in weights:
        if name in named:
            chosen[name] = named[name]
    known_weights = {}
    for name, weight in chosen.items():
        if weight is None:
            known_weights[name] = weights[name]
        else:
            known_weights[name] = weight
    return known_weights


def names_in(sample: Sample, column: str) -> list[str]:
    """Return the names that a column of a row has: a text, or a list of texts, also in JSON text."""
    cell = as_object(sample.row.get(column))
    cells = cell if isinstance(cell, list) else [cell]
    names = []
    for name in cells:
        if isinstance(name, str):
            names.append(name)
    return names


def named_rewards(sample: Sample, column: str, weights: Iterable[str]) -> list[str]:
    """Return the rewards that a column of a row names; upper and lower case do not matter.

    Args:
        sample: the row.
        column: the column.
        weights: the names of all rewards.
    """
    names = set()
    for name in names_in(sample, column):
        names.add(name.casefold())
    rewards = []
    for name in weights:
        if name.casefold() in names:
            rewards.append(name)
    return rewards


def groups_of(pairs: Sequence[Pair]) -> list[list[int]]:
    """Return the positions of the completions of each group; those of a group have the same object as their sample."""
    groups: dict[int, list[int]] = defaultdict(list)
    for k, (_, sample) in enumerate(pairs):
        groups[id(sample)].append(k)
    return list(groups.values())


def check_prefills(rewards: Sequence[Reward], prompts: Iterable[Prompt]) -> None:
    """Let each reward check the prefills of the prompts that it judges without their prefill.

    Raises:
        UserError: a reward looks for the prefill in the text.
    """
    weights = own_weights(rewards)
    begun = (prompt for prompt in prompts if prompt.prefill and not prompt.score_prefill)
    seen = dict.fromkeys(
        (name, prompt.prefill) for prompt in begun for name in reward_weights_of(prompt.sample, weights)
    )
    for reward in rewards:
        for prefill in (prefill for name, prefill in seen if name == reward.name):
            reward.check_prefill(prefill)


def report_rewards_in_process(rewards: Sequence[Reward]) -> None:
    """Report which user-defined rewards run in this process, because they can hang or end it."""
    paths = []
    for r in rewards:
        if not (r.isolation or r.dotted_path.startswith("lit_rlvr.")):
            paths.append(r.dotted_path)
    if paths:
        log.info(
            "%s: runs in this process and can hang or end it; set `isolate: true` on a reward to use worker processes",
            ", ".join(paths),
        )


class CheckedReward(Reward):
    """A reward that checks a batch at once.

    With `truncated_is_wrong`, it does not check truncated completions, unless it `may_be_negative`.

    Attributes:
        may_be_negative: True = truncated completions are checked as well, and earn at most 0.
    """

    reports_correct: bool | None = True
    may_be_negative = False

    @abstractmethod
    def check(self, pairs: Sequence[Pair]) -> list[RewardResult]:
        """Judge the completions that need a check, in order."""

    def __call__(self, completion: Completion, sample: Sample) -> RewardResult:
        return self.score([(completion, sample)])[0]

    def score(self, pairs: Sequence[Pair]) -> list[RewardResult]:
        results = [RewardResult(0.0, False if self.reports_correct else None, "ok", "cut off")] * len(pairs)
        skips = self.truncated_is_wrong and not self.may_be_negative
        judged = []
        for i, (c, _) in enumerate(pairs):
            if not (skips and c.truncated):
                judged.append(i)
        for i, result in zip(judged, self.check([pairs[i] for i in judged]), strict=True):
            results[i] = self.result_of(result, pairs[i][0])
        return results


def verdict(outcome: Outcome) -> RewardResult:
    """Return the result of a check that returns (correct, status, detail): 1 or 0; no verdict if the check failed."""
    correct, status, detail = outcome.value if outcome.status == "ok" else (False, outcome.status, outcome.detail)
    return RewardResult(float(correct), None if status == "error" else correct, status, detail)
