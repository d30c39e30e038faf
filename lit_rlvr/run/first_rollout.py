"""The line about a run's first rollout: the prompts with a signal, and the seconds of the run."""

from __future__ import annotations

import json
import math
from collections import Counter
from itertools import chain
from typing import Any

from lightning.pytorch import Callback, Trainer

from lit_rlvr.answers.find import next_question
from lit_rlvr.common.log import log
from lit_rlvr.rollout.callback import rollout_of
from lit_rlvr.run.loggers import callback_of
from lit_rlvr.run.outputs import RunFolder
from lit_rlvr.run.progress import ProgressEstimator
from lit_rlvr.training.optimizer import steps_per_iteration
from lit_rlvr.types import Rollout

FEW = 0.1
"""Share of the completions below which nothing is said of them."""


class FirstRollout(Callback):
    """A line after the first iteration of a run.

    It costs nothing and changes nothing: the run trains on this rollout in any case, and a resumed run has had it.
    """

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if pl_module.iteration != 1 or pl_module.demonstrates or not trainer.is_global_zero:
            return
        metrics = {}
        for name, value in trainer.callback_metrics.items():
            metrics[name] = float(value)
        prompts = len(batch.rollout.prompts) * trainer.world_size
        line = (
            f"first rollout: {round((1 - metrics['train/no_signal']) * prompts)} of {prompts} prompts give a signal "
            f"with {batch.rollout.group_size} completions each"
        )
        accuracy = metrics["rollout/accuracy"]
        line += "" if math.isnan(accuracy) else f", accuracy {accuracy:.3f}"
        seconds = self._seconds(trainer)
        line += "" if seconds is None else f"; the run takes about {seconds:.0f} s"
        log.info("%s%s", line, self._invented(batch.rollout))

    @staticmethod
    def _invented(rollout: Rollout) -> str:
        """Return what to do if completions go on with questions of their own; "" if few do."""
        completions = list(chain.from_iterable(rollout.completions))
        words = Counter(next_question(completion.answer)[1] for completion in completions)
        words.pop("", None)
        if not words or words.total() < FEW * len(completions):
            return ""
        phrase = words.most_common(1)[0][0]
        return (
            f"; {words.total()} of {len(completions)} completions go on with a question of their own ({phrase!r}), and "
            f"{sum(completion.truncated for completion in completions)} do not end: set "
            f"rollout.sampling.stop: [{json.dumps(chr(10) + phrase)}]"
        )

    @staticmethod
    def _seconds(trainer: Trainer) -> float | None:
        """Return the estimated seconds of the whole run with its validations; None without a limit on its length."""
        step = trainer.global_step
        estimator = callback_of(trainer, ProgressEstimator)
        total = estimator.steps(trainer)
        step_seconds = estimator.seconds(step, step + 1)
        if total is None or step_seconds is None:
            return None
        validations = 1
        every = rollout_of(trainer).validate_every_rollouts
        if every:
            validations += total // steps_per_iteration(trainer.lightning_module) // every
        return total * step_seconds + validations * sum(callback_of(trainer, RunFolder).validation_seconds)
