"""The line about a run's first rollout: the prompts with a signal, and the seconds of the run."""

from __future__ import annotations

import logging
import math
from typing import Any

from lightning.pytorch import Callback, Trainer

from lit_rlvr.rollout.callback import rollout_of
from lit_rlvr.run.loggers import callback_of
from lit_rlvr.run.outputs import RunFolder
from lit_rlvr.run.progress import ProgressEstimator
from lit_rlvr.training.optimizer import updates_of

_log = logging.getLogger("lit_rlvr")


class FirstRollout(Callback):
    """A line after the first iteration of a run.

    It costs nothing and changes nothing: the run trains on this rollout in any case, and a resumed run has had it.
    """

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if pl_module.iteration != 1 or pl_module.demonstrates or not trainer.is_global_zero:
            return
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        prompts = len(batch.rollout.prompts) * trainer.world_size
        line = (
            f"first rollout: {round((1 - metrics['train/no_signal']) * prompts)} of {prompts} prompts give a signal "
            f"with {batch.rollout.group_size} completions each"
        )
        accuracy = metrics["rollout/accuracy"]
        line += "" if math.isnan(accuracy) else f", accuracy {accuracy:.3f}"
        seconds = self._seconds(trainer)
        line += "" if seconds is None else f"; the run takes about {seconds:.0f} s"
        _log.info("%s", line)

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
