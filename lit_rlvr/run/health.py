"""What the metrics of a run say is wrong, by one set of thresholds, while it trains and afterwards."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from statistics import fmean

from lit_rlvr.common.terminal import number_text
from lit_rlvr.run.advice import GUIDE, SMALL_ROLLOUTS, WHAT_HELPS, RunHistory
from lit_rlvr.run.collapse import MARGIN, STRETCH, FallTest, threshold

RECENT = 4
"""Iterations that a mean is taken over."""
HIGH_SHARE = 0.5
"""The share of truncated completions, and of prompts without a signal, above which a run is reported."""
NEARLY_ALL = 0.9
"""The share of tokens that the importance correction drops, above which a run is reported."""
WORSE = 0.2
"""The rise of such a share above which it is reported, or reported again."""
FEW_SAMPLES, REPEAT = 0.3, 10
"""The effective sample size of the correction's weights, as a share of the tokens, below which an iteration is reported
(verl's bound, docs/algo/rollout_corr.md), and the iterations after which it may be reported again."""
EXPLODED, COLLAPSED = 4.0, 0.1
"""The multiples of the first entropy above and below which a run is reported."""
LONGER = 2.0
"""The multiple of the first mean length above which a run is reported."""
FORGOTTEN = 0.03
"""The fall of an accuracy, and the rise of training's next to it, above which a run is reported."""
APART = 0.02
"""The difference of the engine's log-probabilities, in nats, above which its doubling is reported."""
NOT_JUDGED = 0.01
"""The share of checks that fail, and of those that a limit stops, above which a run is reported."""
VALIDATED = re.compile(r"val/(.+)/truncated")
"""The metric of a validation set."""
ANSWERED = re.compile(r"val/(.+)/same_answer")
"""The share of the most frequent answer of a validation set."""
CERTAIN = 2.0
"""The standard errors beyond which an accuracy differs from another."""
HOPELESS = 0.1
"""The accuracy below which next to nothing is right."""
NOTHING_TRIED = RunHistory()
"""The history of a run of which nothing is known."""
ONE_ANSWER = 0.5
"""The share of the most frequent answer, at least WORSE above that of the references, above which it is reported."""
MOSTLY_PAID = 0.8
"""The share of the mean reward from which an answer that is always given is called paid."""
NOISY = 8.0
"""The multiple of a step's prompts above which the gradient's noise scale calls rollouts too small. Below it, larger
rollouts have gained no more from the same completions (benchmarks/first_tasks.md)."""
LARGEST_ROLLOUT = 8
"""The most times as many prompts that are advised at once."""


Metrics = Mapping[int, Mapping[str, float]]
"""Step -> metric -> value."""


@dataclass(frozen=True)
class RunFinding:
    """A reason to look at a run.

    Args:
        title: what is wrong.
        evidence: the numbers.
        remedy: what to try; "" = nothing needs mending.
    """

    title: str
    evidence: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.title}: {self.evidence}" + (f"{WHAT_HELPS}{self.remedy} ({GUIDE})." if self.remedy else "")


