"""What a run has learnt between its validations, and whether its rollouts are large enough for it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

from lit_rlvr.run.advice import SMALL_ROLLOUTS, RunHistory
from lit_rlvr.run.health.course import CERTAIN, NOTHING_TRIED, RECENT, WORSE, Course, Metrics, RunFinding, course

NOISY = 8.0
"""The multiple of a step's prompts above which the gradient's noise scale calls rollouts too small. Below it, larger
rollouts have gained no more from the same completions (benchmarks/first_tasks.md)."""
LARGEST_ROLLOUT = 8
"""The most times as many prompts that are advised at once."""


def is_rising(metrics: Metrics) -> bool:
    """Return whether the rollouts got better in the second half.

    While it is too early to tell, it returns whether some prompts give a signal.
    """
    signal = course(metrics, "train/no_signal")
    accuracy = course(metrics, "rollout/accuracy")
    if not signal.is_long:
        for share in signal.values:
            if share < 1:
                return True
        return False
    if not accuracy.is_long:
        reward = course(metrics, "rollout/reward")
        return reward.rises and reward.last > reward.middle
    errors = course(metrics, "rollout/accuracy_error").values[-RECENT:]
    return accuracy.last - accuracy.middle > CERTAIN * math.sqrt(2 * fmean([e**2 for e in errors] or [0.0]) / RECENT)


def rollout_factor(noise_scale: float, step_prompts: float, most: float = LARGEST_ROLLOUT) -> int:
    """Return how many times as many prompts a rollout should have: the largest power of two with which a step has at
    most the noise scale, and which is at most `most`; 1 if the noise scale is below `NOISY` steps.

    Args:
        noise_scale: in prompts.
        step_prompts: prompts of an optimizer step now.
        most: the largest factor.
    """
    wanted = min(noise_scale / step_prompts, most, LARGEST_ROLLOUT)
    if noise_scale <= NOISY * step_prompts or wanted < 2:
        return 1
    return int(2 ** math.floor(math.log2(wanted)))


def small_rollouts(metrics: Metrics, history: RunHistory, num_prompts: int) -> str:
    """Return what helps where a step's gradient is mostly noise; "" = it is not, or it was measured too seldom.

    Args:
        metrics: step -> metrics.
        history: what has been tried.
        num_prompts: training prompts of the run, which a rollout cannot exceed; 0 = unknown.
    """
    scales = course(metrics, "train/noise_scale")
    sizes = course(metrics, "train/step_prompts")
    if not scales.is_long or scales.values[-1] <= NOISY * sizes.values[-1]:
        return ""
    needed = scales.values[-1]
    size = sizes.values[-1]
    most: float = LARGEST_ROLLOUT
    if num_prompts and history.prompts_per_rollout:
        most = num_prompts / history.prompts_per_rollout
    factor = rollout_factor(needed, size, most)
    if factor == 1:
        return history.advise(SMALL_ROLLOUTS, "the data have no more prompts", size=size, needed=needed)
    prompts = factor * (history.prompts_per_rollout or size)
    return history.advise(SMALL_ROLLOUTS, "the data have more prompts", size=size, needed=needed, prompts=prompts)


def progress(metrics: Metrics, history: RunHistory = NOTHING_TRIED, num_prompts: int = 0) -> RunFinding | None:
    """Return what a run has learnt from its first validation to its last; None while it is too early to tell.

    Right answers are learnt if the accuracy is better than that of the first validation and than that of a constant
    guess, each by more than CERTAIN standard errors.

    Args:
        metrics: step -> metrics.
        history: what has been tried on its task.
        num_prompts: training prompts of its data; 0 = unknown.
    """
    validated = []
    for _, row in sorted(metrics.items()):
        if "val/accuracy" in row:
            validated.append(row)
    cut = course(metrics, "rollout/truncated")
    accuracy = course(metrics, "rollout/accuracy")
    if len(validated) < 2 or not accuracy.values:
        return None
    first = Validated.of_row(validated[0])
    last = Validated.of_row(validated[-1])
    visible = CERTAIN * math.hypot(first.error, last.error)
    if math.isnan(visible):
        return None
    read = Course(cut.steps, [1 - _unread(metrics[step]) for step in cut.steps])
    judged = sum(course(metrics, "rollout/judged_prompts").values)
    unsolved = sum(course(metrics, "rollout/unsolved_prompts").values)
    evidence = (
        f"validation {first.opening}{first.accuracy:.3f} -> {last.described}; of the rollouts' answers "
        f"{_arrow(accuracy)} are right, {_arrow(read)} are read, {_arrow(cut)} are cut off; {judged - unsolved:.0f} of "
        f"{judged:.0f} sampled prompts had a right one"
    )
    rises = last.accuracy - first.accuracy > visible
    if rises and last.is_above_guess:
        return RunFinding("Right answers are learnt", evidence, "")
    if not cut.is_long:
        return None
    if is_rising(metrics):
        return RunFinding("The rollouts get better, validation not yet", evidence, "")
    if not rises and first.is_above_guess:
        title = "No better than at the start"
    elif rises:
        title = "Answers are no better than a constant guess"
    elif read.last > read.first + WORSE or cut.last < cut.first - WORSE:
        title = "The form is learnt, the answers are not"
    else:
        title = "Nothing is learnt so far"
    advice = history.advise(title, visible=visible)
    noise = small_rollouts(metrics, history, num_prompts)
    if noise and not rises:
        advice = f"{noise}; or {advice}"
    return RunFinding(title, evidence, advice)


@dataclass(frozen=True)
class Validated:
    """The accuracy of a validation, as a mean over sets.

    Args:
        accuracy: the accuracy.
        error: its standard error; NaN = unknown.
        guess: the accuracy of always giving the most frequent reference answer; 0 = there is none.
        before_warm_start: the accuracy before the warm start; None = there was none.
    """

    accuracy: float
    error: float
    guess: float
    before_warm_start: float | None

    @classmethod
    def of_row(cls, row: Mapping[str, float]) -> Validated:
        """Read the metrics of a validation's step."""
        errors = set_values(row, "accuracy_error")
        guesses = set_values(row, "guess")
        if errors:
            error = math.hypot(*errors) / len(errors)
        else:
            error = math.nan
        return cls(row["val/accuracy"], error, fmean(guesses or [0.0]), row.get("val/accuracy_before_warm_start"))

    @property
    def is_above_guess(self) -> bool:
        """True if the accuracy is better than a constant guess by more than its noise."""
        return self.accuracy - self.guess > CERTAIN * self.error

    @property
    def opening(self) -> str:
        """The accuracy before the warm start as the beginning of a sentence; "" without a warm start."""
        if self.before_warm_start is None:
            return ""
        return f"{self.before_warm_start:.3f} -> (warm start) "

    @property
    def described(self) -> str:
        """The accuracy, two standard errors and the constant guess in words."""
        if self.guess:
            constant = f"; always the most frequent answer: {self.guess:.3f}"
        else:
            constant = ""
        if math.isnan(self.error):
            noise = "its noise is unknown"
        else:
            noise = f"+-{CERTAIN * self.error:.3f}"
        return f"{self.accuracy:.3f} ({noise}{constant})"


