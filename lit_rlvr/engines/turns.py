"""How completions go on, turn after turn, whatever engine generates them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from lit_rlvr.common.seeds import derive_seed
from lit_rlvr.errors import UserError
from lit_rlvr.media import Pixels
from lit_rlvr.sampling import Sampling
from lit_rlvr.speech.thoughts import raw_text, read_text, split_thoughts
from lit_rlvr.types import Completion, Prompt


@dataclass(frozen=True)
class Continuation:
    """The next turn of a completion.

    Args:
        token_ids: the tokens of the observation, to append.
        max_tokens: the longest next turn, at least 1.
        pixels: the images of the placeholders among these tokens.
    """

    token_ids: tuple[int, ...]
    max_tokens: int
    pixels: Pixels | None = None


OnGroupDone = Callable[[int, list[Completion]], None]
"""Called with a prompt's index and its completions."""

Answer = tuple[int, int, Continuation | Completion]
"""Prompt p, number g, and how completion g of prompt p goes on, or the whole completion if it is over."""


class Turns:
    """Decides how a completion continues after each turn; this base class ends it after the first.

    An engine calls `begin`, then `stopped` for each turn and `answers` until every completion is over. A `Row` keeps
    what it needs in between.
    """

    def __init__(self) -> None:
        self._over: list[Answer] = []

    def begin(self, prompts: Sequence[Prompt], sampling: Sampling, seeds: Sequence[Sequence[int]]) -> None:
        """Forget the previous batch and begin a new one; the arguments are those of `RolloutEngine.generate`."""
        self._over = []

    def opening(self, p: int, g: int) -> Continuation | None:
        """Return what completion g of prompt p begins with, if it is not the prompt alone; called after `begin`."""
        return None

    @property
    def opened(self) -> str:
        """The beginning of the text of every turn but the first that the engine is given, such as `<think>`."""
        return ""

    def stopped(self, p: int, g: int, turn: Completion) -> None:
        """Take note that completion g of prompt p stopped; `turn` holds the tokens sampled since it was continued."""
        self._over.append((p, g, turn))

    @property
    def waiting(self) -> int:
        """The number of completions that stopped and have no answer yet."""
        return len(self._over)

    def answers(self, least: int) -> list[Answer]:
        """Return the answers that are ready, after waiting for at least `least` of them (at most `waiting`)."""
        over = self._over
        self._over = []
        return over


class Row:
    """Completion g of prompt p while an engine generates it.

    Args:
        p: the index of the prompt.
        g: the index of the completion in its group.
        prompt: the prompt.
        seed: of the first turn.
        limit: the longest first turn, in tokens.

    Attributes:
        tokens: of the current turn.
        logprobs: of these tokens.
        limit: the longest that the current turn may become.
        turn: its number, from 0.
        begun: tokens before them that the model sampled, where the current turn goes on without an observation.
        whole: the completion, once it is over.
    """

    def __init__(self, p: int, g: int, prompt: Prompt, seed: int, limit: int) -> None:
        self.p = p
        self.g = g
        self.limit = limit
        self.turn = 0
        self.tokens: list[int] = []
        self.begun: list[int] = []
        self.logprobs: list[float] = []
        self.whole: Completion | None = None
        self.prompt = prompt
        self._seed = seed
        self._before: list[int] = []  # earlier turns, and the observations after them
        self._pixels: list[Pixels | None] = [prompt.pixels]

    @property
    def seed(self) -> int:
        """The seed of the current turn."""
        if self.turn:
            return derive_seed(self._seed, "turn", self.turn)
        return self._seed

    @property
    def start(self) -> Prompt:
        """The prompt of the current turn: everything before it."""
        if not self._before:
            return self.prompt
        return Prompt(self.prompt.sample, [*self.prompt.token_ids, *self._before], Pixels.joined(self._pixels))

    def open(self, turns: Turns) -> None:
        """Begin the first turn with what `turns` lets it begin with, if that is not the prompt alone."""
        opening = turns.opening(self.p, self.g)
        if opening is not None:
            self.continue_with(opening)

    def next_turn(self, how: Continuation) -> None:
        """Begin the next turn."""
        self.turn += 1
        self.continue_with(how)

    def continue_with(self, how: Continuation) -> None:
        """Append an observation, after which the current turn begins."""
        self.begun = [] if how.token_ids else self.begun + self.tokens
        self._before += [*self.tokens, *how.token_ids]
        self._pixels.append(how.pixels)
        self.tokens = []
        self.logprobs = []
        self.limit = how.max_tokens

    def get(self) -> Completion:
        """Return the completion, which is over."""
        assert self.whole is not None, "the engine left a completion unfinished"
        return self.whole


