"""Episodes: between the turns of a completion its environment answers, and the answer's tokens are appended."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch

from lit_rlvr.distributed.collectives import all_sum
from lit_rlvr.environments.base import Environment
from lit_rlvr.environments.workers import EpisodeWorkers, Reply
from lit_rlvr.errors import UserError
from lit_rlvr.rollout.engines.base import Answer, Continuation, Turns
from lit_rlvr.types import Completion, Pixels, Prompt, RewardResult, Rollout, Sample, Sampling, Turn
from lit_rlvr.workers.process import Outcome

if TYPE_CHECKING:
    from lit_rlvr.datamodules import PromptDataModule
    from lit_rlvr.datamodules.reading.between_turns import BetweenTurns
    from lit_rlvr.policy.policy import Policy


@dataclass
class _Row:
    """Completion g of prompt p, and its episode so far.

    limit: the most tokens, observations included. judged: its last call ends the episode. cut: its last turn was not
    finished, so the environment never sees it.
    """

    p: int
    g: int
    seed: int
    limit: int
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    sampled: list[bool] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    pixels: list[Pixels | None] = field(default_factory=list)
    judged: bool = False
    cut: bool = False


class Episodes(Turns):
    """Plays each completion's episode in an environment of its own.

    Args:
        environment: every completion gets a copy, in a worker process.
        between: makes tokens of observations; it belongs to the prompts' DataModule.
        context: the longest sequence, prompt and completion together; 0 = no limit.
    """

    def __init__(self, environment: Environment, between: BetweenTurns, context: int = 0) -> None:
        super().__init__()
        self._environment, self._context = environment, context
        self.between = between
        self._workers = EpisodeWorkers(environment)
        self._waiting = 0
        self._prompts: Sequence[Prompt] = ()
        self._sampling = Sampling()
        self._rows: dict[int, _Row] = {}
        self._numbers: dict[tuple[int, int], int] = {}
        self._begun: dict[str, Outcome] = {}  # sample id -> how `reset` ended when its prompt was made
        self.seconds = 0.0  # waited for environments, so far

    def open(self, prompts: Sequence[Prompt], again: Callable[[Sample], Prompt], most: int) -> list[Prompt]:
        """Return the prompts with what the environment says at the beginning appended to the user's last message.

        Their samples stay as they are in the data. Where `reset` fails, so will the episodes of that prompt.

        Args:
            again: makes a prompt of a changed sample.
            most: longest prompt in tokens.

        Raises:
            UserError: a prompt becomes too long.
        """
        if not begins(self._environment):
            return list(prompts)
        self._workers.forget()
        for p, prompt in enumerate(prompts):
            self._workers.call(p, 0, prompt.sample)
        outcomes = dict(self._workers.outcomes(len(prompts)))
        opened = []
        for p, prompt in enumerate(prompts):
            self._begun[prompt.sample.id] = outcomes[p]
            text = outcomes[p].value.begun if outcomes[p].status == "ok" else None
            longer = prompt
            if text:
                changed = replace(prompt.sample, prompt=_appended(prompt.sample.prompt, text))
                longer = replace(again(changed), sample=prompt.sample)
            if len(longer.token_ids) > most:
                raise UserError(
                    f"{prompt.sample.source or prompt.sample.id}: with what the environment says first, the prompt has "
                    f"{len(longer.token_ids)} tokens; raise data.init_args.max_prompt_tokens={most}"
                )
            opened.append(longer)
        return opened

    def begin(self, prompts: Sequence[Prompt], sampling: Sampling, seeds: Sequence[Sequence[int]]) -> None:
        self._workers.forget()
        self._waiting = 0
        self._prompts, self._sampling = prompts, sampling
        if sampling.max_turns > 1 and sampling.max_observation_tokens < (least := self.between.min_tokens):
            raise UserError(
                f"sampling.max_observation_tokens: {sampling.max_observation_tokens} is too few, because the chat "
                f"template around an observation takes up to {least} tokens"
            )
        self._rows, self._numbers = {}, {}
        for p, prompt in enumerate(prompts):
            room = self._context - len(prompt.token_ids) if self._context else sampling.reach
            for g, seed in enumerate(seeds[p]):
                number = self._numbers[p, g] = len(self._rows)
                self._rows[number] = _Row(p, g, seed, min(sampling.reach, room))

    def stopped(self, p: int, g: int, turn: Completion) -> None:
        number = self._numbers[p, g]
        row = self._rows[number]
        row.tokens += turn.token_ids
        row.logprobs += turn.logprobs or [0.0] * len(turn.token_ids)
        row.sampled += [True] * len(turn.token_ids)
        row.turns.append(Turn(turn.text))
        row.cut = turn.truncated
        self._waiting += 1
        self._call(number, row, judge=row.cut or len(row.turns) == self._sampling.max_turns)

    @property
    def waiting(self) -> int:
        return self._waiting

    def answers(self, least: int) -> list[Answer]:
        started = time.perf_counter()
        found: list[Answer] = []
        while True:
            for number, outcome in self._workers.outcomes(max(0, least - len(found))):
                answer = self._answer(number, self._rows[number], outcome)
                if answer is not None:
                    found.append((self._rows[number].p, self._rows[number].g, answer))
            if len(found) >= least:
                break
        self._waiting -= len(found)
        self.seconds += time.perf_counter() - started
        return found

    def close(self) -> None:
        """End the workers; they start again when an episode begins."""
        self._workers.close()

    def _call(self, number: int, row: _Row, judge: bool) -> None:
        row.judged = judge
        seen = row.turns[:-1] if row.cut else row.turns
        texts = tuple(Turn(turn.text) for turn in seen)
        self._workers.call(number, row.seed, self._prompts[row.p].sample, texts, judge)

    def _answer(self, number: int, row: _Row, outcome: Outcome) -> Continuation | Completion | None:
        """Return how a completion goes on; None if its environment has to be asked once more."""
        sample = self._prompts[row.p].sample
        begun = self._begun.get(sample.id, outcome)
        for failed in (begun, outcome):
            if failed.status != "ok":
                said = RewardResult(0.0, None, failed.status, f"environment: {failed.detail}")
                return self._whole(row, not row.cut, said)
        reply: Reply = outcome.value
        if reply.begun != begun.value.begun:
            raise UserError(
                f"rollout.environment: reset of {type(self._environment).__name__} said different things to "
                f"completions of {sample.id}; they share their prompt, so it must depend on the sample alone"
            )
        seen = reply.observation
        if seen is not None and not row.cut:
            row.turns[-1] = replace(row.turns[-1], calls=seen.calls, errors=seen.errors)
        done = seen is not None and seen.done
        if done or row.judged:
            return self._whole(row, done and not row.cut, reply.outcome)
        assert seen is not None, "a turn has an answer"
        shown = self.between.tokens(seen.text, row.tokens[-1], self._sampling.max_observation_tokens, seen.images)
        tokens = shown.token_ids
        room = row.limit - len(row.tokens) - len(tokens)
        if room < 1:  # no space for another turn
            self._call(number, row, judge=True)
            return None
        images = 0 if shown.pixels is None else len(shown.pixels.images)
        row.turns[-1] = replace(row.turns[-1], observation=shown.text, images=images)
        row.pixels.append(shown.pixels)
        row.tokens += tokens
        row.logprobs += [0.0] * len(tokens)
        row.sampled += [False] * len(tokens)
        return Continuation(tokens, min(self._sampling.max_tokens, room), shown.pixels)

    @staticmethod
    def _whole(row: _Row, ended: bool, outcome: RewardResult | None) -> Completion:
        return Completion(
            row.turns[-1].text, tuple(row.tokens), "stop" if ended else "length", tuple(row.logprobs),
            tuple(row.sampled), tuple(row.turns), outcome, Pixels.joined(row.pixels),
        )  # fmt: skip


def between_turns(data: PromptDataModule, policy: Policy, environment: Environment) -> BetweenTurns:
    """Return how the data's model sees the environment's observations.

    Raises:
        UserError: its chat template does not allow several turns.
    """
    from lit_rlvr.datamodules.reading.between_turns import BetweenTurns  # imports the data sets' packages

    between = BetweenTurns(
        data.chat, data.tokenizer, policy.eos_token_ids, environment.role, lambda: data.image_processor
    )
    between.choose_role()
    return between


def begins(environment: Environment | None) -> bool:
    """Return whether the environment may say something before the first turn."""
    return environment is not None and type(environment).reset is not Environment.reset


def check_turns(option: str, sampling: Sampling, environment: Environment | None) -> None:
    """Refuse several turns without an environment, and an environment that needs more than one.

    Args:
        option: the name of `max_turns` for the user.
    """
    if environment is None and sampling.max_turns > 1:
        raise UserError(f"{option}: {sampling.max_turns} turns need an environment that answers them")
    if environment is not None and environment.needs_turns and sampling.max_turns == 1:
        raise UserError(f"{option}: {type(environment).__name__} answers between turns, so allow at least 2")


def turn_metrics(rollout: Rollout) -> dict[str, float]:
    """Return means over all ranks' completions: turns, tool calls, and failed tool calls. Collective."""
    episodes = [completion.turns for group in rollout.completions for completion in group]
    sums = {
        "rollout/turns": sum(len(turns) for turns in episodes),
        "rollout/tool_calls": sum(turn.calls for turns in episodes for turn in turns),
        "rollout/tool_errors": sum(turn.errors for turns in episodes for turn in turns),
        "size": len(episodes),
    }
    total = dict(zip(sums, all_sum(torch.tensor([*sums.values()], dtype=torch.float64)).tolist(), strict=True))
    size = total.pop("size")
    return {name: value / max(size, 1.0) for name, value in total.items()}


def _appended(prompt: str | list[dict[str, object]], text: str) -> str | list[dict[str, object]]:
    """Return a prompt with text at the end of the user's last message."""
    if isinstance(prompt, str):
        return prompt + text
    last = max(i for i, message in enumerate(prompt) if message["role"] == "user")
    content = prompt[last]["content"]
    more = content + text if isinstance(content, str) else [*content, {"type": "text", "text": text}]  # type: ignore[misc]
    return [*prompt[:last], {**prompt[last], "content": more}, *prompt[last + 1 :]]
