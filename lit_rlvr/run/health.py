"""What the metrics of a run say is wrong, by one set of thresholds, while it trains and afterwards."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from statistics import fmean

from lit_rlvr.common.terminal import number_text
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
CERTAIN = 2.0
"""The standard errors beyond which an accuracy differs from another."""
NOISY, LARGEST_ROLLOUT = 2.0, 8
"""The multiple of a step's prompts above which the noise scale calls rollouts too small, and the most times as many
prompts that are advised at once."""
GUIDE = "docs/it_does_not_learn.md"
"""The page with sign, cause and cure of each finding, under its title."""


def signal_advice(accuracy: float, constant: float | None = None) -> str:
    """Return what helps when the completions of a prompt all have the same reward.

    Args:
        accuracy: the share of right completions.
        constant: the reward of the completions of all prompts; None if they differ.
    """
    more_completions = "more completions (rollout.group_size)"
    if accuracy > 0.5:
        advice = f"try harder prompts (lit-rlvr filter), or {more_completions}"
    else:
        advice = f"try easier prompts (lit-rlvr filter), {more_completions}, or a warm start (warm_start.steps)"
    if constant is None:
        return advice
    return (
        f"every completion had the reward {constant:g}: if some deserve another, mend the reward (`lit-rlvr check "
        f"REWARD --text TEXT --reference ANSWER` shows how it judges); if not, {advice}"
    )


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
        return f"{self.title}: {self.evidence}" + (f". What helps: {self.remedy} ({GUIDE})." if self.remedy else "")


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
    signal, accuracy = course(metrics, "train/no_signal"), course(metrics, "rollout/accuracy")
    if not signal.is_long:
        return any(share < 1 for share in signal.values)
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


def noise_advice(metrics: Metrics, prompts_per_rollout: int = 0, available: int = 0) -> str:
    """Return what helps where a step's gradient is mostly noise; "" = it is not, or it was measured too seldom.

    Args:
        metrics: step -> metrics.
        prompts_per_rollout: of the run; 0 = unknown.
        available: training prompts of the run, which a rollout cannot exceed.
    """
    scales, sizes = course(metrics, "train/noise_scale"), course(metrics, "train/step_prompts")
    if not scales.is_long or scales.values[-1] <= NOISY * sizes.values[-1]:
        return ""
    needed, size = scales.values[-1], sizes.values[-1]
    said = f"steps of {size:.0f} prompts; the gradient's signal needs about {needed:.0f} (train/noise_scale)"
    factor = rollout_factor(needed, size, available / prompts_per_rollout if prompts_per_rollout else LARGEST_ROLLOUT)
    if factor == 1:
        return f"{said}, and the run has {available} training prompts: more of them"
    if not prompts_per_rollout:
        return f"{said}: {factor} times the data.prompts_per_rollout"
    return f"{said}: `--data.init_args.prompts_per_rollout {factor * prompts_per_rollout}`"


def progress(metrics: Metrics, prompts_per_rollout: int = 0, available: int = 0) -> RunFinding | None:
    """Return what a run has learnt from its first validation to its last; None while it is too early to tell.

    Right answers are learnt if the accuracy is better than that of the first validation and than that of a constant
    guess, each by more than CERTAIN standard errors.

    Args:
        metrics: step -> metrics.
        prompts_per_rollout, available: see `noise_advice`.
    """
    validated = [row for _, row in sorted(metrics.items()) if "val/accuracy" in row]
    cut, accuracy = course(metrics, "rollout/truncated"), course(metrics, "rollout/accuracy")
    if len(validated) < 2 or not accuracy.values:
        return None
    (before, error_before, _), (after, error_after, guess) = _validation(validated[0]), _validation(validated[-1])
    visible = CERTAIN * math.hypot(error_before, error_after)
    if math.isnan(visible):
        return None
    read = Course(cut.steps, [1 - _unread(metrics[step]) for step in cut.steps])
    judged, unsolved = (sum(course(metrics, f"rollout/{kind}_prompts").values) for kind in ("judged", "unsolved"))
    constant = f"; always the most frequent answer: {guess:.3f}" if guess else ""
    evidence = (
        f"validation {before:.3f} -> {after:.3f} (+-{error_after:.3f}{constant}); of the rollouts' answers "
        f"{_arrow(accuracy)} are right, {_arrow(read)} are read, {_arrow(cut)} are cut off; {judged - unsolved:.0f} of "
        f"{judged:.0f} sampled prompts had a right one"
    )
    rises = after - before > visible
    if rises and after - guess > CERTAIN * error_after:
        return RunFinding("Right answers are learnt", evidence, "")
    if not cut.is_long:
        return None
    if is_rising(metrics):
        return RunFinding("The rollouts get better, validation not yet", evidence, "")
    noise = noise_advice(metrics, prompts_per_rollout, available)
    if not rises and before - guess > CERTAIN * error_before:
        larger = noise or "more or larger rollouts (trainer.max_steps, data.prompts_per_rollout), or model.lr: auto"
        return RunFinding(
            "No better than at the start",
            evidence,
            f"{larger}; {visible:.2f} is the smallest gain that these validation questions show",
        )
    if rises:
        title = "Answers are no better than a constant guess"
    elif read.last > read.first + WORSE or cut.last < cut.first - WORSE:
        title = "The form is learnt, the answers are not"
    else:
        title = "Nothing is learnt so far"
    remedy = "`lit-rlvr tune` with the run's config.yaml: it measures what this model needs, and whether SFT goes first"
    if noise and not rises:
        remedy = f"{noise}; or {remedy}"
    return RunFinding(title, evidence, remedy)


def _validation(row: Mapping[str, float]) -> tuple[float, float, float]:
    """Return the accuracy of a validation, its standard error, and the accuracy of a constant guess.

    They are means over sets; a standard error of NaN is unknown.
    """
    errors, guesses = (
        [row[name] for name in row if name.startswith("val/") and name.endswith(end)]
        for end in ("/accuracy_error", "/guess")
    )
    return row["val/accuracy"], math.hypot(*errors) / len(errors) if errors else math.nan, fmean(guesses or [0.0])


def _unread(row: Mapping[str, float]) -> float:
    return max((row[name] for name in row if name.endswith("/parse_fail")), default=row["rollout/truncated"])


def _arrow(values: Course) -> str:
    return f"{values.first:.0%} -> {values.last:.0%}"


def course(metrics: Metrics, name: str) -> Course:
    """Return a metric's course after the start of training; empty if it was not logged."""
    points = [(step, row[name]) for step, row in sorted(metrics.items()) if step > 0 and name in row]
    return Course([step for step, _ in points], [value for _, value in points])


