"""Episodes: between the turns of a completion its environment answers, and the answer's tokens are appended."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lit_rlvr.distributed.collectives import all_sum
from lit_rlvr.engines.turns import Answer, Continuation, Turns
from lit_rlvr.environments.agent import Agent
from lit_rlvr.environments.base import Environment, Opening
from lit_rlvr.environments.episode import EpisodeReply, EpisodeWorkers
from lit_rlvr.errors import UserError
from lit_rlvr.media import Pixels
from lit_rlvr.rewards.forms import as_messages
from lit_rlvr.sampling import Sampling
from lit_rlvr.speech.calls import find_calls
from lit_rlvr.types import Completion, Prompt, RewardResult, Rollout, Sample, Turn
from lit_rlvr.workers.process import Outcome

if TYPE_CHECKING:
    from lit_rlvr.datamodules import PromptDataModule
    from lit_rlvr.datamodules.reading.between_turns import BetweenTurns


@dataclass
class _EpisodeState:
    """Completion g of prompt p, and its episode so far.

    limit: the most tokens, observations included. is_rewarded: its last call ends the
    episode. cut: its last turn was not finished, so the environment never sees it. state: that of its next turn, see
    `Turn`.
    """

    p: int
    g: int
    seed: int
    limit: int
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    sampled: list[bool] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    stale_cache: list[bool] = field(default_factory=list)
    routes: torch.Tensor | None = None  # of all inputs so far
    turns: list[Turn] = field(default_factory=list)
    pixels: list[Pixels | None] = field(default_factory=list)
    is_rewarded: bool = False
    cut: bool = False
    state: str = ""

    def observe(self, tokens: Sequence[int]) -> None:
        """Append tokens that are not sampled."""
        self.tokens += tokens
        self.logprobs += [0.0] * len(tokens)
        self.sampled += [False] * len(tokens)


class Episodes(Turns):
    """Plays each completion's episode in an environment of its own.

    Args:
        environment: every completion gets a copy, in a worker process.
        between: makes tokens of observations; it belongs to the prompts' DataModule.
        context: the longest sequence, prompt and completion together; 0 = no limit.
    """

    def __init__(self, environment: Environment, between: BetweenTurns, context: int = 0) -> None:
        super().__init__()
        self._environment = environment
        self._context = context
        self.between = between
        self._workers = EpisodeWorkers(environment)
        self._waiting = 0
        self._prompts: Sequence[Prompt] = ()
        self._sampling = Sampling()
        self._rows: dict[int, _EpisodeState] = {}
        self._numbers: dict[tuple[int, int], int] = {}
        self._openings: dict[tuple[int, int], tuple[Outcome, tuple[int, ...]]] = {}
        self._opened_batch: tuple[list[str], list[list[int]]] = [], []  # the sample ids and seeds that these are of
        self._prompt_openings: dict[str, Opening] = {}  # sample id -> what its prompt ends with
        self._openings_taken: set[tuple[int, int]] = set()  # openings that the engine took
        self.seconds = 0.0  # waited for environments, so far

    def open(
        self,
        prompts: Sequence[Prompt],
        seeds: Sequence[Sequence[int]],
        again: Callable[[Sample], Prompt],
        max_tokens: int,
    ) -> list[Prompt]:
        """Return the prompts with what the environment says first; the next call of `begin` continues these episodes.

        If it says the same to all completions of a prompt, their prompt has it at its end. Otherwise the prompt ends
        before it, and each completion begins with the tokens of its own, which are observed, not sampled. The prompts'
        samples stay as they are in the data. Where `reset` fails, so will that episode.

        Args:
            prompts: P prompts.
            seeds: those of the completions.
            again: makes a prompt of a changed sample.
            max_tokens: longest prompt in tokens.

        Raises:
            UserError: a prompt becomes too long, or completions of a prompt would begin with different images.
        """
        self._openings = {}
        self._prompt_openings = {}
        if not self._environment.begins:
            return list(prompts)
        outcomes = self._reset(prompts, seeds)
        opened = []
        for p, prompt in enumerate(prompts):
            row = {}
            for g in range(len(seeds[p])):
                row[g] = outcomes[p, g]
            texts = {}
            for g, outcome in row.items():
                if outcome.status == "ok":
                    texts[g] = outcome.value.begun
            different = []
            for k, text in enumerate([*texts.values()]):
                if text not in [*texts.values()][:k]:
                    different.append(text)
            starts = []
            for text in different:
                starts.append(replace(again(with_opening(prompt.sample, text)), sample=prompt.sample))
            longer = starts[0] if starts else prompt
            for start in starts:
                if len(start.token_ids) > max_tokens:
                    raise UserError(
                        f"{prompt.sample.source or prompt.sample.id}: with what the environment says first, the prompt "
                        f"has {len(start.token_ids)} tokens; raise "
                        f"data.init_args.reading.max_prompt_tokens={max_tokens}"
                    )
            if len(starts) > 1:
                longer = self._common_start(starts)
                tails = {}
                for g, text in texts.items():
                    tails[g] = starts[different.index(text)].token_ids[len(longer.token_ids) :]
                for g, outcome in row.items():
                    self._openings[p, g] = outcome, tuple(tails.get(g, starts[0].token_ids[len(longer.token_ids) :]))
            elif starts:
                self._prompt_openings[prompt.sample.id] = different[0]
            opened.append(longer)
        self._opened_batch = [prompt.sample.id for prompt in prompts], [list(row_seeds) for row_seeds in seeds]
        return opened

    def _common_start(self, prompts: Sequence[Prompt]) -> Prompt:
        """Return a prompt of the tokens that all these begin with, but at least one less than the shortest."""
        if any(prompt.pixels is not None for prompt in prompts):
            raise UserError(
                f"rollout.environment: reset of {self._environment.title} says different things to completions of "
                f"{prompts[0].sample.id}, which is supported for texts only; let it depend on the sample alone"
            )
        ids = [prompt.token_ids for prompt in prompts]
        length = next((k for k, tokens in enumerate(zip(*ids, strict=False)) if len({*tokens}) > 1), min(map(len, ids)))
        return replace(prompts[0], token_ids=ids[0][: min(length, min(map(len, ids)) - 1)])

    def _reset(self, prompts: Sequence[Prompt], seeds: Sequence[Sequence[int]]) -> dict[tuple[int, int], Outcome]:
        """Begin the episodes of all completions; return how that went."""
        self._workers.forget()
        places = []
        for p in range(len(prompts)):
            for g in range(len(seeds[p])):
                places.append((p, g))
        for number, (p, g) in enumerate(places):
            self._workers.call(number, seeds[p][g], prompts[p].sample)
        outcomes = dict(self._workers.outcomes(len(places)))
        by_place = {}
        for number, place in enumerate(places):
            by_place[place] = outcomes[number]
        return by_place

    def begin(self, prompts: Sequence[Prompt], sampling: Sampling, seeds: Sequence[Sequence[int]]) -> None:
        if ([prompt.sample.id for prompt in prompts], [list(row_seeds) for row_seeds in seeds]) != self._opened_batch:
            self._workers.forget()
            if self._openings:
                raise UserError(
                    f"rollout.environment: reset of {self._environment.title} says different things to completions of "
                    "a prompt, so a batch cannot be generated again; let it depend on the sample alone"
                )
        self._opened_batch = [], []
        self._waiting = 0
        self._prompts = prompts
        self._sampling = sampling
        if sampling.max_turns > 1 and sampling.max_observation_tokens < (min_tokens := self.between.min_tokens):
            raise UserError(
                f"sampling.max_observation_tokens: {sampling.max_observation_tokens} is too few, because the chat "
                f"template around an observation takes up to {min_tokens} tokens"
            )
        self._rows = {}
        self._numbers = {}
        self._openings_taken = set()
        for p, prompt in enumerate(prompts):
            for g, seed in enumerate(seeds[p]):
                number = self._numbers[p, g] = len(self._rows)
                _, token_ids = self._openings.get((p, g), (None, ()))
                if self._context:
                    room = self._context - len(prompt.token_ids)
                else:
                    room = sampling.max_completion_tokens + len(token_ids)
                row = self._rows[number] = _EpisodeState(
                    p, g, seed, min(sampling.max_completion_tokens + len(token_ids), room)
                )
                row.observe(token_ids)
                if token_ids:
                    row.state = _digest(repr(token_ids), None)

    def opening(self, p: int, g: int) -> Continuation | None:
        if (p, g) not in self._openings:
            return None
        self._openings_taken.add((p, g))
        row, (_, token_ids) = self._rows[self._numbers[p, g]], self._openings[p, g]
        return Continuation(token_ids, min(self._sampling.max_tokens, row.limit - len(token_ids)))

    def stopped(self, p: int, g: int, turn: Completion) -> None:
        if (p, g) in self._openings and (p, g) not in self._openings_taken:
            raise UserError(
                f"rollout.engine: it does not support an environment ({self._environment.title}) whose reset says "
                "different things to completions of a prompt"
            )
        number = self._numbers[p, g]
        row = self._rows[number]
        start = len(row.tokens)
        row.tokens += turn.token_ids
        row.logprobs += turn.logprobs or [0.0] * len(turn.token_ids)
        row.sampled += turn.from_model
        row.labels += turn.labels
        row.stale_cache += turn.stale_cache
        row.routes = turn.routes
        raw = self.between.opening + (turn.raw or turn.text)
        row.turns.append(Turn(turn.text, raw=raw, span=(start, len(row.tokens)), state=row.state))
        row.cut = turn.truncated
        self._waiting += 1
        self._call(number, row, judge=row.cut or len(row.turns) == self._sampling.max_turns)

    @property
    def opened(self) -> str:
        return self.between.opening

    @property
    def waiting(self) -> int:
        return self._waiting

    def answers(self, least: int) -> list[Answer]:
        started = time.perf_counter()
        answered: list[Answer] = []
        while True:
            for number, outcome in self._workers.outcomes(max(0, least - len(answered))):
                answer = self._answer(number, self._rows[number], outcome)
                if answer is not None:
                    answered.append((self._rows[number].p, self._rows[number].g, answer))
            if len(answered) >= least:
                break
        self._waiting -= len(answered)
        self.seconds += time.perf_counter() - started
        return answered

    def close(self) -> None:
        """End the workers; they start again when an episode begins."""
        self._workers.close()

    def _call(self, number: int, row: _EpisodeState, judge: bool) -> None:
        row.is_rewarded = judge
        texts = tuple(Turn(turn.text, raw=turn.raw) for turn in row.turns[: -1 if row.cut else None])
        self._workers.call(number, row.seed, self._prompts[row.p].sample, texts, judge)

    def _answer(self, number: int, row: _EpisodeState, outcome: Outcome) -> Continuation | Completion | None:
        """Return how a completion goes on; None if its environment has to be asked once more."""
        sample = self._prompts[row.p].sample
        opened, _ = self._openings.get((row.p, row.g), (outcome, ()))
        for failed in (opened, outcome):
            if failed.status != "ok":
                failure = RewardResult(0.0, None, failed.status, f"environment: {failed.detail}")
                return self._whole(row, not row.cut, failure)
        reply: EpisodeReply = outcome.value
        begun = self._prompt_openings.get(sample.id, reply.begun)
        if (row.p, row.g) in self._openings:
            begun = opened.value.begun
        if reply.begun != begun:
            failure = RewardResult(0.0, None, "error", "environment: reset answered otherwise when it was called again")
            return self._whole(row, not row.cut, failure)
        observation = reply.observation
        if observation is not None and not row.cut:
            row.turns[-1] = replace(
                row.turns[-1], calls=observation.calls, errors=observation.errors, reward=observation.reward
            )
        done = observation is not None and observation.done
        if done or row.is_rewarded:
            return replace(self._whole(row, done and not row.cut, reply.outcome), reward_results=reply.reward_results)
        assert observation is not None, "a turn has an answer"
        max_tokens = self._sampling.max_observation_tokens
        shaped = self.between.tokens(
            observation.text, row.tokens[-1], max_tokens, observation.images, observation.results
        )
        tokens = shaped.token_ids
        room = row.limit - len(row.tokens) - len(tokens)
        if room < 1:  # no space for another turn
            self._call(number, row, judge=True)
            return None
        images = 0 if shaped.pixels is None else len(shaped.pixels.images)
        row.turns[-1] = replace(row.turns[-1], observation=shaped.text, images=images)
        row.state = _digest(shaped.text, shaped.pixels)
        row.pixels.append(shaped.pixels)
        row.observe(tokens)
        return Continuation(tokens, min(self._sampling.max_tokens, room), shaped.pixels)

    def _whole(self, row: _EpisodeState, ended: bool, outcome: RewardResult | None) -> Completion:
        return Completion(
            row.turns[-1].text,
            tuple(row.tokens),
            "stop" if ended else "length",
            tuple(row.logprobs),
            tuple(row.sampled),
            tuple(row.turns),
            outcome,
            Pixels.joined(row.pixels),
            labels=tuple(row.labels),
            stale_cache=tuple(row.stale_cache),
            routes=row.routes,
            raw=row.turns[-1].raw.removeprefix(self.between.opening),
        )


def _digest(text: str, pixels: Pixels | None) -> str:
    """Return the digest of an observation: its text and its images, as the model sees them."""
    digest = hashlib.sha256(text.encode())
    if pixels is not None:
        for image in pixels.images:
            digest.update(image.tobytes())
    return digest.hexdigest()[:16]


def between_turns(data: PromptDataModule, eos_token_ids: tuple[int, ...], environment: Environment) -> BetweenTurns:
    """Return how the data's model sees the environment's observations.

    Raises:
        UserError: its chat template does not allow several turns.
    """
    from lit_rlvr.datamodules.reading.between_turns import BetweenTurns  # imports the data sets' packages

    if isinstance(environment, Agent):
        raise UserError("rollout.environment: an Agent plays its episodes itself, so the data cannot give their turns")
    between = BetweenTurns(data.chat, data.tokenizer, eos_token_ids, environment.role, lambda: data.image_processor)
    between.choose_role()
    check_tool_calls(between)
    return between


def check_tool_calls(between: BetweenTurns) -> None:
    """Refuse a chat template whose form of tool calls cannot be read."""
    between.check_calls(lambda text: [(call.name, call.named) for call in find_calls(text)])


def begins(environment: Environment | None) -> bool:
    """Return whether the environment may say something before the first turn."""
    return environment is not None and environment.begins


def added_images(environment: Environment | None, max_turns: int) -> int:
    """Return the most images that are added to a prompt: one after each turn but the last, and before an agent's first.

    Args:
        environment: the environment; None = nothing adds any.
        max_turns: the most turns.
    """
    if environment is None:
        return 0
    if isinstance(environment, Agent):
        return max_turns
    return max_turns - 1


def check_turns(option: str, sampling: Sampling, environment: Environment | None) -> None:
    """Refuse several turns without an environment, and an environment that needs more than one.

    Args:
        option: the name of `max_turns` for the user.
        sampling: the settings of sampling.
        environment: answers the model between its turns; None = nothing does.
    """
    if environment is None and sampling.max_turns > 1:
        raise UserError(f"{option}: {sampling.max_turns} turns need an environment that answers them")
    if environment is not None and environment.needs_turns and sampling.max_turns == 1:
        raise UserError(f"{option}: {environment.title} answers between turns, so allow at least 2")


def turn_metrics(rollout: Rollout) -> dict[str, float]:
    """Return means over all ranks' completions: turns, tool calls, and failed tool calls.

    Collective: call it on every rank.
    """
    episodes = []
    for group in rollout.completions:
        for completion in group:
            episodes.append(completion.turns)
    sums = {
        "rollout/turns": sum(len(turns) for turns in episodes),
        "rollout/tool_calls": sum(turn.calls for turns in episodes for turn in turns),
        "rollout/tool_errors": sum(turn.errors for turns in episodes for turn in turns),
        "size": len(episodes),
    }
    total = dict(zip(sums, all_sum(torch.tensor([*sums.values()], dtype=torch.float64)).tolist(), strict=True))
    size = total.pop("size")
    metrics = {}
    for name, value in total.items():
        metrics[name] = value / max(size, 1.0)
    return metrics


def _as_placeholder(block: dict[str, Any]) -> dict[str, Any]:
    """Return a content block of a message, without its image if it has one."""
    if block["type"] == "image":
        return {"type": "image"}
    return block


def with_opening(sample: Sample, begun: Opening) -> Sample:
    """Return the sample with what an environment says first in its prompt.

    A text or content blocks extend the user's last message; messages follow the prompt, or take the place of an empty
    one.
    """
    if begun is None or begun == "":
        return sample
    prompt = sample.prompt
    if isinstance(begun, list) and "role" in begun[0]:
        before = as_messages(prompt)
        return replace(sample, prompt=[*(m for m in before if m["content"] or m["role"] != "user"), *begun])
    if isinstance(begun, str) and isinstance(prompt, str):
        return replace(sample, prompt=prompt + begun)
    messages = list(as_messages(prompt))
    last = max(i for i, message in enumerate(messages) if message["role"] == "user")
    content = messages[last]["content"]
    if isinstance(begun, str) and isinstance(content, str):
        return replace(
            sample, prompt=[*messages[:last], {**messages[last], "content": content + begun}, *messages[last + 1 :]]
        )
    if not isinstance(content, str):
        parts = list(content)
    elif content:
        parts = [{"type": "text", "text": content}]
    else:
        parts = []
    if isinstance(begun, str):
        blocks = [{"type": "text", "text": begun}]
    else:
        blocks = begun
    images = [block["image"] for block in blocks if block["type"] == "image"]
    placeholders = [_as_placeholder(block) for block in blocks]
    changed = replace(
        sample, prompt=[*messages[:last], {**messages[last], "content": [*parts, *placeholders]}, *messages[last + 1 :]]
    )
    if not images:
        return changed
    from lit_rlvr.datamodules.reading.images import ImageOptions, open_images  # imports the data sets' packages

    sources = getattr(sample.images, "sources", ())
    options = getattr(sample.images, "options", ImageOptions())
    return replace(changed, images=open_images([*sources, *images], Path(), options))
