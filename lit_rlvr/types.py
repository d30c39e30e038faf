"""The data types of one training iteration, with the meaning of their shapes.

Shapes: P prompts, G completions per prompt (the group), B = P * G sequences (row p * G + g),
T completion positions, V vocabulary. Masks are bool, True = in the loss.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

from lit_rlvr.media import Coordinates, Pixels
from lit_rlvr.sampling import Sampling
from lit_rlvr.speech.calls import as_dicts, find_calls
from lit_rlvr.speech.thoughts import thoughts_in, without_thoughts

if TYPE_CHECKING:  # reward workers import this module; torch is too slow for them
    from torch import Tensor

FinishReason = Literal["stop", "length"]
Status = Literal["ok", "parse_fail", "timeout", "error", "unjudged"]
STATUSES: tuple[Status, ...] = get_args(Status)
TURN_REWARDS = "turns"
"""The name of the reward that sums the rewards of a completion's turns."""


@dataclass(frozen=True)
class Sample:
    """One row of a data set, as a DataModule yields it.

    Args:
        id: a name, unique within its set and the same in every run; seeds derive from it.
        prompt: the user's text, or a whole conversation as chat messages ({"role", "content"}).
        answer: the reference answer as text, which rewards interpret.
        images: files, bytes, PIL images, or a `Video` for each video, in the order of their `<image>` and `<video>`
            placeholders in the prompt; a DataModule turns them into a sequence that decodes each to RGB on indexing.
        row: the whole source row, for rewards that need more than the answer.
        category: a label for per-category tables ("" = none).
        source: "file:row", for error messages.
        options: the options of a multiple-choice question, in the order A, B, ...
        aliases: other reference answers, each as right as `answer`.
        closing_turns: the assistant's messages at the end of the row's conversation, which `prompt` lacks.
        answer_object: the reference answer as the data hold it, for rewards that read lists and dicts; None = `answer`.
        dataset: the name of the set that the row is of.
        rewards: the rewards that judge completions of this row -> their weights, None for a reward's own; None = all.
        conversation: the messages that the model is given, if they are others than `prompt`: with the system prompt and
            the template of `data.chat`. () = `prompt`.
        coordinates: how the model writes places in each image; () = without images, or before the model is known.
    """

    id: str
    prompt: str | list[dict[str, Any]]
    answer: str
    images: Sequence[Any] = ()
    row: Mapping[str, Any] = field(default_factory=dict)
    category: str = ""
    source: str = ""
    options: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    closing_turns: tuple[dict[str, Any], ...] = ()
    answer_object: Any = None
    dataset: str = ""
    rewards: Mapping[str, float | None] | None = None
    conversation: tuple[dict[str, Any], ...] = ()
    coordinates: tuple[Coordinates, ...] = ()

    @property
    def told(self) -> str | list[dict[str, Any]]:
        """What the model is told: the prompt, with the system prompt and the template around it."""
        return list(self.conversation) or self.prompt

    @property
    def label(self) -> Any:
        """The reference answer for a reward function: an object where the data hold one, else text."""
        if self.answer_object is None:
            return self.answer
        return self.answer_object

    @property
    def references(self) -> tuple[str, ...]:
        """The reference answers: one of them suffices."""
        return (self.answer, *self.aliases)


@dataclass(frozen=True)
class Turn:
    """One turn of an episode: the model's text and the environment's answer.

    Args:
        text: the model's text, decoded without special tokens.
        observation: the answer that the model sees, without the chat template around it; None after the last turn.
        calls, errors: numbers of tool calls in the turn, and of those that failed.
        images: number of images in the observation.
        raw: the model's text with its special tokens, of which some models make tool calls; "" where it is unknown.
        reward: the reward of this turn alone; None = it has none.
        span: the positions of its tokens in the completion, from the first one up to the one after the last; (0, 0) =
            the turn is a run of sampled tokens.
        state: a digest of what the environment showed before the turn; "" = nothing but the prompt.
        observed: the positions of what an agent added before the turn, from the first one up to the one after the last;
            () = what an environment answered stands between two turns.
    """

    text: str
    observation: str | None = None
    calls: int = 0
    errors: int = 0
    images: int = 0
    raw: str = field(default="", repr=False, compare=False)
    reward: float | None = None
    span: tuple[int, int] = field(default=(0, 0), repr=False, compare=False)
    state: str = field(default="", repr=False, compare=False)
    observed: tuple[int, ...] = field(default=(), repr=False, compare=False)

    def recorded(self) -> dict[str, Any]:
        """Return the turn as the files of a run hold it."""
        names = ["text", "observation", "calls", "errors", "images"]
        if self.reward is not None:
            names.append("reward")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class ToolResult:
    """The result of a tool call, which the model sees as one tool message.

    Args:
        name: the tool.
        text: the text of the message.
        images: PIL images, shown before the text.
    """

    name: str
    text: str
    images: tuple[Any, ...] = ()