def _names(metrics: Metrics) -> dict[str, None]:
    """Return the names of all metrics, in the order in which they were first logged."""
    return dict.fromkeys(chain.from_iterable(metrics.values()))


def findings(metrics: Metrics) -> list[RunFinding]:
    """Return what looks wrong in a run, as far as its metrics show it."""
    return [finding for look in LOOKS for finding in look(metrics)]


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
    """The falls of the accuracies in a run's metrics; a later call looks at later metrics only."""

    def __init__(self) -> None:
        self._test, self._newest = FallTest(), 0
        self._steps: list[int] = []  # of the iterations
        self._looks: dict[str, list[int]] = {}  # metric of a validation -> the steps at which it was looked at
        self._fallen: dict[str, bool] = {}

    def find(self, metrics: Metrics) -> Iterator[RunFall]:
        """Yield the falls of steps that are new since the last call."""
        for step in sorted(step for step in metrics if step >= max(self._newest, 1)):
            row = metrics[step]
            if step > self._newest and {"rollout/accuracy", "rollout/judged_prompts"} <= {*row}:
                self._steps.append(step)
                error, prompts = row.get("rollout/accuracy_error", 0.0), row["rollout/judged_prompts"]
                if (fall := self._test.add(row["rollout/accuracy"], error, prompts)) is not None:
                    length, before, after = fall
                    start, good = self._steps[-length], [0, *self._steps][-length - 2]
                    yield _explained("rollout/accuracy", metrics, good, start, step, before, after)
            self._newest = step
            for name in filter(HELD_OUT.fullmatch, row):
                looks, metric = self._looks.setdefault(name, []), name.replace("fall_z", "accuracy")
                if step in looks[-1:] or metric not in row:
                    continue
                looks.append(step)
                was_fallen, self._fallen[name] = self._fallen.get(name), row[name] > threshold(len(looks))
                if self._fallen[name] and not was_fallen:
                    earlier = {k: values[metric] for k, values in metrics.items() if k < step and metric in values}
                    best = max(earlier.values())
                    yield _explained(metric, metrics, max(earlier, default=0), step, step, best, row[metric])


