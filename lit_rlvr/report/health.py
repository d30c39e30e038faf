"""What looks wrong in a run's metrics: what was seen, and what to do about it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import fmean

from lit_rlvr.report.charts import number_text
from lit_rlvr.report.runs import Run

RECENT = 5
"""Iterations whose mean is compared with that of the first ones."""
MOST = 0.5
VALIDATED = re.compile(r"val/(.+)/truncated")
"""The metric of a validation set."""


@dataclass(frozen=True)
class Finding:
    """Something that a run should be looked at for.

    Args:
        title: what it is. evidence: the numbers. remedy: what to try.
    """

    title: str
    evidence: str
    remedy: str


@dataclass(frozen=True)
class Course:
    """A metric's values in the order of their steps, and what is compared of them."""

    steps: list[int]
    values: list[float]

    @property
    def first(self) -> float:
        return fmean(self.values[:RECENT])

    @property
    def last(self) -> float:
        return fmean(self.values[-RECENT:])

    @property
    def long(self) -> bool:
        """Whether the first and the last values are different ones."""
        return len(self.values) >= 2 * RECENT

    def change(self) -> str:
        """The two means in words."""
        return f"{number_text(self.first)} in the first {RECENT} iterations, {number_text(self.last)} in the last"


def course(run: Run, metric: str) -> Course:
    """A metric after the start of training; empty if it was not logged."""
    found = [(step, row[metric]) for step, row in sorted(run.metrics.items()) if step > 0 and metric in row]
    return Course([step for step, _ in found], [value for _, value in found])


def findings(run: Run) -> list[Finding]:
    """What looks wrong in a run, as far as its metrics show it."""
    return [finding for look in LOOKS for finding in look(run)]


def _dead_groups(run: Run) -> Iterator[Finding]:
    signal = course(run, "train/no_signal")
    if signal.values and signal.last >= 0.9:
        solved = course(run, "rollout/accuracy")
        easy = bool(solved.values) and solved.last > 0.5
        yield Finding(
            "Hardly any prompt gives a signal",
            f"{signal.last:.0%} of the prompts had the same reward for all of their completions"
            + (f"; {solved.last:.0%} of the completions are correct" if solved.values else ""),
            ("harder prompts" if easy else "easier prompts, or a warm start (warm_start.steps)")
            + "; keep those that are sometimes solved (lit-rlvr filter), or sample more completions "
            "(rollout.group_size)",
        )


def _truncation(run: Run) -> Iterator[Finding]:
    """Looks at training and at each set's last validation; a steady share in training passes up to `MOST`."""
    seen = []
    cut = course(run, "rollout/truncated")
    if cut.values and (cut.last > MOST or (cut.last > 0.2 and (not cut.long or cut.last > cut.first + 0.1))):
        seen.append(f"share cut off: {cut.change() if cut.long else number_text(cut.last)}")
    for name in dict.fromkeys(
        found[1] for row in run.metrics.values() for m in row if (found := VALIDATED.fullmatch(m))
    ):
        last = course(run, f"val/{name}/truncated")
        if last.values and last.values[-1] > MOST:
            seen.append(
                f"share cut off in validation ({name}): {number_text(last.values[-1])} at step {last.steps[-1]}"
            )
    if seen:
        yield Finding(
            "Completions are cut off",
            "; ".join(seen),
            "raise rollout.sampling.max_tokens (in validation rollout.eval_sampling.max_tokens), mask cut completions "
            "(rollout.mask_truncated), reward short answers (Overlong), or pay only for answers that end",
        )


def _length(run: Run) -> Iterator[Finding]:
    length = course(run, "rollout/length")
    if length.long and length.last > 2 * length.first:
        yield Finding(
            "Completions grow long",
            f"mean length in tokens: {length.change()}",
            "look at the samples: if length brings reward without answers, reward short ones (Overlong, CosineScaled) "
            "or take a loss without a length bias (DrGRPO, DAPO)",
        )


