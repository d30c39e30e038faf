"""The monitor of a run: what its metrics say is wrong, while it trains and afterwards, by one set of thresholds.

- While a run trains, `CollapseMonitor` warns of an accuracy that falls, or ends the run, and `LostWork` warns.
- `findings` looks at the metrics of a run that is over or under way, for `report` and `watch`.
- Rewards that fail end a run before it trains on them: `stop_on_failures` in `rewards/combine.py`.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean, variance
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, Timer

from lit_rlvr.common.arguments import ChecksArguments
from lit_rlvr.common.init_arguments import dotted_path_of
from lit_rlvr.common.log import log
from lit_rlvr.common.run_files import COLLAPSE, EARLY_STOP, VALIDATION
from lit_rlvr.run.advice import GUIDE, RunHistory
from lit_rlvr.run.collapse import paired_certainty
from lit_rlvr.run.health.course import FEW_SAMPLES, RECENT, REPEAT
from lit_rlvr.run.health.falls import Falls, RunFall
from lit_rlvr.run.health.findings import NEARLY_ALL, NOT_JUDGED, at_validation, in_vain, signal_case
from lit_rlvr.run.health.progress import progress
from lit_rlvr.run.loggers import callbacks_of, metric_rows, run_root
from lit_rlvr.types import GroupSelection


class CollapseMonitor(ChecksArguments, Callback):
    """A warning when the accuracy of rollouts or of a validation set falls by more than its noise allows.

    It says why. Rollouts: a test of the prompts' accuracies against the best 8 iterations of the run. Validation: a
    paired test of the same questions against the best validation. A loss of a tenth is no fall.

    Args:
        action: `warn`; or `stop` the run after the iteration.
    """

    config_key = "collapse"

    def __init__(self, action: Literal["warn", "stop"] = "warn") -> None:
        self.action = action
        self.reason: str | None = None  # why the run stops
        self._falls = Falls()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the iterations before a resume."""
        self._falls = Falls(RunHistory.of_folder(run_root(trainer)))
        self._find(trainer)

    def _find(self, trainer: Trainer) -> list[RunFall]:
        """Return the falls that the newest metrics show; on all ranks, if the run acts on them.

        Collective: call it on every rank.
        """
        if trainer.is_global_zero:
            falls = [*self._falls.find(metric_rows(trainer))]
        else:
            falls = []
        if self.action == "warn":
            return falls
        return trainer.strategy.broadcast(falls)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        if trainer.is_global_zero:
            results = validation_falls(run_root(trainer) / VALIDATION, trainer.global_step)
            for logger in trainer.loggers if results else ():
                logger.log_metrics(results, step=trainer.global_step)
                logger.save()  # nothing else follows the last validation of a run that was stopped in it
        self._report_falls(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._report_falls(trainer)

    def _report_falls(self, trainer: Trainer) -> None:
        """Report the falls that the newest metrics show, and end the run if it acts on them."""
        for fall in self._find(trainer):
            if trainer.is_global_zero:
                log.warning("step %d: %s", trainer.global_step, fall.finding)
            if self.action == "stop":
                self.reason = self.reason or str(fall.finding)
                trainer.should_stop = True


def validation_falls(path: Path, step: int) -> dict[str, float]:
    """Return how certain it is that each set was answered worse at a step than at its best, as `val/<set>/fall_z`.

    `val/<set>/fall_error` is the standard error of the difference, by question.

    Args:
        path: validation.jsonl.
        step: the optimizer step of the validation.
    """
    courses_by_set: dict[str, dict[int, dict[str, float]]] = {}
    for line in path.read_text().splitlines() if path.is_file() else ():
        row = json.loads(line)
        shares = {}
        for question, (right, counted) in row["questions"].items():
            shares[question] = right / counted
        courses_by_set.setdefault(row["set"], {})[row["step"]] = shares
    falls = {}
    for name, courses in courses_by_set.items():
        before = [shares for earlier, shares in courses.items() if earlier < step and shares]
        if before and courses.get(step):
            best = max(before, key=lambda shares: fmean(shares.values()))
            falls[f"val/{name}/fall_z"] = paired_certainty(best, courses[step])
            changes = []
            for question, share in best.items():
                if question in courses[step]:
                    changes.append(share - courses[step][question])
            if len(changes) > 1:
                falls[f"val/{name}/fall_error"] = math.sqrt(variance(changes) / len(changes))
    return falls


def is_own(cls: type) -> bool:
    """Return whether a class is the user's or another package's: neither ours nor Lightning's."""
    return cls.__module__.partition(".")[0] not in ("lightning", "lit_rlvr")


def why_stopped(trainer: Trainer, has_ended: bool) -> str | None:
    """Return why a callback ended a run before its last step, and say so; None if none did.

    Args:
        trainer: the trainer of the run.
        has_ended: whether the run has done all of its steps or epochs, spent its budget, or replayed its whole record.
    """
    callbacks = callbacks_of(trainer)
    collapse = next((c.reason for c in callbacks if isinstance(c, CollapseMonitor) and c.reason), None)
    if collapse:
        return f"{COLLAPSE}{collapse}"
    if has_ended or not trainer.should_stop:
        return None
    names = " or ".join(dotted_path_of(type(c)) for c in callbacks if is_own(type(c))) or "a callback"
    reasons = []
    for c in callbacks:
        if isinstance(c, EarlyStopping):
            reasons.append(c.stopping_reason_message)
    for timer in callbacks:
        if isinstance(timer, Timer):
            left = timer.time_remaining()
            if left is not None and left <= 0:
                reasons.append("trainer.max_time is over")
    reason = next(filter(None, reasons), f"{names} set trainer.should_stop")
    reason = reason.partition(" Signaling Trainer")[0]
    log.warning("step %d: stopped early: %s", trainer.global_step, reason)
    return f"{EARLY_STOP}{reason}"


class LostWork(Callback):
    """Warnings about work that a run does in vain.

    Once: what `in_vain` finds, the importance correction drops nearly all tokens, limits stop more than 1 % of the
    checks. At most every 10th iteration: the correction leaves few effective samples, dynamic sampling finds no group.
    After each validation: what the run has learnt.
    """

    def __init__(self) -> None:
        self._recent: dict[str, list[float]] = {}
        self._reported: set[str] = set()  # metrics, and titles or evidence of findings
        self._silent = 0  # iterations until few effective samples may be reported again
        self._unselected = 0  # iterations until an empty selection may be reported again
        self._history = RunHistory()

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._history = RunHistory.of_folder(run_root(trainer))

    on_train_start = on_sanity_check_start

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if not trainer.is_global_zero:
            return
        metrics = {}
        for name, value in trainer.callback_metrics.items():
            metrics[name] = float(value)
        for line in self.look(metrics, pl_module.selection):
            log.warning("step %d: %s (%s)", trainer.global_step, line, GUIDE)
        for finding in in_vain(metric_rows(trainer), self._history):
            if finding.title not in self._reported:
                self._reported.add(finding.title)
                log.warning("step %d: %s", trainer.global_step, finding)

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Say what the run has learnt, and what is wrong with its answers."""
        if trainer.state.fn != "fit" or not trainer.is_global_zero or (trainer.sanity_checking and trainer.global_step):
            return
        rows = metric_rows(trainer)
        if trainer.sanity_checking:
            learnt = None
        else:
            learnt = progress(rows, self._history, len(pl_module.data.stream))
        if learnt is not None:
            log.log(logging.WARNING if learnt.remedy else logging.INFO, "step %d: %s", trainer.global_step, learnt)
        for finding in at_validation(rows, self._history):
            if finding.evidence not in self._reported:  # that of a warm start stays the same
                self._reported.add(finding.evidence)
                log.warning("step %d: %s", trainer.global_step, finding)

    def look(
        self,
        metrics: Mapping[str, float],
        selection: GroupSelection = GroupSelection(),  # noqa: B008  # frozen
    ) -> list[str]:
        """Record one iteration; return the warnings it calls for.

        Args:
            metrics: the metrics that it logged.
            selection: the groups that the algorithm needs.
        """
        warnings = []
        share = self._grown("train/importance_dropped", metrics, NEARLY_ALL)
        if share is not None:
            warnings.append(
                f"the importance correction dropped {share:.0%} of the tokens, so hardly anything is trained; widen "
                "model.importance.cap and floor around 1, or clip the ratios instead "
                "(model.importance.correction: token_truncate)"
            )
        share = self._grown("reward/status/timeout", metrics, NOT_JUDGED)
        if share is not None:
            warnings.append(
                f"limits (cpu_seconds, wall_seconds, memory_mb of a reward) stopped the checks of {share:.1%} of the "
                "completions, which count as wrong and are waited for; a check that is slow by itself needs mending"
            )
        self._unselected -= 1
        if selection.only_mixed and not metrics.get("rollout/live_groups", 1.0) and self._unselected <= 0:
            self._unselected = REPEAT
            mixed = 1 - metrics["train/no_signal"]
            if mixed and selection.by != "reward":
                remedy = f"the rewards of {mixed:.0%} of the groups do differ: set model.dynamic_sampling: reward"
            else:
                case = signal_case(metrics["rollout/accuracy"])
                remedy = self._history.advise("Most prompts give no signal", case)
            warnings.append(
                f"dynamic sampling found no group in {metrics['rollout/sampling_rounds']:g} rounds whose completions "
                f"differ in their {selection.by}, so there was nothing to train on; {remedy}"
            )
        self._silent -= 1
        share = metrics.get("train/staleness/ess", 1.0)
        if share < FEW_SAMPLES and self._silent <= 0:
            self._silent = REPEAT
            warnings.append(
                f"the importance correction leaves an effective sample of {share:.0%} of the tokens, which are up to "
                f"{metrics['train/staleness/max']:g} iterations old; lower rollout.staleness or model.lr, or "
                "weigh each token by itself (model.importance.correction: token_truncate)"
            )
        return warnings

    def _grown(self, name: str, metrics: Mapping[str, float], limit: float) -> float | None:
        """Return a share's recent mean when it exceeds a limit for the first time, else None."""
        self._recent[name] = [*self._recent.get(name, []), metrics.get(name, 0.0)][-RECENT:]
        share = fmean(self._recent[name])
        if name in self._reported or not share > limit:
            return None
        self._reported.add(name)
        return share