def _explained(metric: str, metrics: Metrics, good: int, start: int, last: int, before: float, after: float) -> RunFall:
    held_out = metric.split("/")[1] if metric.startswith("val/") else None
    where = "of the rollouts" if held_out is None else f"on the validation set {held_out}"
    cause, remedy = _likely_cause(metrics, good, last, held_out is not None)
    evidence = f"{before:.3f} at best, {after:.3f} since step {start}, which its noise does not explain; {cause}"
    return RunFall(RunFinding(f"The accuracy {where} fell", evidence, remedy), metric, before)


def _likely_cause(metrics: Metrics, good: int, last: int, held_out: bool) -> tuple[str, str]:
    """Return the likely cause of a fall, and what helps.

    Args:
        metrics: step -> metrics.
        good: the last good step.
        last: the last one to look at.
        held_out: whether the fall is on a validation set.
    """
    steps = [step for step in course(metrics, "rollout/accuracy").steps if step <= last]
    known = sum(step <= good for step in steps) + 1  # the rollout after the last good step was sampled by its weights
    old, new = steps[:known][-STRETCH:], steps[known:][-RECENT:]

    def means(name: str) -> tuple[float, ...]:
        """Return a metric's means before and since the fall; NaN without a value."""
        return tuple(fmean([metrics[k][name] for k in some if name in metrics[k]] or [math.nan]) for some in (old, new))

    def change(name: str) -> str:
        return " -> ".join(map(number_text, means(name)))

    reward, accuracy, cut, entropy, length, apart = map(
        means,
        ("rollout/reward", "rollout/accuracy", "rollout/truncated", "rollout/entropy", "rollout/length",
         "train/engine_difference"),
    )  # fmt: skip
    age, ess = means("train/staleness/mean")[1], means("train/staleness/ess")[1]
    moved = {step: metrics[step].get("train/kl_step", 0.0) for step in steps if step > good}
    large = next((step for step, nats in moved.items() if nats > LARGE_STEP), 0)
    is_sudden = not any(moved.values()) and bool(new) and metrics[new[0]]["rollout/accuracy"] < accuracy[0] / 2
    by_length = not 1 / LONGER < length[1] / max(length[0], 1.0) < LONGER
    how = f" by length ({change('rollout/length')} tokens)" if by_length else ""
    slower = "model.lr: auto or a smaller rate"
    causes = (
        (
            held_out and accuracy[1] >= accuracy[0],
            f"the prompts are learnt by heart, the rollouts' accuracy did not fall ({change('rollout/accuracy')})",
            "more prompts, or the best checkpoint (checkpoint.best: val/accuracy)",
        ),
        (
            reward[1] > reward[0] and accuracy[1] < accuracy[0],
            f"the reward is gamed{how}, it rose meanwhile ({change('rollout/reward')})",
            "read the best-rewarded samples, and pay for right answers only",
        ),
        (
            large,
            f"the step was too large, {number_text(moved.get(large, 0.0))} nats per token at step {large} "
            "(train/kl_step; 0.01 is usual)",
            slower,
        ),
        (is_sudden, f"the step was too large, the accuracy fell by half at once, at step {(new or [0])[0]}", slower),
        (
            ess < FEW_SAMPLES,
            f"the tokens are too old, {age:.3g} versions with an effective sample size of {ess:.0%}",
            "lower rollout.staleness, or a smaller learning rate (model.lr)",
        ),
        (
            apart[1] > max(2 * apart[0], APART),
            f"the engine's log-probabilities left the trainer's ({change('train/engine_difference')})",
            "probe more often (rollout.safeguards.probe_every), and keep the importance correction "
            "(model.importance.correction)",
        ),
        (
            entropy[1] < COLLAPSED * entropy[0],
            f"the entropy is gone ({change('rollout/entropy')} nats per token)",
            "a smaller learning rate (model.lr), a wider upper clip (DAPO), or an entropy bonus "
            "(model.loss.entropy_coef)",
        ),
        (
            entropy[1] > EXPLODED * entropy[0],
            f"the steps are too large, the entropy exploded ({change('rollout/entropy')} nats per token)",
            slower,
        ),
        (
            cut[1] > cut[0] + WORSE,
            f"completions are cut off ({change('rollout/truncated')} of them)",
            "raise rollout.sampling.max_tokens, or reward short answers (Overlong)",
        ),
    )
    return next(
        ((f"likely cause: {cause}", remedy) for shows, cause, remedy in causes if shows),
        (
            "no other metric shows a cause",
            "look at the samples, at whether later prompts are harder, and at a smaller learning rate (model.lr)",
        ),
    )


