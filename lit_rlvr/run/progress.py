"""The progress of a run: its budget in completions or tokens, the estimated end, and the progress display."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Mapping
from math import isfinite, isnan, nan
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from lit_rlvr.common.arguments import ChecksArguments, check_within
from lit_rlvr.common.init_arguments import init_arguments
from lit_rlvr.common.terminal import Terminal
from lit_rlvr.run.loggers import callback_of, callbacks_of
from lit_rlvr.training.optimizer import steps_per_iteration


class Budget(ChecksArguments, Callback):
    """A limit that ends training with the iteration that uses up a number of completions or tokens.

    Everything generated for training counts, including further rounds of dynamic sampling and a reference model's
    completions; validation does not. `trainer.max_steps` counts optimizer steps; the first limit reached ends the run.

    Args:
        samples: sampled completions; None = no limit.
        tokens: generated tokens; None = no limit.
    """

    config_key = "budget"

    def __init__(self, samples: int | None = None, tokens: int | None = None) -> None:
        self.init_args = init_arguments()
        check_within("[1, inf)", "budget", samples=samples, tokens=tokens)
        self.limits = {}
        if samples is not None:
            self.limits["samples"] = samples
        if tokens is not None:
            self.limits["tokens"] = tokens
        self.used = dict.fromkeys(("samples", "tokens"), 0)
        self._iterations = 0

    @property
    def iterations(self) -> int | None:
        """The estimated iteration that uses up the budget; None without a limit, or before the first iteration."""
        done = self._iterations
        limits = []
        for name, limit in self.limits.items():
            if self.used[name]:
                limits.append(-(-done * limit // self.used[name]))
        if limits:
            return max(min(limits), done)
        return None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        for name in self.used:
            self.used[name] += int(trainer.callback_metrics[f"rollout/{name}"])
        self._iterations += 1
        trainer.should_stop |= self.ends_run  # Lightning then validates before it ends the run

    @property
    def ends_run(self) -> bool:
        """True if a limit is reached."""
        for name, limit in self.limits.items():
            if self.used[name] >= limit:
                return True
        return False

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["budget"] = self.used

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self.used = checkpoint["budget"]
        self._iterations = checkpoint["rlvr"]["iteration"]
        trainer.should_stop |= self.ends_run


PROGRESS_TEXTS = {
    "rollout/thought_tokens": "thoughts {:.0f} tokens",
    "rollout/unclosed_thoughts": "unclosed {:.0%}",
    "rollout/tokens_per_second": "{:.0f} tokens/s",
    "train/staleness/mean": "staleness {:.1f}",
    "rollout/turns": "turns {:.1f}",
    "rollout/tool_calls": "tool calls {:.1f}",
}
"""Metric that only some runs have -> its text in the progress line."""


def _progress_text(values: Mapping[str, float]) -> str:
    """Return the metrics of a step, as the progress line shows them."""
    text = f"loss {values.get('train/loss', nan):.4f}"  # none until a step was finite
    if "rollout/reward" in values:
        metrics = {
            "reward": values.get("rollout/reward", 0.0),
            "accuracy": values.get("rollout/accuracy", 0.0),
            "from teacher": values.get("train/teacher_divergence", values.get("train/teacher_kl", nan)),
        }
        text = "".join(f"{name} {value:.3f}  " for name, value in metrics.items() if not isnan(value))
        text += f"truncated {values.get('rollout/truncated', 0):.0%}  no signal {values.get('train/no_signal', 0):.0%}"
    for name, form in PROGRESS_TEXTS.items():
        if not isnan(values.get(name, nan)):
            text += f"  {form.format(values[name])}"
    accuracies = []
    for name, value in values.items():
        match = re.fullmatch("train/([^/]+)/accuracy", name)
        if match and not isnan(value):
            accuracies.append(f"{match[1]} {value:.3f}")
    if accuracies:
        text += f"  ({', '.join(accuracies)})"
    return text


class RunProgress(ProgressBar):
    """The progress bar of training.

    It shows steps, reward, accuracy, truncated completions and prompts without a signal (in runs without rewards the
    loss instead), tokens/s, the mean staleness of tokens if any are stale, and the time left.
    """

    def __init__(self) -> None:
        super().__init__()
        self._console = Terminal(file=sys.stderr)
        self._bar: Progress | None = None
        self._task: Any = None
        self._enabled = True

    def disable(self) -> None:
        """Print nothing; Lightning calls it on every rank but the first."""
        self._enabled = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not (self._enabled and self._console.is_terminal):
            return
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
        )
        self._task = self._bar.add_task(
            "", total=callback_of(trainer, ProgressEstimator).steps(trainer), completed=trainer.global_step
        )
        self._bar.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self._enabled:
            return
        values = {}
        for k, v in trainer.callback_metrics.items():
            values[k] = float(v)
        text = _progress_text(values)
        estimator = callback_of(trainer, ProgressEstimator)
        total = estimator.steps(trainer)
        if self._bar is not None:
            self._bar.update(self._task, total=total, completed=trainer.global_step, description=text)
            return
        left = estimator.seconds(trainer.global_step, total)
        times = []
        for part in ("sync", "generate", "score", "train"):
            if f"time/{part}" in values:
                times.append(f"{part} {values[f'time/{part}']:.1f}")
        seconds = ", ".join(times)
        print(
            f"step {trainer.global_step}{'' if total is None else f'/{total}'}  {text}  ({seconds} s)  "
            f"{'?' if left is None else f'{left:.0f} s'} left",
            file=sys.stderr,
            flush=True,
        )

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        results = pl_module.validation.results
        if not (self._enabled and results):
            return
        # In `validate` the trainer counts no steps.
        if trainer.sanity_checking:
            when = "before training"
        else:
            when = f"step {pl_module.updates}"
        of_sets = []
        for name, value in results.items():
            if name.count("/") > 1:
                of_sets.append(f"{name.removeprefix('val/')} {value:.3f}")
        text = "  ".join(of_sets)
        self._console.print(f"validation, {when}: {text}", soft_wrap=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop_bar()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stop_bar()

    def _stop_bar(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class ProgressEstimator(Callback):
    """The remaining time of the run, for the callbacks that show it.

    It estimates the optimizer steps of the whole run, and the seconds left from this process's mean step.
    """

    def __init__(self) -> None:
        self._first_position: tuple[int, int] | None = None  # the step and iteration that this process began with
        self._start = 0.0
        self._last = (0.0, 0)  # the seconds and the step at the end of the last iteration, which another thread reads

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._first_position = _position(trainer)
        self._start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._last = time.perf_counter() - self._start, trainer.global_step

    def steps(self, trainer: Trainer) -> int | None:
        """Return the optimizer steps of the whole run; None without a limit, or while a budget cannot be estimated yet.

        The iterations up to now may have had a different number of updates, and an iteration takes all of its own.
        """
        step, iteration = self._first_position or _position(trainer)
        updates = steps_per_iteration(trainer.lightning_module)
        limits = []
        for callback in callbacks_of(trainer):
            if isinstance(callback, Budget):
                limits.append(callback.iterations)
        if trainer.max_steps > 0:
            limits.append(iteration + -(-(trainer.max_steps - step) // updates))
        batches = trainer.num_training_batches
        if trainer.max_epochs is not None and trainer.max_epochs >= 0 and isfinite(batches):
            limits.append(int(batches * trainer.max_epochs))
        last = min((iterations for iterations in limits if iterations is not None), default=None)
        if last is None:
            return None
        return step + max(last - iteration, 0) * updates

    def seconds(self, step: int, total_steps: int | None) -> float | None:
        """Return the seconds left; None before the first step, or without a limit."""
        (spent, last), start = self._last, self._first_position
        if start is None or total_steps is None or last <= start[0]:
            return None
        return spent / (last - start[0]) * max(total_steps - step, 0)


def _position(trainer: Trainer) -> tuple[int, int]:
    return trainer.global_step, trainer.lightning_module.iteration  # type: ignore[return-value]