_R = TypeVar("_R", bound=Row)


def finished_groups(groups: Sequence[Sequence[Row]]) -> list[list[Completion]]:
    """Return the completions by prompt and number; all are over."""
    finished = []
    for group in groups:
        finished.append([row.get() for row in group])
    return finished


def next_turns(
    groups: Sequence[Sequence[_R]], turns: Turns, min_answers: int, done: OnGroupDone | None
) -> list[tuple[_R, Continuation]]:
    """Return the rows that go on, with how, and keep the completions that are over.

    Args:
        groups: the rows by prompt and number.
        turns: says how they go on.
        min_answers: how many answers to wait for.
        done: called with each group that is complete, as `RolloutEngine.generate` says.
    """
    going = []
    for p, g, answer in turns.answers(min_answers):
        row = groups[p][g]
        if isinstance(answer, Continuation):
            row.next_turn(answer)
            going.append((row, answer))
            continue
        row.whole = answer
        if done is not None and all(other.whole for other in groups[p]):
            done(p, [other.get() for other in groups[p]])
    return going


def ends_with_stop(tokenizer: Any, row: Row, stop: Sequence[str]) -> bool:
    """Return whether the last token of a row's turn completes one of the stop texts, which none has completed before.

    Special tokens count as their texts.
    """
    if not stop:
        return False
    longest = max(len(text.encode()) for text in stop)  # a token has at least one byte
    tail = tokenizer.decode([*row.begun[-longest:], *row.tokens[-longest:]][-longest:], skip_special_tokens=False)
    return any(text in tail for text in stop)


def read_completion(tokenizer: Any, token_ids: Sequence[int], logprobs: Sequence[float], stopped: bool) -> Completion:
    """Return a turn with its text decoded.

    Args:
        tokenizer: decodes the tokens.
        token_ids: the sampled tokens.
        logprobs: of these tokens.
        stopped: False = it reached its maximum length.
    """
    text = read_text(tokenizer, token_ids)
    raw = raw_text(tokenizer, token_ids, stopped)
    return Completion(
        text, tuple(token_ids), "stop" if stopped else "length", tuple(logprobs), raw="" if raw == text else raw
    )


