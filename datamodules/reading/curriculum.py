"""The online curriculum: prompts that the model nearly always or nearly never answers are retired for some epochs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from lit_rlvr.common.arguments import check_within, checks_arguments
from lit_rlvr.errors import UserError
from lit_rlvr.rewards.base import reaches

Successes = Mapping[str, tuple[int, int]]
"""Sample id -> correct completions of an iteration, and those that count in accuracies."""


@checks_arguments("data.curriculum")
@dataclass(frozen=True)
class Curriculum:
    """An online curriculum, which retires prompts that are too easy or too hard.

    A prompt is retired while its running success, the share of right completions, is outside a band.

    Args:
        band: the lowest and the highest success of the prompts to train on.
        epochs: how many epochs of its set a retired prompt is left out, after the one in which the iteration that
            retired it ends; then it comes back, and its estimate begins anew.
        memory: weight of the earlier estimate when a prompt inside the band is answered again, from 0 to 1; the newest
            share has the other part.
    """

    band: tuple[float, float] = (0.2, 0.8)
    epochs: int = 2
    memory: float = 0.5

    def __post_init__(self) -> None:
        low, high = self.band
        if not 0 <= low <= high <= 1:
            raise UserError(f"data.curriculum.band: [{low}, {high}] must be two shares from 0 to 1, the lowest first")
        check_within("[1, 100]", "data.curriculum", epochs=self.epochs)
        check_within("[0, 1)", "data.curriculum", memory=self.memory)


class RunningSuccess:
    """The running success of each prompt that was answered, by which prompts are retired.

    It changes only between iterations, by counts of all ranks, so that every rank draws the same prompts.

    Args:
        curriculum: the band, and for how long prompts are retired.

    Attributes:
        known: sample id -> the share of right completions, and the epoch of its set in which the prompt was answered.
    """

    def __init__(self, curriculum: Curriculum) -> None:
        self.curriculum = curriculum
        self.known: dict[str, tuple[float, int]] = {}

    def is_retired(self, sample_id: str, epoch: int) -> bool:
        """Return whether a prompt is left out of an epoch of its set."""
        share, answered = self.known.get(sample_id, (None, 0))
        return share is not None and not self._fits(share) and epoch <= answered + self.curriculum.epochs

    def add(self, successes: Successes, epoch_of: Callable[[str], int]) -> None:
        """Add the completions of an iteration.

        Args:
            successes: sample id -> its right completions, and those that count in accuracies.
            epoch_of: returns the current epoch of a prompt's set.
        """
        for sample_id, (correct, counted) in successes.items():
            if counted:
                share = correct / counted
                memory = self.curriculum.memory
                before = self.known.get(sample_id, (share, 0))[0]
                if self._fits(before):
                    share = memory * before + (1 - memory) * share
                self.known[sample_id] = share, epoch_of(sample_id)

    def _fits(self, share: float) -> bool:
        low, high = self.curriculum.band
        return reaches(share, low) and reaches(high, share)