def fallen(metrics: Metrics) -> Iterator[RunFinding]:
    """Find the last fall of each accuracy that the run has not made good since."""
    for fall in {fall.metric: fall for fall in Falls().find(metrics)}.values():
        values = course(metrics, fall.metric).values
        if fmean(values[-RECENT if fall.metric == "rollout/accuracy" else -1 :]) < (1 - MARGIN) * fall.before:
            yield fall.finding


def _dead_groups(metrics: Metrics) -> Iterator[RunFinding]:
    signal = course(metrics, "train/no_signal")
    if signal.values and signal.last > HIGH_SHARE:
        solved, rewards = course(metrics, "rollout/accuracy"), {*course(metrics, "rollout/reward").values[-RECENT:]}
        constant = rewards.pop() if signal.last == 1 and len(rewards) == 1 else None
        is_solved = constant is None and bool(solved.values) and solved.last > NEARLY_ALL
        yield RunFinding(
            "Nearly all prompts are solved" if is_solved else "Most prompts give no signal",
            f"{signal.last:.0%} of the prompts had the same reward for all of their completions"
            + (f"; {solved.last:.0%} of the completions are correct" if solved.values else ""),
            "the run has learnt what these prompts teach: end it, or go on with harder prompts (lit-rlvr filter)"
            if is_solved
            else signal_advice(solved.last if solved.values else 0.0, constant),
        )


def _unreadable(metrics: Metrics) -> Iterator[RunFinding]:
    names = [name for name in _names(metrics) if name.endswith("/parse_fail") and name != "reward/status/parse_fail"]
    shares = ((name.split("/")[1], course(metrics, name)) for name in names)
    if unread := [(name, share.last) for name, share in shares if share.values and share.last > HIGH_SHARE]:
        yield RunFinding(
            "Answers cannot be read",
            "; ".join(f"{name} found no answer in {share:.0%} of the completions" for name, share in unread),
            'look at completions.jsonl, "status": "parse_fail": ask for the form of answer that the reward reads (a '
            "system_prompt or template, a warm start), or raise rollout.sampling.max_tokens if answers are cut off",
        )


def _truncation(metrics: Metrics) -> Iterator[RunFinding]:
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
            "raise rollout.sampling.max_tokens (in validation rollout.evaluation.sampling.max_tokens), mask cut "
            "completions (rollout.mask_truncated), reward short answers (Overlong), or pay only for answers that end",
        )


def _length(metrics: Metrics) -> Iterator[RunFinding]:
    length = course(metrics, "rollout/length")
    if length.is_long and length.last > LONGER * length.first:
        yield RunFinding(
            "Completions grow long",
            f"mean length in tokens: {length.change()}",
            "look at the samples: if length brings reward without answers, reward short ones (Overlong, CosineScaled) "
            "or take a loss without a length bias (DrGRPO, DAPO)",
        )


def _learns(metrics: Metrics) -> bool:
    """Return whether a run got better, and either solves most prompts by now or still has a signal from most.

    Its entropy then falls because it becomes sure of right answers.
    """
    accuracy, reward, signal = (course(metrics, m) for m in ("rollout/accuracy", "rollout/reward", "train/no_signal"))
    if accuracy.is_long and 1 - accuracy.last < 0.8 * (1 - accuracy.first):
        return accuracy.last > HIGH_SHARE or (bool(signal.values) and signal.last < HIGH_SHARE)
    steady = not accuracy.is_long or accuracy.last >= accuracy.first
    return steady and reward.rises and bool(signal.values) and signal.last < HIGH_SHARE


def _entropy(metrics: Metrics) -> Iterator[RunFinding]:
    entropy = course(metrics, "train/entropy")
    if entropy.is_long and entropy.last < COLLAPSED * entropy.first and not _learns(metrics):
        accuracy = course(metrics, "rollout/accuracy")
        yield RunFinding(
            "The entropy collapsed",
            f"nats per token: {entropy.change()}"
            + (f"; {accuracy.last:.0%} of the completions are correct" if accuracy.values else ""),
            "a smaller learning rate (model.lr), a wider upper clip (DAPO), an entropy bonus "
            "(model.loss.entropy_coef), or an advantage that keeps rare solutions (agrae, rloo)",
        )
    if entropy.is_long and entropy.last > EXPLODED * entropy.first:
        yield RunFinding(
            "The entropy explodes",
            f"nats per token: {entropy.change()}",
            "a smaller learning rate (model.lr), or an end of such runs by themselves (collapse.action)",
        )