def _learns(run: Run) -> bool:
    """Whether a run got better, and either solves most prompts by now or still has a signal from most.

    Its entropy then falls because it becomes sure of right answers.
    """
    accuracy, reward, signal = (course(run, m) for m in ("rollout/accuracy", "rollout/reward", "train/no_signal"))
    if accuracy.long and 1 - accuracy.last < 0.8 * (1 - accuracy.first):
        return accuracy.last > MOST or (bool(signal.values) and signal.last < MOST)
    steady = not accuracy.long or accuracy.last >= accuracy.first
    rises = reward.long and reward.last - reward.first > 0.5 * (max(reward.values) - min(reward.values))
    return steady and rises and bool(signal.values) and signal.last < MOST


def _entropy(run: Run) -> Iterator[Finding]:
    entropy = course(run, "train/entropy")
    if entropy.long and entropy.last < 0.1 * entropy.first and not _learns(run):
        accuracy = course(run, "rollout/accuracy")
        yield Finding(
            "The entropy collapsed",
            f"nats per token: {entropy.change()}"
            + (f"; {accuracy.last:.0%} of the completions are correct" if accuracy.values else ""),
            "a smaller learning rate (model.lr), a wider upper clip (DAPO), an entropy bonus (model.entropy_coef), or "
            "an advantage that keeps rare solutions (agrae, rloo)",
        )
    if entropy.long and entropy.last > 4 * entropy.first:
        yield Finding(
            "The entropy explodes",
            f"nats per token: {entropy.change()}",
            "a smaller learning rate (model.lr), or stop such runs by themselves (collapse.window)",
        )


def _held_out(run: Run) -> Iterator[Finding]:
    reward, held_out = course(run, "rollout/reward"), course(run, "val/accuracy")
    if not reward.long or len(held_out.values) < 2:
        return
    best = max(range(len(held_out.values)), key=lambda k: held_out.values[k])
    lost = held_out.values[best] - held_out.values[-1]
    before = [value for step, value in zip(reward.steps, reward.values, strict=True) if step <= held_out.steps[best]]
    if lost > 0.03 and before and reward.last > fmean(before[-RECENT:]):
        yield Finding(
            "The reward rises while the held-out accuracy falls",
            f"held-out accuracy {held_out.values[best]:.3f} at step {held_out.steps[best]}, {held_out.values[-1]:.3f} "
            f"at step {held_out.steps[-1]}; training reward {number_text(fmean(before[-RECENT:]))} then, "
            f"{number_text(reward.last)} now",
            "read the best-rewarded samples: the reward may be gamed or the prompts learnt by heart; keep the best "
            "checkpoint (checkpoint.best: val/accuracy)",
        )


def _engine(run: Run) -> Iterator[Finding]:
    apart = course(run, "train/engine_difference")
    if apart.long and apart.last > max(2 * apart.first, 0.02):
        yield Finding(
            "The engine's log-probabilities drift from the trainer's",
            f"mean difference in nats: {apart.change()}",
            "probe more often (rollout.probe_every), generate in the trainer's precision, and keep the importance "
            "correction (model.importance_correction)",
        )


def _failed_checks(run: Run) -> Iterator[Finding]:
    failed = course(run, "reward/status/error")
    if failed.values and failed.last > 0.01:
        yield Finding(
            "Rewards fail",
            f"{failed.last:.1%} of the completions could not be judged in the last {RECENT} iterations",
            "read failed_rewards.jsonl in the run folder, and mend the reward",
        )


def _skipped(run: Run) -> Iterator[Finding]:
    skipped = course(run, "train/skipped_steps")
    if skipped.values and skipped.values[-1] > 0:
        yield Finding(
            "Optimizer steps were skipped",
            f"{skipped.values[-1]:.0f} until step {skipped.steps[-1]}, because a loss or gradient was not finite",
            "read skipped/ in the run folder; a smaller learning rate (model.lr) or fp32 (trainer.precision) may help",
        )


LOOKS: tuple[Callable[[Run], Iterator[Finding]], ...] = (
    _dead_groups, _truncation, _length, _entropy, _held_out, _engine, _failed_checks, _skipped
)  # fmt: skip
