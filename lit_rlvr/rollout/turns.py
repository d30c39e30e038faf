"""What follows when a completion stops: nothing, or with an environment its answer and another turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lit_rlvr.seeds import derive_seed
from lit_rlvr.types import Completion, Prompt, Sampling


@dataclass(frozen=True)
class Continuation:
    """How a completion goes on.

    Args:
        token_ids: the tokens of the observation, to append.
        max_tokens: the longest next turn, at least 1.
    """

    token_ids: tuple[int, ...]
    max_tokens: int


Answer = tuple[int, int, Continuation | Completion]
"""Prompt p, number g, and how completion g of prompt p goes on, or the whole completion if it is over."""


class Turns:
    """Takes the turns of completions from an engine and says what follows: here nothing, so each is one turn.

    An engine calls `begin`, then `stopped` for each turn and `answers` until every completion is over. It appends the
    turn's tokens and those of the `Continuation`, and samples on; the seed of a later turn is `turn_seed`.
    """

    def __init__(self) -> None:
        self._over: list[Answer] = []

    def begin(self, prompts: Sequence[Prompt], sampling: Sampling, seeds: Sequence[Sequence[int]]) -> None:
        """Start over with completions of these prompts, whose arguments are those of `RolloutEngine.generate`."""
        self._over = []

    def stopped(self, p: int, g: int, turn: Completion) -> None:
        """Completion g of prompt p stopped: `turn` holds the tokens sampled since it began or was continued."""
        self._over.append((p, g, turn))

    @property
    def waiting(self) -> int:
        """How many completions stopped and have no answer yet."""
        return len(self._over)

    def answers(self, least: int) -> list[Answer]:
        """The answers that are ready, after waiting for at least `least` of them (at most `waiting`)."""
        over, self._over = self._over, []
        return over


def turn_seed(seed: int, turn: int) -> int:
    """The seed of turn number `turn`, counted from 0, of a completion."""
    return derive_seed(seed, "turn", turn) if turn else seed
