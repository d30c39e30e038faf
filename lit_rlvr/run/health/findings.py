"""What the metrics of a run say is wrong, while it trains and afterwards."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from statistics import fmean

from lit_rlvr.common.terminal import number_text
from lit_rlvr.run.advice import RunHistory
from lit_rlvr.run.health.course import (
    APART,
    COLLAPSED,
    EXPLODED,
    LONGER,
    NOTHING_TRIED,
    RECENT,
    WORSE,
    Metrics,
    RunFinding,
    course,
)
from lit_rlvr.run.health.falls import fallen
from lit_rlvr.run.health.progress import Validated, best_validation, is_rising, progress

HIGH_SHARE = 0.5
"""The share of truncated completions, and of prompts without a signal, above which a run is reported."""
NEARLY_ALL = 0.9
"""The share of tokens that the importance correction drops, above which a run is reported."""
FORGOTTEN = 0.03
"""The fall of an accuracy, and the rise of training's next to it, above which a run is reported."""
NOT_JUDGED = 0.01
"""The share of checks that fail, and of those that a limit stops, above which a run is reported."""
VALIDATED = re.compile(r"val/(.+)/truncated")
"""The metric of a validation set."""
ANSWERED = re.compile(r"val/(.+)/same_answer")
"""The share of the most frequent answer of a validation set."""
HOPELESS = 0.1
"""The accuracy below which next to nothing is right."""
ONE_ANSWER = 0.5
"""The share of the most frequent answer, at least WORSE above that of the references, above which it is reported."""
MOSTLY_PAID = 0.8
"""The share of the mean reward from which an answer that is always given is called paid."""


def _names(metrics: Metrics) -> dict[str, None]:
    """Return the names of all metrics, in the order in which they were first logged."""
    return dict.fromkeys(chain.from_iterable(metrics.values()))


def findings(metrics: Metrics, history: RunHistory = NOTHING_TRIED) -> list[RunFinding]:
    """Return what looks wrong in a run, as far as its metrics show it.

    Args:
        metrics: the run's.
        history: what has been tried, and so is not advised.
    """
    findings: list[RunFinding] = []
    for look in LOOKS:
        findings.extend(look(metrics, history))
    return findings


def _without_signal(metrics: Metrics, history: RunHistory) -> Iterator[RunFinding]:
    signal = course(metrics, "train/no_signal")
    unjudged = course(metrics, "reward/status/unjudged")
    if not signal.values or signal.last <= HIGH_SHARE:
        return
    if unjudged.values and unjudged.values[-1] == 1:  # the run itself names the reward that judges nothing
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
        for look in (_without_signal, _unreadable, _truncation):
            yield from look(metrics, history)


def _no_progress(metrics: Metrics, history: RunHistory) -> Iterator[RunFinding]:
    finding = progress(metrics, history)
    if finding is not None and finding.remedy:
        yield finding


LOOKS: tuple[Callable[[Metrics, RunHistory], Iterator[RunFinding]], ...] = (
    fallen, _no_progress, at_validation, in_vain, _length, _entropy, _gamed, _held_out, _engine, _failed_checks,
    _skipped,
)  # fmt: skip