@dataclass(frozen=True)
class UntrainedMessage:
    """A message that the model sampled for an agent and that training leaves out.

    Args:
        reason: `auxiliary`, as the agent marked it, or `lost`, because the agent did not wait for it.
        tokens: number of its tokens.
    """

    reason: Literal["auxiliary", "lost"]
    tokens: int


@dataclass(frozen=True)
class Completion:
    """One sampled answer, or with an environment one whole episode: all its turns and observations in one row.

    Args:
        text: the text, decoded without special tokens but with `<think>` and `</think>` for those around thoughts; of
            an episode only the last turn, which holds the answer.
        token_ids: the sampled tokens, with the EOS token if the model sampled it; of an episode also the tokens of the
            observations and of the chat template around them.
        finish_reason: "stop" = the model sampled an EOS token or a stop text, or the environment ended the episode;
            "length" = max_tokens or the turns ran out.
        logprobs: the engine's log-probability of each token, under the distribution it sampled from; 0 in observations.
        sampled: for each token, True if the model sampled it; only such tokens are in the loss. () = all.
        turns: the turns of an episode; () without an environment.
        outcome: the environment's judgement of the episode, or its failure; None without a judgement.
        reward_results: the results of reward functions that get the environment, by name.
        pixels: the images of the observations, in the order of their placeholders in `token_ids`.
        labels: for each sampled token, the label of the weights that sampled it, from engines that can mix them; ()
            = those of the last sync.
        stale_cache: for each sampled token, True if it follows keys and values that older weights may have made; () =
            none does.
        prefill: for rewards, the beginning of the answer that stands in the prompt and that `text` continues, such as
            "<think>\\n": what the chat template opens, then the data's `prefill`; "" if `text` includes it.
        routes: (L, K, k) uint8 or int16, the k experts that each input token used in each of the K layers with routers:
            the tokens of the prompt, and those of the completion but the last; None = unknown.
        raw: `text` with its special tokens, but the one that ends the turn; "" = it has none, or they are unknown.
        sequences: the lengths of the sequences in `token_ids`, each of which follows the prompt alone, because an agent
            began a conversation anew; () = there is one.
        untrained: the messages of an agent's episode that are not in `token_ids`.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    logprobs: tuple[float, ...] = ()
    sampled: tuple[bool, ...] = ()
    turns: tuple[Turn, ...] = ()
    outcome: RewardResult | None = None
    pixels: Pixels | None = None
    reward_results: Mapping[str, RewardResult] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    stale_cache: tuple[bool, ...] = ()
    prefill: str = ""
    routes: Tensor | None = field(default=None, repr=False, compare=False)
    raw: str = field(default="", repr=False, compare=False)
    sequences: tuple[int, ...] = ()
    untrained: tuple[UntrainedMessage, ...] = ()

    @property
    def full_text(self) -> str:
        """The prefill and the text."""
        return self.prefill + self.text

    @property
    def thoughts(self) -> str:
        """The thoughts in the text, also those that the prompt opened, without the marks around them."""
        return thoughts_in(self.full_text)

    @property
    def answer(self) -> str:
        """The text behind the thoughts; "" if they never end."""
        return without_thoughts(self.full_text)

    @property
    def tool_calls(self) -> list[dict[str, Any]]:
        """The calls behind the thoughts that can be read, each `{"name": ..., "arguments": {...}}`."""
        return as_dicts(find_calls(self.prefill + (self.raw or self.text)))

    @property
    def length(self) -> int:
        """Number of tokens that the model sampled."""
        if self.sampled:
            return sum(self.sampled)
        return len(self.token_ids)

    @property
    def from_model(self) -> tuple[bool, ...]:
        """For each token, True if the model sampled it."""
        return self.sampled or (True,) * len(self.token_ids)

    @classmethod
    def made_elsewhere(cls, text: str, tokens: int, finish_reason: FinishReason) -> Completion:
        """Return a completion that another program sampled; only the number of its tokens is known."""
        return cls(text, (0,) * tokens, finish_reason)

    @property
    def sequence_lengths(self) -> tuple[int, ...]:
        """The lengths of its sequences; one number if it is a single sequence."""
        return self.sequences or (len(self.token_ids),)

    @property
    def truncated(self) -> bool:
        """True if the completion was cut off at its limit of tokens."""
        return self.finish_reason == "length"


_T = TypeVar("_T")


def cut_sequences(values: Sequence[_T], lengths: Sequence[int]) -> list[Sequence[_T]]:
    """Cut the values of a completion's tokens into those of its sequences, which have these lengths."""
    ends = accumulate(lengths)
    return [values[end - length : end] for end, length in zip(ends, lengths, strict=True)]


