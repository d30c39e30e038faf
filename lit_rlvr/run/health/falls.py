"""Accuracies that fell during a run, and the likely cause of each."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean

from lit_rlvr.common.terminal import number_text
from lit_rlvr.run.advice import RunHistory
from lit_rlvr.run.collapse import MARGIN, STRETCH, FallTest, threshold
from lit_rlvr.run.health.course import (
    APART,
    COLLAPSED,
    EXPLODED,
    FEW_SAMPLES,
    LONGER,
    NOTHING_TRIED,
    RECENT,
    WORSE,
    Metrics,
    RunFinding,
    course,
)

LARGE_STEP = 0.05
"""The divergence between two policies, in nats per token, above which a rollout's updates are called too large."""
HELD_OUT = re.compile(r"val/(.+)/fall_z")
"""The certainty that a validation set was answered worse than at its best."""


@dataclass(frozen=True)
class RunFall:
    """An accuracy that fell during a run.

    Args:
        finding: what happened.
        metric: the accuracy.
        before: the accuracy at its best.
    """

    finding: RunFinding
    metric: str
    before: float


class Falls:
    """The falls of the accuracies in a run's metrics; a later call looks at later metrics only.

    Args:
        history: what has been tried, and so is not advised.
    """

    def __init__(self, history: RunHistory = NOTHING_TRIED) -> None:
        self._test = FallTest()
        self._newest = 0
        self._history = history
        self._steps: list[int] = []  # of the iterations
        self._looks: dict[str, list[int]] = {}  # metric of a validation -> the steps at which it was looked at
        self._fallen: dict[str, bool] = {}

    def find(self, metrics: Metrics) -> Iterator[RunFall]:
        """Yield the falls of steps that are new since the last call."""
        for step in sorted(step for step in metrics if step >= max(self._newest, 1)):
            row = metrics[step]
            if step > self._newest and {"rollout/accuracy", "rollout/judged_prompts"} <= {*row}:
                self._steps.append(step)
                error = row.get("rollout/accuracy_error", 0.0)
                prompts = row["rollout/judged_prompts"]
                fall = self._test.add(row["rollout/accuracy"], error, prompts)
                if fall is not None:
                    length, before, after = fall
                    start = self._steps[-length]
                    good = [0, *self._steps][-length - 2]
                    yield self._explained("rollout/accuracy", metrics, good, start, step, before, after)
            self._newest = step
            for name in filter(HELD_OUT.fullmatch, row):
                looks = self._looks.setdefault(name, [])
                metric = name.replace("fall_z", "accuracy")
                if step in looks[-1:] or metric not in row:
                    continue
                looks.append(step)
                was_fallen = self._fallen.get(name)
                self._fallen[name] = row[name] > threshold(len(looks))
                if self._fallen[name] and not was_fallen:
                    earlier = {}
                    for k, values in metrics.items():
                        if k < step and metric in values:
                            earlier[k] = values[metric]
                    best = max(earlier.values())
                    yield self._explained(metric, metrics, max(earlier, default=0), step, step, best, row[metric])

    def _explained(
        self, metric: str, metrics: Metrics, good: int, start: int, last: int, before: float, after: float
    ) -> RunFall:
        held_out = None
        if metric.startswith("val/"):
            held_out = metric.split("/")[1]
        if held_out is None:
            where = "of the rollouts"
        else:
            where = f"on the validation set {held_out}"
        cause, case = _likely_cause(metrics, good, last, held_out is not None)
        evidence = f"{before:.3f} at best, {after:.3f} since step {start}, which its noise does not explain; {cause}"
        remedy = self._history.advise("The accuracy fell", case)
        return RunFall(RunFinding(f"The accuracy {where} fell", evidence, remedy), metric, before)


@dataclass(frozen=True)
class _AroundFall:
    """Metrics of the rollouts before and since a fall.

    Args:
        metrics: step -> metrics.
        old: the last steps whose rollouts were sampled before it.
        new: the last steps since.
    """

    metrics: Metrics
    old: list[int]
    new: list[int]

    def means(self, name: str) -> tuple[float, float]:
        """Return a metric's means before and since the fall; NaN without a value."""
        return self._mean(name, self.old), self._mean(name, self.new)

    def _mean(self, name: str, steps: list[int]) -> float:
        values = []
        for step in steps:
            if name in self.metrics[step]:
                values.append(self.metrics[step][name])
        return fmean(values or [math.nan])

    def change(self, name: str) -> str:
        return " -> ".join(map(number_text, self.means(name)))


