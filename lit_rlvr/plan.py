"""What follows from a run's settings before its weights load: every part reads it, and none changes it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.strategies import ModelParallelStrategy

from lit_rlvr.distributed.fsdp2 import FSDP2
from lit_rlvr.errors import UserError
from lit_rlvr.policy.precision import PRECISIONS, compute_dtype
from lit_rlvr.sampling import Sampling

CPU = torch.device("cpu")


@dataclass(frozen=True)
class RunPlan:
    """A run before its weights load. `plan_run` makes it for a run that samples.

    Args:
        trains: the run trains, so it needs the reference and the teachers; False = it validates or tests.
        ranks: number of processes.
        device: the device of this process.
        precision: the trainer's.
        strategy: shards the weights over the processes; None = each process has all of them.
        prompts: prompts of a rollout, over all ranks; 0 = the run samples none.
        completions: completions of each prompt that it trains on.
        sampling: how they are sampled.
        staleness: the most iterations between the weights that sample a token and those that train on it.
        most_tokens: the most tokens that it trains on, over all rollouts; 0 = unknown.
        replays_routes: each token is trained with the experts that it used in the engine.
        has_agent: programs of their own play the episodes.
        is_exact: the engine's log-probabilities equal the trainer's.
    """

    trains: bool = True
    ranks: int = 1
    device: torch.device = CPU
    precision: str = "32-true"
    strategy: FSDP2 | None = None
    prompts: int = 0
    completions: int = 1
    sampling: Sampling = Sampling()  # noqa: RUF009  # frozen
    staleness: int = 0
    most_tokens: int = 0
    replays_routes: bool = False
    has_agent: bool = False
    is_exact: bool = False

    @classmethod
    def of_trainer(cls, trainer: Any) -> RunPlan:
        """Return the plan of a Lightning Trainer that has no `RolloutCallback`.

        Raises:
            UserError: its strategy shards weights, and is not ours.
        """
        strategy = trainer.strategy
        if isinstance(strategy, ModelParallelStrategy) and not isinstance(strategy, FSDP2):
            raise UserError("trainer.strategy: to shard weights use lit_rlvr.strategy.FSDP2: --config strategy/fsdp2")
        return cls(
            trains=trainer.state.fn in (None, "fit"),  # None: it has not begun
            ranks=trainer.world_size,
            device=strategy.root_device,
            precision=str(trainer.precision),
            strategy=strategy if isinstance(strategy, FSDP2) else None,
        )

    def problems(self) -> Iterator[str]:
        """Yield what the trainer's own options do not allow, a line each."""
        if self.precision not in PRECISIONS:
            yield (
                f"trainer.precision: {self.precision} is not supported: the weights are kept in float32; "
                f"use {' or '.join(PRECISIONS)}"
            )

    @property
    def dtype(self) -> torch.dtype:
        """The data type in which the run computes."""
        return compute_dtype(self.precision)

    @property
    def sharded(self) -> bool:
        """Whether each process has a part of each weight."""
        return self.strategy is not None


class PlanningCallback(Callback):
    """The callback of a Trainer that has the settings of its run, as parts below `RolloutCallback` see it.

    Attributes:
        plan: what follows from the settings; None before `setup`.
    """

    plan: RunPlan | None = None

    def instruct_data(self, data: Any) -> None:
        """Tell a data module the environment and the rewards of the run, before it reads its rows."""


def planning_callback(trainer: Any) -> PlanningCallback | None:
    """Return the callback with the settings of a trainer's run, if it has one."""
    return next((callback for callback in trainer.callbacks if isinstance(callback, PlanningCallback)), None)


def plan_of(trainer: Any) -> RunPlan:
    """Return the plan that a trainer's callback has made, or else that of the trainer alone."""
    callback = planning_callback(trainer)
    if callback is not None and callback.plan is not None:
        return callback.plan
    return RunPlan.of_trainer(trainer)