Pair = tuple[Completion, Sample]
"""A completion and its sample, the input of a reward."""


@dataclass(frozen=True)
class Places:
    """Places in an image as fractions of its width and height: points (x, y), boxes (x1, y1, x2, y2) and polygons.

    Args:
        reference: those of the row.
        answer: those of a completion.
    """

    reference: tuple[tuple[float, ...], ...] = ()
    answer: tuple[tuple[float, ...], ...] = ()


@dataclass(frozen=True)
class RewardResult:
    """A reward's judgement of one completion.

    Args:
        value: the reward, before its weight.
        correct: True or False for a right or wrong answer, or None if this reward does not judge that.
        status: "ok"; "parse_fail" and "timeout" are the answer's fault (value 0, in the loss);
            "error" is the checker's own failure (the loss masks the completion out);
            "unjudged" stands for a reward's None (the reward does not judge this completion).
        detail: the extracted answer, or the error.
        criteria: the score of each criterion of a rubric, from 0 to 1.
        places: the places that it compared, for pages that draw them; None = it compares none.

    Raises:
        ValueError: `correct` is not a truth value, or the status is unknown.
    """

    value: float
    correct: bool | None = None
    status: Status = "ok"
    detail: str = ""
    criteria: Mapping[str, float] = field(default_factory=dict)
    places: Places | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"RewardResult.status: {self.status!r} is not one of {', '.join(STATUSES)}")
        if self.correct is not None and not isinstance(self.correct, bool):
            object.__setattr__(self, "correct", _truth(self.correct))


def recorded_places(results: Mapping[str, RewardResult]) -> dict[str, Any]:
    """Return the places of a completion and of its row under the key of files, if a reward compared some.

    Args:
        results: what each reward says of the completion.
    """
    places = [result.places for result in results.values() if result.places is not None]
    if not places:
        return {}
    shapes = {}
    for name, given in vars(places[0]).items():
        shapes[name] = [[round(number, 4) for number in place] for place in given]
    return {"places": shapes}


class ExecutionFailed(Exception):
    """The failure of a program or a query, which leaves nothing to judge.

    Args:
        status: "timeout" = it hit a limit; "ok" = a program raised an exception or crashed; "parse_fail" = a query is
            wrong or not allowed; "error" = a database file is missing or broken.
        reason: the limit that it hit, the last line that it wrote to standard error, or SQLite's message.
    """

    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


def _truth(value: Any) -> bool:
    """Convert 0, 1 and the truth values of numpy and torch to False and True.

    Raises:
        ValueError: the value is anything else.
    """
    with suppress(TypeError, ValueError, RuntimeError):  # arrays of several values
        if value in (0, 1):
            return bool(value)
    raise ValueError(f"RewardResult.correct must be True, False or None, got {value!r}")


