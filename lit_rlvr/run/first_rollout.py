"""The line about a run's first rollout: the prompts with a signal, the seconds of the run, and what is in the way."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback, Trainer

from lit_rlvr.common.terminal import one_line
from lit_rlvr.rollout.callback import rollout_of
from lit_rlvr.run.findings import GUIDE, HIGH_SHARE, signal_advice
from lit_rlvr.run.loggers import callback_of
from lit_rlvr.run.monitor import EXAMPLE_LENGTH, constant_reward
from lit_rlvr.run.outputs import RunFolder
from lit_rlvr.run.progress import ProgressEstimator
from lit_rlvr.training.optimizer import updates_of
from lit_rlvr.types import Rollout, Sampling

_log = logging.getLogger("lit_rlvr")


class FirstRollout(Callback):
    """A line after the first iteration of a run.

    It costs nothing and changes nothing: the run trains on this rollout in any case, and a resumed run has had it.
    """

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if pl_module.iteration != 1 or pl_module.demonstrates or not trainer.is_global_zero:
            return
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        rollout, sampling = batch.rollout, rollout_of(trainer).sampling
        prompts = len(rollout.prompts) * trainer.world_size
        line = (
            f"first rollout: {round((1 - metrics['train/no_signal']) * prompts)} of {prompts} prompts give a signal "
            f"with {rollout.group_size} completions each"
        )
        accuracy = metrics["rollout/accuracy"]
        line += "" if math.isnan(accuracy) else f", accuracy {accuracy:.3f}"
        seconds = self._seconds(trainer)
        line += "" if seconds is None else f"; the run takes about {seconds:.0f} s"
        found = obstacle(metrics, rollout, sampling)
        _log.log(
            logging.WARNING if found else logging.INFO,
            "%s%s",
            line,
            f". In the way: {found} ({GUIDE})" if found else "",
        )

    @staticmethod
    def _seconds(trainer: Trainer) -> float | None:
        """Return the estimated seconds of the whole run with its validations; None without a limit on its length."""
        step, estimator = trainer.global_step, callback_of(trainer, ProgressEstimator)
        total = estimator.steps(trainer)
        if total is None or (of_one := estimator.seconds(step, step + 1)) is None:
            return None
        validations = 1
        if every := rollout_of(trainer).validate_every_rollouts:
            validations += total // updates_of(trainer.lightning_module) // every
        return total * of_one + validations * sum(callback_of(trainer, RunFolder).validation_seconds)


def obstacle(metrics: Mapping[str, float], rollout: Rollout, sampling: Sampling) -> str:
    """Return what keeps all prompts of a rollout from giving a signal, and what helps; "" = some give one.

    Args:
        metrics: those of the iteration.
        sampling: training's.
    """
    if metrics["train/no_signal"] < 1:
        return ""
    accuracy, truncated = metrics["rollout/accuracy"], metrics["rollout/truncated"]
    if truncated > HIGH_SHARE and not accuracy > HIGH_SHARE:
        return (
            f"{truncated:.0%} of the completions are cut off at {sampling.max_tokens} tokens; `lit-rlvr tune` finds "
            "out whether more (rollout.sampling.max_tokens) or supervised steps help"
        )
    for name, unreadable in rollout.unreadable.items():
        if (share := metrics[f"reward/{name}/parse_fail"]) > HIGH_SHARE and unreadable.any():
            p, g = unreadable.nonzero()[0].tolist()
            text = one_line(rollout.completions[p][g].text)[-EXAMPLE_LENGTH:]
            return (
                f"reward {name} finds no answer in {share:.0%} of the completions, such as {text!r}; ask in the prompt "
                "for the form that it reads (lit-rlvr preview shows the prompt), or teach it (warm_start.steps)"
            )
    what = f"{accuracy:.0%} of the answers are right" if accuracy == accuracy else "the rewards of a prompt are equal"
    return f"{what}; {signal_advice(accuracy, constant_reward(rollout, metrics))}"
