"""Runs a user's rewards in worker processes, where they can neither hang nor end the run."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from lit_rlvr.errors import UserError, first_line
from lit_rlvr.workers.pool import Waiting, shared_pool
from lit_rlvr.workers.process import Function, Outcome

if TYPE_CHECKING:
    from lit_rlvr.types import Pair

UNPICKLABLE = (pickle.PicklingError, TypeError, AttributeError)
"""Exceptions that pickling raises."""


@dataclass(frozen=True)
class Isolation:
    """Limits on judging one completion in a worker process.

    Args:
        cpu_seconds: CPU time.
        wall_seconds: wall-clock time, for a reward that sleeps or waits.
        memory_mb: address space in MiB, not counting the import of the reward.
    """

    cpu_seconds: float = 2.0
    wall_seconds: float = 20.0
    memory_mb: int = 2048

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value <= 0:
                raise UserError(f"limits of a worker process: {name} must be positive, got {value}")


def as_function(name: str, judge: Callable[..., object]) -> Function:
    """A reward's method in the form sent to workers: with the whole reward, so that it has the same options there.

    Raises:
        UserError: it cannot be pickled.
    """
    try:
        return Function(name, pickle.dumps(judge))
    except UNPICKLABLE as error:
        raise UserError(
            f"rewards: {name} cannot be sent to a worker process ({first_line(error)}): define it at the top "
            "level of a module, without open files or nested functions, or leave out isolate"
        ) from error


def run_isolated(function: Function, pairs: Sequence[Pair], isolation: Isolation) -> list[Outcome]:
    """The results of `function` (`Reward.judge_alone`) for each pair, or how its worker failed.

    Raises:
        UserError: a sample cannot be pickled, or the reward cannot be loaded.
    """
    for sample in {id(sample): sample for _, sample in pairs}.values():
        try:
            pickle.dumps(sample)
        except UNPICKLABLE as error:
            raise UserError(
                f"{sample.source or sample.id}: the row cannot be sent to the worker process of {function.name} "
                f"({first_line(error)}): yield rows of plain values, or leave out isolate"
            ) from error
    with Waiting(function.name, [sample.id for _, sample in pairs]) as waiting:
        return shared_pool().run(function, pairs, waiting=waiting, **asdict(isolation))