@dataclass
class Prompt:
    """One prompt as the model sees it: tokens, chat template included, and images.

    Args:
        sample: the row that the prompt comes from.
        token_ids: the tokens, with one placeholder per image feature.
        pixels: the images, present while the prompt is in a batch; None without images.
        prefill: the beginning of every answer, which stands at the end of `token_ids`.
        score_prefill: rewards judge it as the beginning of the text.
    """

    sample: Sample
    token_ids: list[int]
    pixels: Pixels | None = None
    prefill: str = ""
    score_prefill: bool = False

    def for_rewards(self, group: Sequence[Completion]) -> list[Completion]:
        """Return completions of this prompt as rewards get them: with its prefill, in its own field or in the text."""
        if not self.score_prefill:
            return [replace(completion, prefill=self.prefill, routes=None) for completion in group]
        return [
            replace(
                completion,
                routes=None,
                text=self.prefill + completion.text,
                raw=self.prefill + completion.raw if completion.raw else "",
                turns=tuple(replace(turn, text=self.prefill + turn.text) for turn in completion.turns),
            )
            for completion in group
        ]


@dataclass
class PromptBatch:
    """A batch of P prompts from a DataModule's loader. The rollout callback fills `rollout` in place.

    Args:
        prompts: this rank's P prompts.
        cursor: the loader's position after this batch ({"epoch", "position"}); training commits it, so checkpoints
            always name the next unseen prompt.
        name: the data set's name in metrics (`val/<name>/...`).
        rollout: the scored completions; None before the callback fills it.
        greedy: in validation, one greedy completion of each prompt, if the settings ask for it.
        demonstrations: in validation of a module that trains on the data's own completions, these; a rank without
            prompts has one of another prompt, because scoring with sharded weights needs all ranks.
        successes: in training, sample id -> right completions on all ranks, and those that count in accuracies.
    """

    prompts: list[Prompt]
    cursor: dict[str, int] = field(default_factory=dict)
    name: str = ""
    rollout: Rollout | None = None
    greedy: Rollout | None = None
    demonstrations: Rollout | None = None
    successes: dict[str, tuple[int, int]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.prompts)


@dataclass(frozen=True)
class GroupSelection:
    """The number of mixed groups that an iteration needs, and whether it trains on others.

    Args:
        min_mixed_fraction: the smallest number of mixed groups, as a share of the prompts; above 0, further prompts are
            sampled until there are that many (dynamic sampling: DAPO, eq. 11).
        max_rounds: most batches of prompts that an iteration samples; then it trains on the groups it has.
        only_mixed: train on no other groups.
        by: what differs within a mixed group: the `reward` (the weighted sum), `correct`, or the reward of this name.
    """

    min_mixed_fraction: float = 0.0
    max_rounds: int = 10
    only_mixed: bool = False
    by: str = "reward"

    def num_needed(self, num_prompts: int) -> int:
        """Return the number of mixed groups that an iteration on so many prompts needs."""
        return math.ceil(self.min_mixed_fraction * num_prompts)


def _rounded(value: Tensor, digits: int | None) -> float:
    if digits is None:
        return float(value)
    return round(float(value), digits)


