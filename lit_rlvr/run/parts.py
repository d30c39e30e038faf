"""A run before its weights load: its sizes, and what is refused then."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lit_rlvr.errors import check_all
from lit_rlvr.rollout.callback import RolloutCallback, rollout_of
from lit_rlvr.rollout.preflight.sizes import check_settings, plan_run
from lit_rlvr.run.checkpoint import RunCheckpoint
from lit_rlvr.run.loggers import callback_of
from lit_rlvr.run.progress import Budget
from lit_rlvr.run.warm_start import WarmStart
from lit_rlvr.training.optimizer import check_schedule, steps_per_iteration, total_steps

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from lit_rlvr.algorithms import RLVRModule
    from lit_rlvr.datamodules import PromptDataModule
    from lit_rlvr.plan import RunPlan


@dataclass(frozen=True)
class RunParts:
    """The parts of a run that a config describes, before the weights load.

    Args:
        trainer: the Trainer, whose callbacks include the `RolloutCallback`.
        module: the algorithm.
        data: the data.
        warm_start: the supervised steps before the run.
    """

    trainer: Trainer
    module: RLVRModule
    data: PromptDataModule
    warm_start: WarmStart

    @property
    def rollout(self) -> RolloutCallback:
        """The `RolloutCallback` of the trainer."""
        return rollout_of(self.trainer)

    @property
    def limits(self) -> dict[str, int]:
        """The limits of the run's budget, perhaps none."""
        return dict(callback_of(self.trainer, Budget).limits)

    @property
    def plan(self) -> RunPlan:
        """What follows from the run's settings."""
        return plan_run(self.rollout, self.trainer, self.module, self.data)

    @property
    def steps(self) -> int | None:
        """The optimizer steps of the whole run, without regard to its budget; None without a limit."""
        return total_steps(self.trainer, len(self.data.train_dataloader()), steps_per_iteration(self.module))

    @property
    def iterations(self) -> int | None:
        """The most rollouts of the whole run; None without a limit on steps, epochs or samples."""
        if self.steps is None:
            counts = []
        else:
            counts = [math.ceil(self.steps / steps_per_iteration(self.module))]
        samples = self.limits.get("samples")
        if samples is not None:
            per_rollout = self.data.prompts_per_rollout * self.rollout.completions_of(self.module)
            counts.append(math.ceil(samples / (per_rollout * (2 if self.module.samples_reference else 1))))
        return min(counts, default=None)

    def prepare(self) -> None:
        """Read the data, and refuse all at once whatever can be refused before the weights load.

        Raises:
            UserError: with a message for each problem.
        """
        rollout = self.rollout
        data = self.data
        data.use_model(self.module)
        data.use_environment(rollout.environment, rollout.judging_rewards(self.module.demonstrates))

        def check_rows() -> None:
            data.setup("fit")
            check_all(
                lambda: check_schedule(self.module.optim, self.steps),
                lambda: rollout.inspect_data(self.module, data),
                lambda: callback_of(self.trainer, RunCheckpoint).check_metrics(self.trainer, self.module, data),
                lambda: self.warm_start.check(self.module, data, rollout.environment, rollout.sampling),
                lambda: rollout.replay.rollouts_from and rollout.replay_source(self.trainer, self.module, data),
            )

        check_all(lambda: check_settings(rollout, self.module, self.plan), check_rows)