@dataclass(frozen=True)
class Course:
    """A metric's values in the order of their steps, with the means that are compared."""

    steps: list[int]
    values: list[float]

    @property
    def first(self) -> float:
        """The mean of the first `RECENT` values."""
        return fmean(self.values[:RECENT])

    @property
    def last(self) -> float:
        """The mean of the last `RECENT` values."""
        return fmean(self.values[-RECENT:])

    @property
    def middle(self) -> float:
        """The mean of the last `RECENT` values of the first half."""
        return fmean(self.values[: len(self.values) // 2][-RECENT:])

    @property
    def is_long(self) -> bool:
        """True if the first and the last mean share no value."""
        return len(self.values) >= 2 * RECENT

    @property
    def rises(self) -> bool:
        """True if the last mean exceeds the first by more than half of the range."""
        return self.is_long and self.last - self.first > 0.5 * (max(self.values) - min(self.values))

    def change(self) -> str:
        """Say the two means in words."""
        return f"{number_text(self.first)} in the first {RECENT} iterations, {number_text(self.last)} in the last"


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


def course(metrics: Metrics, name: str) -> Course:
    """Return a metric's course after the start of training; empty if it was not logged."""
    points = []
    for step, row in sorted(metrics.items()):
        if step > 0 and name in row:
            points.append((step, row[name]))
    return Course([step for step, _ in points], [value for _, value in points])


def _names(metrics: Metrics) -> dict[str, None]:
    """Return the names of all metrics, in the order in which they were first logged."""
    return dict.fromkeys(chain.from_iterable(metrics.values()))


def findings(metrics: Metrics, history: RunHistory = NOTHING_TRIED) -> list[RunFinding]:
    """Return what looks wrong in a run, as far as its metrics show it.

    Args:
        metrics: the run's.
        history: what has been tried, and so is not advised.
    """
    findings = []
    for look in LOOKS:
        for finding in look(metrics, history):
            findings.append(finding)
    return findings


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


def _dead_groups(metrics: Metrics, history: RunHistory) -> Iterator[RunFinding]:
    signal = course(metrics, "train/no_signal")
    if not signal.values or signal.last <= HIGH_SHARE:
        return
    solved = course(metrics, "rollout/accuracy")
    evidence = f"{signal.last:.0%} of the prompts had the same reward for all of their completions"
    if solved.values:
        evidence += f"; {solved.last:.0%} of the completions are correct"
    spread = RewardSpread.of_metrics(metrics)
    if spread is not None and spread.lowest == spread.highest:
        title = "Most prompts give no signal"
        case = "every completion has one reward"
        evidence += f"; every completion had the reward {spread.lowest:g}"
    elif solved.values and solved.last > NEARLY_ALL:
        title = "Nearly all prompts are solved"
        case = ""
    else:
        title = "Most prompts give no signal"
        case = signal_case(solved.last if solved.values else 0.0)
        if spread is not None:
            evidence += f"; {spread}"
    yield RunFinding(title, evidence, history.advise(title, case))


def signal_case(accuracy: float) -> str:
    """Return the case of "Most prompts give no signal" in the table of advice.

    Args:
        accuracy: the share of right completions.
    """
    if accuracy < HOPELESS:
        return "next to nothing is right"
    if accuracy > 0.5:
        return "too easy"
    return "too hard"


@dataclass(frozen=True)
class RewardSpread:
    """The rewards of the recent rollouts' completions.

    Args:
        lowest, highest: the lowest and the highest reward.
        at_lowest, at_highest: the share of prompts of which every completion had this reward.
    """

    lowest: float
    highest: float
    at_lowest: float
    at_highest: float

    @classmethod
    def of_metrics(cls, metrics: Metrics) -> RewardSpread | None:
        """Return the spread over the last `RECENT` rollouts; None if it was not logged."""
        lowest = course(metrics, "rollout/lowest_reward").values[-RECENT:]
        highest = course(metrics, "rollout/highest_reward").values[-RECENT:]
        if not lowest:
            return None
        return cls(
            lowest=min(lowest),
            highest=max(highest),
            at_lowest=course(metrics, "rollout/prompts_at_lowest").last,
            at_highest=course(metrics, "rollout/prompts_at_highest").last,
        )

    def __str__(self) -> str:
        """Say the shares in words."""
        return (
            f"of {self.at_lowest:.0%} of the prompts every completion had the lowest reward ({self.lowest:g}), of "
            f"{self.at_highest:.0%} the highest ({self.highest:g})"
        )


def _unreadable(metrics: Metrics, history: RunHistory) -> Iterator[RunFinding]:
    names = []
    for name in _names(metrics):
        if name.endswith("/parse_fail") and name != "reward/status/parse_fail":
            names.append(name)
    shares = ((name.split("/")[1], course(metrics, name)) for name in names)
    unread = []
    for name, share in shares:
        if share.values and share.last > HIGH_SHARE:
            unread.append((name, share.last))
    if unread:
        yield RunFinding(
            "Answers cannot be read",
            "; ".join(f"{name} found no answer in {share:.0%} of the completions" for name, share in unread),
            history.advise("Answers cannot be read"),
        )


def _truncation(metrics: Metrics, history: RunHistory) -> Iterator[RunFinding]:
    """Look at training and at each set's last validation."""
    seen = []
    cut = course(metrics, "rollout/truncated")
    if cut.values and (cut.last > HIGH_SHARE or (cut.is_long and cut.last > cut.first + WORSE)):
        seen.append(f"share cut off: {cut.change() if cut.is_long else number_text(cut.last)}")
    for name in [match[1] for metric in _names(metrics) if (match := VALIDATED.fullmatch(metric))]:
        last = course(metrics, f"val/{name}/truncated")
        if last.values and last.values[-1] > HIGH_SHARE:
            seen.append(
                f"share cut off in validation ({name}): {number_text(last.values[-1])} at step {last.steps[-1]}"
            )
    if seen:
        yield RunFinding(
            "Completions are cut off",
            "; ".join(seen),
            history.advise("Completions are cut off"),
        )


def _length(metrics: Metrics, history: RunHistory) -> Iterator[RunFinding]:
    length = course(metrics, "rollout/length")
    if length.is_long and length.last > LONGER * length.first:
        yield RunFinding(
            "Completions grow long",
            f"mean length in tokens: {length.change()}",
            history.advise("Completions grow long"),
        )


def _learns(metrics: Metrics) -> bool:
    """Return whether a run got better, and either solves most prompts by now or still has a signal from most.

    Its entropy then falls because it becomes sure of right answers.
    """
    accuracy = course(metrics, "rollout/accuracy")
    reward = course(metrics, "rollout/reward")
    signal = course(metrics, "train/no_signal")
    if accuracy.is_long and 1 - accuracy.last < 0.8 * (1 - accuracy.first):
        return accuracy.last > HIGH_SHARE or (bool(signal.values) and signal.last < HIGH_SHARE)
    steady = not accuracy.is_long or accuracy.last >= accuracy.first
    return steady and reward.rises and bool(signal.values) and signal.last < HIGH_SHARE


def _entropy(metrics: Metrics, history: RunHistory) -> Iterator[RunFinding]:
    entropy = course(metrics, "train/entropy")
    if entropy.is_long and entropy.last < COLLAPSED * entropy.first and not _learns(metrics):
        accuracy = course(metrics, "rollout/accuracy")
        yield RunFinding(
            "The entropy collapsed",
            f"nats per token: {entropy.change()}"
            + (f"; {accuracy.last:.0%} of the completions are correct" if accuracy.values else ""),
            history.advise("The entropy collapsed"),
        )
    if entropy.is_long and entropy.last > EXPLODED * entropy.first:
        yield RunFinding(
            "The entropy explodes",
            f"nats per token: {entropy.change()}",
            history.advise("The entropy explodes"),
        )


def _gamed(metrics: Metrics, history: RunHistory) -> Iterator[RunFinding]:
    """Compare two measures of the same completions."""
    reward = course(metrics, "rollout/reward")
    accuracy = course(metrics, "rollout/accuracy")
    if reward.rises and accuracy.is_long and accuracy.first - accuracy.last > FORGOTTEN:
        yield RunFinding(
            "The reward rises while the accuracy falls",
            f"reward: {reward.change()}; accuracy of the same completions: {accuracy.change()}",
            history.advise("The reward rises while the accuracy falls"),
        )


def _held_out(metrics: Metrics, history: RunHistory) -> Iterator[RunFinding]:
    """Compare the accuracy in training and in validation; the reward is another quantity."""
    training = course(metrics, "rollout/accuracy")
    held_out = course(metrics, "val/accuracy")
    if not training.is_long or len(held_out.values) < 2:
        return
    best = max(range(len(held_out.values)), key=lambda k: held_out.values[k])
    lost = held_out.values[best] - held_out.values[-1]
    before = []
    for step, v in zip(training.steps, training.values, strict=True):
        if step <= held_out.steps[best]:
            before.append(v)
    if lost > FORGOTTEN and before and training.last - fmean(before[-RECENT:]) > FORGOTTEN:
        yield RunFinding(
            "The training accuracy rises while the held-out accuracy falls",
            f"held-out accuracy {held_out.values[best]:.3f} at step {held_out.steps[best]}, {held_out.values[-1]:.3f} "
            f"at step {held_out.steps[-1]}; training accuracy {fmean(before[-RECENT:]):.3f} then, "
            f"{training.last:.3f} now",
            history.advise("The training accuracy rises while the held-out accuracy falls"),
        )


def _engine(metrics: Metrics, history: RunHistory) -> Iterator[RunFinding]:
    apart = course(metrics, "train/engine_difference")
    if apart.is_long and apart.last > max(2 * apart.first, APART):
        yield RunFinding(
            "The engine's log-probabilities drift from the trainer's",
            f"mean difference in nats: {apart.change()}",
            history.advise("The engine's log-probabilities drift from the trainer's"),
        )


def _failed_checks(metrics: Metrics, history: RunHistory) -> Iterator[RunFinding]:
    failed = course(metrics, "reward/status/error")
    stopped = course(metrics, "reward/status/timeout")
    if failed.values and failed.last > NOT_JUDGED:
        yield RunFinding(
            "Rewards fail",
            f"{failed.last:.1%} of the completions could not be judged in the last {RECENT} iterations",
            history.advise("Rewards fail"),
        )
    if stopped.values and stopped.last > NOT_JUDGED:
        yield RunFinding(
            "Limits stop checks",
            f"those of {stopped.last:.1%} of the completions in the last {RECENT} iterations, which count as wrong",
            history.advise("Limits stop checks"),
        )


def _form_alone(metrics: Metrics, history: RunHistory) -> Iterator[RunFinding]:
    """Look at a warm start on bare answers, after which the accuracy is that of a constant guess."""
    validated = []
    for _, row in sorted(metrics.items()):
        if "val/accuracy" in row:
            validated.append(row)
    if not history.has_bare_start or not validated:
        return
    after = Validated.of_row(validated[0])
    if after.guess and not math.isnan(after.error) and not after.is_above_guess:
        title = "The answers alone teach only the form"
        evidence = f"{after.accuracy:.2f} right after the warm start, a guess has {after.guess:.2f}"
        yield RunFinding(title, evidence, history.advise(title))


def _one_answer(metrics: Metrics, history: RunHistory) -> Iterator[RunFinding]:
    """Look at the last validation of each set for a policy that gives one answer."""
    for name in [match[1] for metric in _names(metrics) if (match := ANSWERED.fullmatch(metric))]:
        row = [row for _, row in sorted(metrics.items()) if f"val/{name}/same_answer" in row][-1]
        share = row[f"val/{name}/same_answer"]
        guess = row.get(f"val/{name}/guess")
        if guess is None or share <= max(ONE_ANSWER, guess + WORSE):
            continue
        evidence = f"{share:.0%} of the answers in validation ({name}) are the same, of the references {guess:.0%}"
        paid = row.get(f"val/{name}/same_answer_reward")
        mean = row.get(f"val/{name}/reward")
        case = "it is not paid"
        if paid is not None and mean is not None:
            evidence += f"; it earns {paid:.2f}, all answers {mean:.2f}"
            if paid > guess + WORSE and paid >= MOSTLY_PAID * mean:
                case = "it is paid"
        title = "One answer for all questions"
        yield RunFinding(title, evidence, history.advise(title, case))


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


def _below_best(metrics: Metrics, history: RunHistory) -> Iterator[RunFinding]:
    best = best_validation(metrics)
    if best is not None:
        step, accuracy = best
        last = course(metrics, "val/accuracy")
        title = "The last validation is worse than the best"
        evidence = f"{accuracy:.3f} at step {step}, {last.values[-1]:.3f} at step {last.steps[-1]}"
        if "checkpoint.best" in history.own:
            case = "the best checkpoint is kept"
        else:
            case = "it is not kept"
        yield RunFinding(title, evidence, history.advise(title, case))


def at_validation(metrics: Metrics, history: RunHistory = NOTHING_TRIED) -> Iterator[RunFinding]:
    """Look at the answers of the validations, besides what they say is learnt."""
    for look in (_form_alone, _one_answer, _below_best):
        yield from look(metrics, history)


def _skipped(metrics: Metrics, history: RunHistory) -> Iterator[RunFinding]:
    skipped = course(metrics, "train/skipped_steps")
    if skipped.values and skipped.values[-1] > 0:
        yield RunFinding(
            "Optimizer steps were skipped",
            f"{skipped.values[-1]:.0f} until step {skipped.steps[-1]}, because a loss or gradient was not finite",
            history.advise("Optimizer steps were skipped"),
        )


def in_vain(metrics: Metrics, history: RunHistory = NOTHING_TRIED) -> Iterator[RunFinding]:
    """Look at what a run does in vain, unless it gets better."""
    if not is_rising(metrics):
        for look in (_dead_groups, _unreadable, _truncation):
            yield from look(metrics, history)


def _no_progress(metrics: Metrics, history: RunHistory) -> Iterator[RunFinding]:
    finding = progress(metrics, history)
    if finding is not None and finding.remedy:
        yield finding


LOOKS: tuple[Callable[[Metrics, RunHistory], Iterator[RunFinding]], ...] = (
    fallen, _no_progress, at_validation, in_vain, _length, _entropy, _gamed, _held_out, _engine, _failed_checks,
    _skipped,
)  # fmt: skip