class ThoughtBudget(Turns):
    """Closes thoughts that have not ended after `sampling.max_thought_tokens` of a turn, or ends the turn there.

    With `at_budget: close`, the mark that ends thoughts is written, not sampled, and the model goes on behind it. With
    `at_budget: end`, the turn is over, and truncated. A turn without thoughts at that place goes on as it is.

    Args:
        tokenizer: decodes tokens.
        limit: returns the longest completion of those asked for, after so many tokens.
        turns: decides how a completion continues after each whole turn.
    """

    def __init__(self, tokenizer: Any, limit: Callable[[int, int], int], turns: Turns) -> None:
        super().__init__()
        self._tokenizer = tokenizer
        self._longest = limit
        self._turns = turns
        self._rooms: dict[tuple[int, int], tuple[str, int]] = {}  # how the current turn begins, and its most tokens
        self._thoughts: dict[tuple[int, int], tuple[Completion, tuple[int, ...]]] = {}  # with the tokens written behind

    def begin(self, prompts: Sequence[Prompt], sampling: Sampling, seeds: Sequence[Sequence[int]]) -> None:
        super().begin(prompts, sampling, seeds)
        self._turns.begin(prompts, sampling, seeds)
        self._prompts = prompts
        self._sampling = sampling
        self._rooms = {}
        self._thoughts = {}

    def opening(self, p: int, g: int) -> Continuation:
        limit = self._longest(self._sampling.max_tokens, len(self._prompts[p].token_ids))
        return self._begun(p, g, self._turns.opening(p, g) or Continuation((), limit), self._prompts[p].prefill)

    def stopped(self, p: int, g: int, turn: Completion) -> None:
        if (p, g) in self._thoughts:
            turn = self._joined(*self._thoughts.pop((p, g)), turn)
        elif turn.truncated:
            opened, limit = self._rooms[p, g]
            written = self._closing(opened + (turn.raw or turn.text))
            room = limit - len(turn.token_ids) - len(written)
            ends = written and self._sampling.at_budget == "end"
            if room > 0 and not ends:
                self._thoughts[p, g] = turn, written
                self._over.append((p, g, Continuation(written, room)))
                return
        self._turns.stopped(p, g, turn)

    @property
    def waiting(self) -> int:
        return len(self._over) + self._turns.waiting

    def answers(self, least: int) -> list[Answer]:
        answers = super().answers(0)
        for p, g, answer in self._turns.answers(max(0, least - len(answers))):
            if isinstance(answer, Completion):
                answers.append((p, g, answer))
            else:
                answers.append((p, g, self._begun(p, g, answer, self._turns.opened)))
        return answers

    def _begun(self, p: int, g: int, how: Continuation, opened: str) -> Continuation:
        """Take note of a turn, and return its beginning, which is within the budget.

        Args:
            p: the index of the prompt.
            g: the index of the completion in its group.
            how: the completion goes on.
            opened: the text with which the turn begins.
        """
        self._rooms[p, g] = opened, how.max_tokens
        return replace(how, max_tokens=min(self._sampling.max_thought_tokens, how.max_tokens))

    def _closing(self, text: str) -> tuple[int, ...]:
        return closing_tokens(self._tokenizer, split_thoughts(text).closing)

    def _joined(self, thoughts: Completion, written: tuple[int, ...], turn: Completion) -> Completion:
        ids = (*thoughts.token_ids, *written, *turn.token_ids)
        logprobs = (*thoughts.logprobs, *(0.0,) * len(written), *turn.logprobs)
        sampled = (True,) * len(thoughts.token_ids), (False,) * len(written), (True,) * len(turn.token_ids)
        return replace(
            read_completion(self._tokenizer, ids, logprobs, not turn.truncated),
            sampled=sum(sampled, ()) if written else (),
            labels=thoughts.labels + turn.labels,
            stale_cache=thoughts.stale_cache + turn.stale_cache,
            routes=turn.routes,
        )


def closing_tokens(tokenizer: Any, mark: str) -> tuple[int, ...]:
    """Return the tokens that end thoughts with a mark, written as chat templates write it; none without a mark."""
    if mark.startswith("</"):
        text = f"\n{mark}\n\n"
    else:
        text = mark
    if mark:
        return tuple(tokenizer(text, add_special_tokens=False).input_ids)
    return ()


def check_room_for_answer(sampling: Sampling, tokenizer: Any, opening: str, option: str) -> None:
    """Refuse a budget of thoughts that leaves no room for the mark that ends them and a token of the answer.

    Args:
        sampling: the settings.
        tokenizer: the model's.
        opening: the text with which answers begin in the prompt; it tells the marks.
        option: the option of the settings, for the message.

    Raises:
        UserError: there is no room.
    """
    if not sampling.max_thought_tokens or sampling.at_budget == "end":
        return
    mark = split_thoughts(opening).closing or "</think>"
    most = sampling.max_tokens - len(closing_tokens(tokenizer, mark)) - 1
    if sampling.max_thought_tokens > most:
        raise UserError(
            f"{option}.max_thought_tokens: {sampling.max_thought_tokens} of max_tokens={sampling.max_tokens} leaves no "
            f"room for {mark!r} and an answer; give at most {max(most, 0)}, or raise max_tokens"
        )


def within_budget(sampling: Sampling, tokenizer: Any, limit: Callable[[int, int], int], turns: Turns | None) -> Turns:
    """Return how completions go on, with the budget of thoughts if `sampling` has one.

    Args:
        sampling: of the completions.
        tokenizer: see `ThoughtBudget`.
        limit: see `ThoughtBudget`.
        turns: None = without an environment.
    """
    turns = turns or Turns()
    if sampling.max_thought_tokens:
        return ThoughtBudget(tokenizer, limit, turns)
    return turns