def _gamed(metrics: Metrics) -> Iterator[RunFinding]:
    """Compare two measures of the same completions."""
    reward, accuracy = course(metrics, "rollout/reward"), course(metrics, "rollout/accuracy")
    if reward.rises and accuracy.is_long and accuracy.first - accuracy.last > FORGOTTEN:
        yield RunFinding(
            "The reward rises while the accuracy falls",
            f"reward: {reward.change()}; accuracy of the same completions: {accuracy.change()}",
            "read the best-rewarded samples: the reward may be gamed",
        )


def _held_out(metrics: Metrics) -> Iterator[RunFinding]:
    """Compare the accuracy in training and in validation; the reward is another quantity."""
    training, held_out = course(metrics, "rollout/accuracy"), course(metrics, "val/accuracy")
    if not training.is_long or len(held_out.values) < 2:
        return
    best = max(range(len(held_out.values)), key=lambda k: held_out.values[k])
    lost = held_out.values[best] - held_out.values[-1]
    before = [v for step, v in zip(training.steps, training.values, strict=True) if step <= held_out.steps[best]]
    if lost > FORGOTTEN and before and training.last - fmean(before[-RECENT:]) > FORGOTTEN:
        yield RunFinding(
            "The training accuracy rises while the held-out accuracy falls",
            f"held-out accuracy {held_out.values[best]:.3f} at step {held_out.steps[best]}, {held_out.values[-1]:.3f} "
            f"at step {held_out.steps[-1]}; training accuracy {fmean(before[-RECENT:]):.3f} then, "
            f"{training.last:.3f} now",
            "the prompts may be learnt by heart: take more of them, or keep the best checkpoint (checkpoint.best: "
            "val/accuracy)",
        )


def _engine(metrics: Metrics) -> Iterator[RunFinding]:
    apart = course(metrics, "train/engine_difference")
    if apart.is_long and apart.last > max(2 * apart.first, APART):
        yield RunFinding(
            "The engine's log-probabilities drift from the trainer's",
            f"mean difference in nats: {apart.change()}",
            "probe more often (rollout.safeguards.probe_every), generate in the trainer's precision, and keep the "
            "importance correction (model.importance.correction)",
        )


def _failed_checks(metrics: Metrics) -> Iterator[RunFinding]:
    failed, stopped = (course(metrics, f"reward/status/{status}") for status in ("error", "timeout"))
    if failed.values and failed.last > NOT_JUDGED:
        yield RunFinding(
            "Rewards fail",
            f"{failed.last:.1%} of the completions could not be judged in the last {RECENT} iterations",
            "read failed_rewards.jsonl in the run folder, and fix the reward",
        )
    if stopped.values and stopped.last > NOT_JUDGED:
        yield RunFinding(
            "Limits stop checks",
            f"those of {stopped.last:.1%} of the completions in the last {RECENT} iterations, which count as wrong",
            "mend a check that is slow by itself, or raise the reward's limits (cpu_seconds, wall_seconds, memory_mb)",
        )


def _skipped(metrics: Metrics) -> Iterator[RunFinding]:
    skipped = course(metrics, "train/skipped_steps")
    if skipped.values and skipped.values[-1] > 0:
        yield RunFinding(
            "Optimizer steps were skipped",
            f"{skipped.values[-1]:.0f} until step {skipped.steps[-1]}, because a loss or gradient was not finite",
            "read skipped/ in the run folder; a smaller learning rate (model.lr) or fp32 (trainer.precision) may help",
        )


def in_vain(metrics: Metrics) -> Iterator[RunFinding]:
    """Look at what a run does in vain, unless it gets better."""
    if not is_rising(metrics):
        yield from chain(_dead_groups(metrics), _unreadable(metrics), _truncation(metrics))


def _no_progress(metrics: Metrics) -> Iterator[RunFinding]:
    if (finding := progress(metrics)) is not None and finding.remedy:
        yield finding


LOOKS: tuple[Callable[[Metrics], Iterator[RunFinding]], ...] = (
    fallen, _no_progress, in_vain, _length, _entropy, _gamed, _held_out, _engine, _failed_checks, _skipped,
)  # fmt: skip
