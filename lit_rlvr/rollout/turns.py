"""What follows when a completion stops: nothing, or with an environment its answer and another turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lit_rlvr.seeds import derive_seed
from lit_rlvr.types import Completion, Pixels, Prompt, Sampling


@dataclass(frozen=True)
class Continuation:
    """How a completion goes on.

    Args:
        token_ids: the tokens of the observation, to append.
        max_tokens: the longest next turn, at least 1.
        pixels: the images of the placeholders among these tokens.
    """

    token_ids: tuple[int, ...]
    max_tokens: int
    pixels: Pixels | None = None


Answer = tuple[int, int, Continuation | Completion]
"""Prompt p, number g, and how completion g of prompt p goes on, or the whole completion if it is over."""


class Turns:
    """Takes the turns of completions from an engine and says what follows: here nothing, so each is one turn.

    An engine calls `begin`, then `stopped` for each turn and `answers` until every completion is over. A `Row` keeps
    what it needs in between.
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


class Row:
    """Completion g of prompt p while an engine generates it.

    Args:
        prompt: the prompt. seed: of the first turn. limit: the longest first turn, in tokens.

    Attributes:
        tokens, logprobs: of the current turn. limit: the longest that it may become. turn: its number, from 0.
        whole: the completion, once it is over.
    """

    def __init__(self, p: int, g: int, prompt: Prompt, seed: int, limit: int) -> None:
        self.p, self.g, self.limit, self.turn = p, g, limit, 0
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.whole: Completion | None = None
        self._prompt, self._seed = prompt, seed
        self._before: list[int] = []  # earlier turns, and the observations after them
        self._pixels: list[Pixels | None] = [prompt.pixels]

    @property
    def seed(self) -> int:
        """The seed of the current turn."""
        return derive_seed(self._seed, "turn", self.turn) if self.turn else self._seed

    @property
    def start(self) -> Prompt:
        """All that stands before the current turn."""
        if not self._before:
            return self._prompt
        ids = [*self._prompt.token_ids, *self._before]
        return Prompt(self._prompt.sample, ids, Pixels.joined(self._pixels))

    def go_on(self, how: Continuation) -> None:
        """Begin the next turn."""
        self._before += [*self.tokens, *how.token_ids]
        self._pixels.append(how.pixels)
        self.tokens, self.logprobs = [], []
        self.turn, self.limit = self.turn + 1, how.max_tokens

    def get(self) -> Completion:
        """The completion, which is over."""
        assert self.whole is not None, "the engine left a completion unfinished"
        return self.whole