def _likely_cause(metrics: Metrics, good: int, last: int, held_out: bool) -> tuple[str, str]:
    """Return the likely cause of a fall, and its case in the table of advice.

    Args:
        metrics: step -> metrics.
        good: the last good step.
        last: the last one to look at.
        held_out: whether the fall is on a validation set.
    """
    steps = []
    for step in course(metrics, "rollout/accuracy").steps:
        if step <= last:
            steps.append(step)
    known = sum(step <= good for step in steps) + 1  # the rollout after the last good step was sampled by its weights
    around = _AroundFall(metrics, steps[:known][-STRETCH:], steps[known:][-RECENT:])
    accuracy_before, accuracy_since = around.means("rollout/accuracy")
    reward_before, reward_since = around.means("rollout/reward")
    cause: tuple[str, str] | None
    if held_out and accuracy_since >= accuracy_before:
        change = around.change("rollout/accuracy")
        cause = f"the prompts are learnt by heart, the rollouts' accuracy did not fall ({change})", "learnt by heart"
    elif reward_since > reward_before and accuracy_since < accuracy_before:
        change = around.change("rollout/reward")
        cause = f"the reward is gamed{_by_length(around)}, it rose meanwhile ({change})", "the reward is gamed"
    else:
        cause = _large_step(around, [step for step in steps if step > good]) or _drift(around)
    if cause is None:
        return "no other metric shows a cause", "no cause is seen"
    return f"likely cause: {cause[0]}", cause[1]


def _by_length(around: _AroundFall) -> str:
    """Return the words for a reward that is gamed by the length of the completions; "" if it is not."""
    before, since = around.means("rollout/length")
    if 1 / LONGER < since / max(before, 1.0) < LONGER:
        return ""
    return f" by length ({around.change('rollout/length')} tokens)"


def _large_step(around: _AroundFall, since: list[int]) -> tuple[str, str] | None:
    """Return a step that was too large as the cause; None if none was.

    Args:
        around: the metrics.
        since: all steps since the last good one.
    """
    moved = {}
    for step in since:
        moved[step] = around.metrics[step].get("train/kl_step", 0.0)
    for step, nats in moved.items():
        if nats > LARGE_STEP:
            return (
                f"the step was too large, {number_text(nats)} nats per token at step {step} "
                "(train/kl_step; 0.01 is usual)",
                "steps too large",
            )
    if any(moved.values()) or not around.new:
        return None
    first = around.new[0]
    before, _ = around.means("rollout/accuracy")
    if around.metrics[first]["rollout/accuracy"] < before / 2:
        return f"the step was too large, the accuracy fell by half at once, at step {first}", "steps too large"
    return None


def _drift(around: _AroundFall) -> tuple[str, str] | None:
    """Return what went wrong little by little as the cause; None if nothing did."""
    _, ess = around.means("train/staleness/ess")
    if ess < FEW_SAMPLES:
        _, age = around.means("train/staleness/mean")
        return f"the tokens are too old, {age:.3g} versions with an effective sample size of {ess:.0%}", "old tokens"
    before, since = around.means("train/engine_difference")
    if since > max(2 * before, APART):
        change = around.change("train/engine_difference")
        return f"the engine's log-probabilities left the trainer's ({change})", "the engine drifts"
    before, since = around.means("rollout/entropy")
    change = around.change("rollout/entropy")
    if since < COLLAPSED * before:
        return f"the entropy is gone ({change} nats per token)", "the entropy is gone"
    if since > EXPLODED * before:
        return f"the steps are too large, the entropy exploded ({change} nats per token)", "steps too large"
    before, since = around.means("rollout/truncated")
    if since > before + WORSE:
        return f"completions are cut off ({around.change('rollout/truncated')} of them)", "cut off"
    return None


def fallen(metrics: Metrics, history: RunHistory = NOTHING_TRIED) -> Iterator[RunFinding]:
    """Find the last fall of each accuracy that the run has not made good since."""
    for fall in {fall.metric: fall for fall in Falls(history).find(metrics)}.values():
        values = course(metrics, fall.metric).values
        if fmean(values[-RECENT if fall.metric == "rollout/accuracy" else -1 :]) < (1 - MARGIN) * fall.before:
            yield fall.finding