def set_values(row: Mapping[str, float], metric: str) -> list[float]:
    """Return a metric of each validation set."""
    values = []
    for name, value in row.items():
        if re.fullmatch(f"val/[^/]+/{metric}", name):
            values.append(value)
    return values


def _unread(row: Mapping[str, float]) -> float:
    return max((row[name] for name in row if name.endswith("/parse_fail")), default=row["rollout/truncated"])


def _arrow(values: Course) -> str:
    return f"{values.first:.0%} -> {values.last:.0%}"


def best_validation(metrics: Metrics) -> tuple[int, float] | None:
    """Return step and accuracy of the best validation if the last one is worse by more than its noise, else None.

    The noise is two standard errors of the difference: by question where that is known, else of the two accuracies.
    """
    accuracy = course(metrics, "val/accuracy")
    if not accuracy.values:
        return None
    best = max(range(len(accuracy.values)), key=lambda k: accuracy.values[k])
    first = metrics[accuracy.steps[best]]
    last = metrics[accuracy.steps[-1]]
    errors = set_values(last, "fall_error")
    if errors:
        error = math.hypot(*errors) / len(errors)
    else:
        error = math.nan
    if len(errors) != len(set_values(last, "accuracy")):
        error = math.hypot(Validated.of_row(first).error, Validated.of_row(last).error)
    is_worse = accuracy.values[best] - accuracy.values[-1] > CERTAIN * error  # never with an unknown error
    if is_worse:
        return (accuracy.steps[best], accuracy.values[best])
    return None