@dataclass
class Rollout:
    """P prompts with G scored completions each, on this rank.

    Row p * G + g of a (B, T) tensor is completion g of prompt p; completions are right-padded.

    Args:
        prompts: the P prompts.
        completions: P lists of G.
        token_ids: (B, T) long, padded with 0.
        mask: (B, T) bool, True = in the loss (EOS is in; padding, observations, failed checks, completions
            without a reward unless there is a teacher, and with `mask_truncated` truncated ones are not).
        rollout_logprobs: (B, T) float, log-probabilities at sampling time, 0 where padded or observed.
        rewards: (P, G) float, the weighted sum of all rewards; where not `has_reward`, the mean of the group's others.
        correct: (P, G) float in {0, 1}, or the mean of the group's others where not `has_correct`; never inferred from
            the reward.
        has_correct: (P, G) bool, True = a reward says whether the answer is correct.
        parts: name -> (P, G) float, each reward before its weight; NaN where it does not judge, 0 if its check failed.
        statuses: P lists of G, the worst status of each completion.
        sampling: the engine's sampling settings.
        exact: True if the engine's log-probabilities equal the trainer's up to rounding.
        reference_rewards: (P, G) float, rewards of the reference model's completions, NaN where it has none; None
            without them.
        advantages: (P, G) float, which the algorithm fills in.
        kept: the groups to train on, numbered over all ranks, if dynamic sampling dropped some; None = all.
        weights: name -> the weight of each of `parts`, where a row does not give another.
        details: P lists of G, name -> that reward's result; [] = they are unknown (a replay).
        repeats: how often each prompt occurred earlier in the iteration.
        versions: (B, T) long, the version of the weights (optimizer steps taken) that sampled each token; None without
            training.
        stale_cache: (B, T) bool, True for tokens that follow keys and values which older weights may have made, so
            that fresh scoring gives them another log-probability; None = there are none.
        is_unrewarded: no completion has a reward, on any rank, and there is no teacher: nothing can be trained on.
        is_demonstration: the completions are the data's own, so that no `rollout_logprobs` are known.
    """

    prompts: list[Prompt]
    completions: list[list[Completion]]
    token_ids: Tensor
    mask: Tensor
    rollout_logprobs: Tensor
    rewards: Tensor
    correct: Tensor
    has_correct: Tensor
    parts: dict[str, Tensor]
    statuses: list[list[Status]]
    sampling: Sampling
    exact: bool = False
    reference_rewards: Tensor | None = None
    advantages: Tensor | None = None
    kept: dict[int, int] | None = None
    weights: dict[str, float] = field(default_factory=dict)
    details: list[list[dict[str, RewardResult]]] = field(default_factory=list)
    repeats: list[int] = field(default_factory=list)
    versions: Tensor | None = None
    stale_cache: Tensor | None = None
    is_unrewarded: bool = False
    is_demonstration: bool = False

    @property
    def unreadable(self) -> dict[str, Tensor]:
        """Name -> (P, G) bool, True = that reward found no answer to judge (status "parse_fail")."""
        return {
            name: self._table([[row[name].status == "parse_fail" for row in group] for group in self.details]).bool()
            for name in (self.parts if self.details else ())
        }

    @classmethod
    def unscored(
        cls, prompts: list[Prompt], completions: list[list[Completion]], sampling: Sampling, group_size: int = 1
    ) -> Rollout:
        """Return a rollout without rewards, for callers that need only log-probabilities.

        Args:
            prompts: the P prompts.
            completions: P lists of `group_size`; P may be 0.
            sampling: the sampling settings.
            group_size: G, the completions of each prompt.
        """
        import torch

        token_ids, mask, logprobs = pad_completions(completions)
        shape = len(prompts), group_size
        return cls(
            prompts=prompts,
            completions=completions,
            token_ids=token_ids,
            mask=mask,
            rollout_logprobs=logprobs,
            rewards=torch.zeros(shape),
            correct=torch.zeros(shape),
            has_correct=torch.zeros(shape, dtype=torch.bool),
            parts={},
            statuses=[["ok"] * group_size for _ in prompts],
            sampling=sampling,
        )

    @property
    def group_size(self) -> int:
        """G, the completions of each prompt."""
        return int(self.rewards.shape[1])

    @property
    def known_correct(self) -> Tensor:
        """(P, G) float: 1 for completions that a reward calls right, else 0."""
        return self.correct * self.has_correct

    @property
    def in_accuracy(self) -> Tensor:
        """(P, G) bool: True for completions that count in accuracies: those that a reward calls right or wrong.

        A failed check counts as wrong.
        """
        return (
            self.has_correct | self._table([[status == "error" for status in group] for group in self.statuses]).bool()
        )

    @property
    def has_reward(self) -> Tensor:
        """(P, G) bool: True for completions with a reward, False if a check failed or no reward judges it."""
        values = [[status not in ("error", "unjudged") for status in group] for group in self.statuses]
        return self._table(values).bool()

    def record(self, p: int, g: int, digits: int | None = None) -> dict[str, Any]:
        """Return a completion's judgement as the files of a run hold it; a missing reward is null.

        Args:
            p: the index of the prompt.
            g: the index of the completion in its group.
            digits: decimals of the numbers; None = all.
        """
        has_reward = bool(self.has_reward[p, g])
        places = {}
        if self.details:
            places = recorded_places(self.details[p][g])
        return {
            "reward": _rounded(self.rewards[p, g], digits) if has_reward else None,
            "correct": bool(self.correct[p, g]) if self.has_correct[p, g] else None,
            "status": self.statuses[p][g],
            "advantage": _rounded(self.advantages[p, g], digits)
            if has_reward and self.advantages is not None
            else None,
            **places,
        }

    @property
    def lengths(self) -> Tensor:
        """(P, G) float: sampled tokens of each completion, EOS included."""
        return self._table([[c.length for c in group] for group in self.completions])

    @property
    def turns(self) -> Tensor:
        """(B, T) long: the turn of the episode that each sampled token belongs to, from 0; -1 elsewhere."""
        _, sampled, _ = pad_completions(self.completions)
        begins = sampled.clone()
        begins[:, 1:] &= ~sampled[:, :-1]
        turns = begins.cumsum(1) - 1
        for row, completion in zip(turns, self._rows, strict=True):
            for k, turn in enumerate(completion.turns):
                row[slice(*turn.span)] = k
        return turns.masked_fill(~sampled, -1)

    @property
    def turn_rewards(self) -> Tensor:
        """(B, T) float: the reward of the turn that each sampled token belongs to, before its weight; 0 without one."""
        values = []
        for completion in self._rows:
            values.append([turn.reward or 0.0 for turn in completion.turns])
        return self._of_turns(values)

    @property
    def states(self) -> Tensor | None:
        """(B, T) long: the state before the turn of each sampled token, by a number from 0 within its group; None if a
        completion does not name its turns, as in a record of an earlier version."""
        for turns, completion in zip(self.turns, self._rows, strict=True):
            if int(turns.max()) >= max(len(completion.turns), 1):
                return None
        values: list[list[float]] = []
        for group in self.completions:
            numbers = {"": 0}
            for completion in group:
                values.append([numbers.setdefault(turn.state, len(numbers)) for turn in completion.turns])
        return self._of_turns(values).long()

    def observed_in(self, completion: Completion) -> list[bool]:
        """Return for each token of a completion whether the environment wrote it.

        These are the tokens between two turns, with those of the chat template, but no placeholders of images.
        """
        banned = set(self.sampling.banned_token_ids)
        is_observed = [False] * len(completion.token_ids)
        spans = [turn.observed for turn in completion.turns if turn.observed]
        if not spans:
            spans = [(before.span[1], after.span[0]) for before, after in pairwise(completion.turns)]
        for start, end in spans:
            for t in range(start, end):
                is_observed[t] = completion.token_ids[t] not in banned
        return is_observed

    @property
    def observed(self) -> Tensor:
        """(B, T) bool: True for the tokens that `observed_in` names."""
        import torch

        observed = torch.zeros(self.token_ids.shape, dtype=torch.bool)
        for row, completion in zip(observed, self._rows, strict=True):
            row[: len(completion.token_ids)] = torch.tensor(self.observed_in(completion), dtype=torch.bool)
        return observed

    @property
    def _rows(self) -> list[Completion]:
        return [completion for group in self.completions for completion in group]

    def _of_turns(self, values: Sequence[Sequence[float]]) -> Tensor:
        """Return for each sampled token (B, T) the value of its turn; 0 elsewhere, and in completions without turns."""
        import torch

        turns = self.turns
        spread = torch.zeros(turns.shape)
        for row, own_turns, of_row in zip(spread, turns, values, strict=True):
            for k, value in enumerate(of_row):
                row[own_turns == k] = value
        return spread

    @property
    def truncated(self) -> Tensor:
        """(P, G) float in {0, 1}: 1 if the engine's finish reason is "length"."""
        return self._table([[c.truncated for c in group] for group in self.completions])

    def _table(self, values: Sequence[Sequence[float]]) -> Tensor:
        """Return P lists of G numbers or truth values as a (P, G) float tensor."""
        import torch

        return torch.tensor(values, dtype=torch.float32).reshape(self.rewards.shape)


def pad_completions(completions: list[list[Completion]]) -> tuple[Tensor, Tensor, Tensor]:
    """Right-pad P lists of G completions.

    Returns:
        token_ids (B, T) long, mask (B, T) bool (True = sampled by the model), rollout_logprobs (B, T) float; T is the
        longest completion, at least 1.
    """
    import torch

    rows = [completion for group in completions for completion in group]
    width = max([1, *(len(row.token_ids) for row in rows)])
    token_ids = torch.zeros(len(rows), width, dtype=torch.long)
    logprobs = torch.zeros(len(rows), width)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        token_ids[i, : len(row.token_ids)] = torch.tensor(row.token_ids, dtype=torch.long)
        logprobs[i, : len(row.logprobs)] = torch.tensor(row.logprobs)
        mask[i, : len(row.token_ids)] = torch.tensor(row.from_model, dtype=torch.bool)
    return token_ids, mask, logprobs
