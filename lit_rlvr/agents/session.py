"""The session of one episode: its sampled messages with their exact tokens, as a tree, and the row that they become.

A request extends a path of the tree only if its messages are those of the path, by content; the tokens of the path are
then the stored ones, and only what follows the last sampled message is rendered. Any other request begins a sequence of
its own, whose prompt is rendered anew. Each leaf of the tree is a sequence; a message that several share is trained in
the first of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from lit_rlvr.agents.conversation import Conversations, Text, fingerprint, with_marks
from lit_rlvr.agents.replies import Reply, read_reply
from lit_rlvr.agents.requests import ChatRequest, RequestError
from lit_rlvr.common.seeds import derive_seed
from lit_rlvr.errors import UserError
from lit_rlvr.media import Pixels
from lit_rlvr.sampling import Sampling
from lit_rlvr.speech.prompts import content_text
from lit_rlvr.types import Completion, RewardResult, Sample, Status, Turn, UntrainedMessage

CAUSES = ("timeout", "crashed", "silent")
"""Why an episode fails: it did not end in time; its program failed without a reward; it never called the model."""


@dataclass(eq=False)
class SampledMessage:
    """A message that the model sampled, with everything before it.

    Args:
        parent: the sampled message that its prompt extends; None = its prompt was rendered anew.
        prompt: all tokens before its own.
        pixels: the images of the placeholders in the prompt.
        marked: the prompt with names of the images in place of their placeholders (`with_marks`).
        added: the text that the agent added after the parent.
        request: the request that it answers.
        seed: the seed of its tokens.
        limit: its most tokens.
        is_auxiliary: the agent said that it is not part of the episode.
        turn: its tokens; None = it is not sampled yet.
        reply: the answer to the request.
        is_lost: the agent was gone when it was answered.
        reward: what the agent reported for it alone; None = nothing.
        has_children: a later prompt extends it.
    """

    parent: SampledMessage | None
    prompt: tuple[int, ...]
    pixels: Pixels | None
    marked: tuple[int, ...]
    added: str
    request: ChatRequest
    seed: int
    limit: int
    is_auxiliary: bool
    turn: Completion | None = None
    reply: Reply | None = None
    is_lost: bool = False
    reward: float | None = None
    has_children: bool = False

    @property
    def sampled(self) -> Completion:
        """Its tokens, once it is sampled."""
        assert self.turn is not None, "it is sampled"
        return self.turn

    @property
    def tokens(self) -> tuple[int, ...]:
        """Its prompt and its own tokens."""
        return self.prompt + self.sampled.token_ids

    @property
    def marked_tokens(self) -> tuple[int, ...]:
        """Its marked prompt and its own tokens."""
        return self.marked + self.sampled.token_ids

    @property
    def most_tokens(self) -> int:
        """The tokens of its prompt and its own, of which there may be fewer as long as it is not sampled."""
        if self.turn is None:
            return len(self.prompt) + self.limit
        return len(self.prompt) + len(self.turn.token_ids)

    @property
    def ancestors(self) -> list[SampledMessage]:
        """The sampled messages of its path, from the first to itself."""
        path = [self]
        while path[0].parent is not None:
            path.insert(0, path[0].parent)
        return path


@dataclass(frozen=True)
class Limits:
    """The budget of an episode.

    Args:
        sampling: the run's settings: `max_turns` sampled messages, `max_tokens` each, `max_episode_tokens` in all.
        prompt: the most tokens of the first prompt.
        context: the longest sequence; 0 = no limit.
        images: the most images of a prompt.
    """

    sampling: Sampling
    prompt: int
    context: int
    images: int = 0


def describe_most(sampling: Sampling) -> str:
    """Return the most tokens of an episode, and the option that limits them."""
    most = sampling.max_completion_tokens
    option = "max_episode_tokens"
    if most != sampling.max_episode_tokens:
        option = "max_observation_tokens, for each turn but the last"
    return f"{most} tokens in an episode (rollout.sampling.{option})"


def common_length(tokens: Sequence[int], other: Sequence[int]) -> int:
    """Return how many tokens the beginnings of two sequences have in common."""
    for number, (a, b) in enumerate(zip(tokens, other, strict=False)):
        if a != b:
            return number
    return min(len(tokens), len(other))


class Group:
    """The episodes of a prompt, whose rows leave out the tokens with which all their prompts begin.

    Args:
        limits: the budget of each episode.

    Attributes:
        sessions: the episodes.
        start: the tokens with which all prompts begin so far; None = there is none.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.sessions: list[Session] = []
        self.start: tuple[int, ...] | None = None
        self._shortest = 0  # of the prompts that begin a sequence
        self._has_forks = False

    @property
    def state(self) -> tuple[tuple[int, ...] | None, int, bool]:
        """What the prompts so far share; a request that is refused after all puts it back."""
        return self.start, self._shortest, self._has_forks

    @state.setter
    def state(self, state: tuple[tuple[int, ...] | None, int, bool]) -> None:
        self.start, self._shortest, self._has_forks = state

    def room(self, session: Session, prompt: tuple[int, ...], parent: SampledMessage | None) -> int:
        """Return the tokens that an episode's row has left behind a prompt, which then counts as one of the group.

        Raises:
            RequestError: the prompt begins otherwise than those of other episodes, which have no room for theirs.
        """
        start = self.start
        shortest = self._shortest
        has_forks = self._has_forks or (bool(session.kept) and (parent is None or parent.has_children))
        if start is None:
            start = prompt
            shortest = len(prompt)
        elif parent is None:
            start = start[: common_length(start, prompt)]
            shortest = min(shortest, len(prompt))
        start = start[: shortest - has_forks]
        most = self.limits.sampling.max_completion_tokens
        if self.start is None or len(start) < len(self.start):
            for other in self.sessions:
                if other is not session and other.row_tokens(len(start)) > most:
                    raise RequestError(
                        f"prompt is too long: it shares {len(start)} tokens with the prompts of this task's other "
                        "episodes, which have no room for what they would not share; the maximum is "
                        + describe_most(self.limits.sampling),
                        code="context_length_exceeded",
                    )
        room = most - session.row_tokens(len(start), parent) - (len(prompt) - len(start))
        if room >= 1:
            self.state = start, shortest, has_forks
        return room


class Session:
    """One episode. It is not safe for threads: the endpoint's lock guards it.

    Args:
        key: the bearer key of its calls.
        sample: the row that it plays.
        seed: its seed.
        group: the episodes of its prompt.
        conversations: renders prompts.

    Attributes:
        messages: the sampled messages, in the order of their requests.
        refused: number of requests that were refused.
        is_limited: a request was refused because the budget is used up.
        is_running: its program runs.
        is_over: no further call is answered.
        reward: what the agent reported.
        failure: one of `CAUSES`; "" = none.
        failure_detail: more about the failure.
        opening: the beginning of each turn's text that stands in the prompt.
    """

    def __init__(self, key: str, sample: Sample, seed: int, group: Group, conversations: Conversations) -> None:
        self.key = key
        self.sample = sample
        self.seed = seed
        self.messages: list[SampledMessage] = []
        self.refused = 0
        self.is_limited = False
        self.is_running = False
        self.is_over = False
        self.reward: RewardResult | None = None
        self.failure = ""
        self.failure_detail = ""
        self.opening = conversations.opening
        self._group = group
        self._limits = group.limits
        self._conversations = conversations
        self._by_content: dict[str, SampledMessage] = {}
        self._counts: dict[Any, int] = {}

    @property
    def is_finished(self) -> bool:
        """True once it is over and its program is gone."""
        return self.is_over and not self.is_running

    def begin(self, request: ChatRequest, is_auxiliary: bool) -> list[SampledMessage]:
        """Return the messages to sample for a request.

        Raises:
            RequestError: it does not fit into the budget, or the chat template refuses it.
        """
        sampling = self._limits.sampling
        same_kind = sum(message.is_auxiliary == is_auxiliary for message in self.messages)
        if same_kind + request.count > sampling.max_turns:
            self.is_limited = True
            raise RequestError(
                f"the episode may have {sampling.max_turns} completions (rollout.sampling.max_turns); there is none "
                "left",
                code="episode_limit",
            )
        parent, (prompt, pixels), added = self._prompt(request, is_auxiliary)
        marked = with_marks(prompt, pixels)
        if pixels is not None and len(pixels.images) > self._limits.images:
            raise RequestError(
                f"messages: {len(pixels.images)} images are too many; a prompt may have {self._limits.images}: those "
                "of the row, and one for each of rollout.sampling.max_turns"
            )
        had_children = parent is not None and parent.has_children
        shared = self._group.state
        begun: list[SampledMessage] = []
        for _ in range(request.count):
            limit = min(request.max_tokens or sampling.max_tokens, sampling.max_tokens)
            try:
                limit = min(limit, self._room(marked, parent, is_auxiliary))
            except RequestError:
                self._take_back(begun, had_children)
                self._group.state = shared
                raise
            number = self._counts[marked] = self._counts.get(marked, -1) + 1
            digest = hashlib.sha256(repr(marked).encode()).hexdigest()
            seed = derive_seed(self.seed, "agent", digest, number)
            message = SampledMessage(parent, prompt, pixels, marked, added, request, seed, limit, is_auxiliary)
            if parent is not None:
                parent.has_children = True
            self.messages.append(message)
            begun.append(message)
        return begun

    def _take_back(self, begun: Sequence[SampledMessage], had_children: bool) -> None:
        """Forget the messages of a request that is refused after all, of which none is sampled.

        Args:
            begun: the messages.
            had_children: whether another prompt extends their parent.
        """
        for message in begun:
            self.messages.remove(message)
            self._counts[message.marked] -= 1
            if message.parent is not None:
                message.parent.has_children = had_children

    def _prompt(self, request: ChatRequest, is_auxiliary: bool) -> tuple[SampledMessage | None, Text, str]:
        """Return the sampled message that a request extends, if there is one, its prompt, and the text after it."""
        messages = request.messages
        own = []
        for number, message in enumerate(messages):
            if message["role"] == "assistant":
                own.append(number)
        if own and not is_auxiliary:
            parent = self._by_content.get(fingerprint(messages[: own[-1] + 1], request.tools))
            added = len(messages) - own[-1] - 1
            if parent is not None and added:
                last = parent.tokens[-1]
                following = self._conversations.after_turn(messages, added, last)
                if following is not None:
                    token_ids, pixels = following
                    text = "\n".join(content_text(message["content"]) for message in messages[-added:])
                    return parent, (parent.tokens + token_ids, Pixels.joined([parent.pixels, pixels])), text
        try:
            return None, self._conversations.prompt(messages, request.tools), ""
        except UserError as error:
            raise RequestError(str(error)) from error

    @property
    def kept(self) -> list[SampledMessage]:
        """Its messages without auxiliary ones, sampled or not."""
        found = []
        for message in self.messages:
            if not message.is_auxiliary:
                found.append(message)
        return found

    def row_tokens(self, start: int, without: SampledMessage | None = None) -> int:
        """Return the most tokens of its row.

        Args:
            start: tokens at the beginning of each sequence that are in the prompt.
            without: a message that is about to be extended, so that it ends no sequence.
        """
        kept = self.kept
        parents = {id(message.parent) for message in kept} | {id(without)}
        return sum(message.most_tokens - start for message in kept if id(message) not in parents)

    def _room(self, prompt: tuple[int, ...], parent: SampledMessage | None, is_auxiliary: bool) -> int:
        """Return the most tokens that can follow a prompt.

        Raises:
            RequestError: there is no room.
        """
        limits = self._limits
        most = describe_most(limits.sampling)
        if not self.messages and len(prompt) > limits.prompt:
            room = 0
            most = f"{limits.prompt} tokens in its first prompt (data.init_args.reading.max_prompt_tokens)"
        elif is_auxiliary:
            room = limits.sampling.max_tokens
        else:
            room = self._group.room(self, prompt, parent)
        if limits.context and limits.context - len(prompt) < room:
            room = limits.context - len(prompt)
            most = f"{limits.context} tokens in a sequence"
        if room < 1:
            self.is_limited = True
            raise RequestError(
                f"prompt is too long: the prompt has {len(prompt)} tokens, and the maximum is {most}",
                code="context_length_exceeded",
            )
        return room

    def reward_message(self, completion_id: str, reward: float) -> None:
        """Take note of the reward of a sampled message alone; the last one counts.

        Raises:
            RequestError: there is no such message, or it is not trained.
        """
        for message in self.messages:
            if message.reply is not None and message.reply.id == completion_id:
                if message.is_auxiliary:
                    raise RequestError("completion_id: an auxiliary call is not trained, so it gets no reward")
                message.reward = reward
                return
        raise RequestError(f"completion_id: this episode has no completion {completion_id[:80]!r}", 404)

    def finish(self, message: SampledMessage, turn: Completion) -> Reply:
        """Take note of a message's tokens; return its reply."""
        number = self.messages.index(message)
        message.turn = turn
        text = self.opening + (turn.raw or turn.text)
        name = hashlib.sha256(f"{self.seed} {number}".encode()).hexdigest()
        reply = read_reply(name[:24], text, message.request, turn.truncated, len(message.prompt), len(turn.token_ids))
        # some templates take ids of nine characters only
        calls = tuple(call | {"id": f"{name[:7]}{index:02d}"} for index, call in enumerate(reply.calls))
        message.reply = replace(reply, calls=calls)
        if not message.is_auxiliary and not turn.truncated:  # what was cut is not extended
            path = [*message.request.messages, message.reply.message]
            self._by_content.setdefault(fingerprint(path, message.request.tools), message)
        return message.reply

    @property
    def trained(self) -> list[SampledMessage]:
        """The sampled messages of the episode: without auxiliary ones, and without those that the agent never got."""
        found = []
        for message in self.messages:
            if message.turn is not None and not message.is_auxiliary and (message.has_children or not message.is_lost):
                found.append(message)
        return found


@dataclass(frozen=True)
class EpisodeSequence:
    """A sequence of an episode: a leaf of its tree with everything before it.

    Args:
        leaf: its last message.
        own: its messages that no earlier sequence shares, which are trained in it.
    """

    leaf: SampledMessage
    own: tuple[SampledMessage, ...]

    def is_sampled(self) -> list[bool]:
        """Return for each token, those of the prompt included, whether it is trained in this sequence."""
        sampled = [False] * len(self.leaf.tokens)
        for message in self.own:
            sampled[len(message.prompt) : len(message.tokens)] = message.sampled.from_model
        return sampled

    def logprobs(self) -> list[float]:
        """Return for each token its log-probability; 0 for those that are not trained in this sequence."""
        logprobs = [0.0] * len(self.leaf.tokens)
        for message in self.own:
            logprobs[len(message.prompt) : len(message.tokens)] = message.sampled.logprobs
        return logprobs


def sequences_of(session: Session) -> list[EpisodeSequence]:
    """Return the sequences of an episode, one for each leaf of its tree, in the order of the leaves."""
    trained = session.trained
    parents = {id(message.parent) for message in trained}
    seen: set[int] = set()
    sequences = []
    for leaf in trained:
        if id(leaf) not in parents:
            own = []
            for message in leaf.ancestors:
                if id(message) not in seen:
                    own.append(message)
            seen.update(map(id, own))
            sequences.append(EpisodeSequence(leaf, tuple(own)))
    return sequences


def shared_start(sessions: Sequence[Session]) -> Text:
    """Return the tokens with which all sequences of some episodes begin, within their prompts, and their images.

    If an episode has several sequences, each keeps at least one token of its prompt, which separates it from the one
    before it.

    Raises:
        UserError: two sequences begin with different tokens.
    """
    sequences = []
    for session in sessions:
        sequences.extend(sequences_of(session))
    if not sequences:
        return (), None
    length = min(len(first.prompt) for session in sessions for first in session.trained if first.parent is None)
    if len(sequences) > sum(bool(session.trained) for session in sessions):
        length -= 1
    first = sequences[0].leaf
    start = first.marked_tokens[:length]
    for sequence in sequences:
        start = start[: common_length(start, sequence.leaf.marked_tokens)]
    if not start:
        raise UserError(
            f"rollout.environment: Agent: two prompts of {sessions[0].sample.id} begin with different tokens; begin "
            "all with the same text, such as a system message"
        )
    pixels = None
    if first.pixels is not None:
        pixels = first.pixels.split_at(first.tokens[: len(start)])[0]
    return first.tokens[: len(start)], pixels


def completion_of(session: Session, start: int) -> Completion:
    """Return an episode as one row: its sequences, one after the other. Its turns are in the order of the requests.

    Args:
        session: the episode.
        start: tokens at the beginning of each sequence that are in the prompt.
    """
    sequences = sequences_of(session)
    last = Completion("", (), "stop")
    if sequences:
        last = sequences[-1].leaf.sampled
    lengths = tuple(len(sequence.leaf.tokens) - start for sequence in sequences)
    is_limited = session.is_limited or session.failure == "timeout" or last.truncated
    own = [message for sequence in sequences for message in sequence.own]
    return Completion(
        text=last.text,
        token_ids=tuple(token for sequence in sequences for token in sequence.leaf.tokens[start:]),
        finish_reason="length" if is_limited else "stop",
        logprobs=tuple(value for sequence in sequences for value in sequence.logprobs()[start:]),
        sampled=tuple(flag for sequence in sequences for flag in sequence.is_sampled()[start:]),
        turns=_turns(session, sequences, start),
        pixels=Pixels.joined([_images_after(sequence.leaf, start) for sequence in sequences]),
        outcome=outcome_of(session),
        labels=tuple(label for message in own for label in message.sampled.labels),
        stale_cache=tuple(stale for message in own for stale in message.sampled.stale_cache),
        raw=last.raw,
        sequences=lengths if len(lengths) > 1 else (),
        untrained=_untrained(session),
    )


def _untrained(session: Session) -> tuple[UntrainedMessage, ...]:
    """Return the sampled messages of an episode that are not trained, in the order of their requests."""
    trained = set(map(id, session.trained))
    untrained = []
    for message in session.messages:
        if message.turn is None or id(message) in trained:
            continue
        reason: Literal["auxiliary", "lost"] = "lost"
        if message.is_auxiliary:
            reason = "auxiliary"
        untrained.append(UntrainedMessage(reason, message.turn.length))
    return tuple(untrained)


def _images_after(leaf: SampledMessage, start: int) -> Pixels | None:
    """Return the images of a sequence behind its first tokens.

    Args:
        leaf: its last message.
        start: the number of these tokens.
    """
    if leaf.pixels is None:
        return None
    return leaf.pixels.split_at(leaf.tokens[:start])[1]


def _turns(session: Session, sequences: Sequence[EpisodeSequence], start: int) -> tuple[Turn, ...]:
    """Return the trained messages of an episode in the order of their requests, with their places in its row."""
    offsets: dict[int, int] = {}  # of a message's sequence in the row, less what is in the prompt
    offset = -start
    for sequence in sequences:
        for message in sequence.own:
            offsets[id(message)] = offset
        offset += len(sequence.leaf.tokens) - start
    observed: set[tuple[int, ...]] = set()
    turns = []
    for message in session.trained:
        offset = offsets[id(message)]
        begin = offset + len(message.prompt)
        seen = (begin, begin)
        if message.parent is not None and message.marked not in observed:
            observed.add(message.marked)  # several messages may answer the same
            seen = (offset + len(message.parent.tokens), begin)
        turns.append(replace(_turn(message, session), span=(begin, offset + len(message.tokens)), observed=seen))
    return tuple(turns)


def _turn(message: SampledMessage, session: Session) -> Turn:
    assert message.reply is not None, "it is sampled"
    following = []
    for other in session.messages:
        if other.parent is message and not other.is_auxiliary:
            following.append(other)
    observation = None
    images = 0
    if following:
        observation = following[0].added
        images = _count_images(following[0]) - _count_images(message)
    raw = session.opening + (message.sampled.raw or message.sampled.text)
    asked = message.request.messages
    own = []
    for number, entry in enumerate(asked):
        if entry["role"] == "assistant":
            own.append(number)
    state = fingerprint(asked[max(own, default=-1) + 1 :], ())[:16]  # what was added, or the whole first prompt
    return Turn(
        message.sampled.text,
        observation,
        len(message.reply.calls),
        images=images,
        raw=raw,
        reward=message.reward,
        state=state,
    )


def _count_images(message: SampledMessage) -> int:
    """Return the number of images in a message's prompt."""
    if message.pixels is None:
        return 0
    return len(message.pixels.images)


def outcome_of(session: Session) -> RewardResult | None:
    """Return the reward that an agent reported, or its failure; None without either."""
    failure = session.failure
    if session.trained and (session.reward is not None or not failure):
        return session.reward
    if not session.trained and failure != "timeout":
        failure = failure or "silent"
    status: Status = "error"
    if failure == "timeout":
        status = "timeout"
    return RewardResult(0.0, None, status, f"environment: the agent {session.failure_detail or failure}")


def read_reward(body: Mapping[str, Any]) -> RewardResult:
    """Read a reward that an agent reports: `{"reward": 1.0, "correct": true, "detail": "..."}`.

    Raises:
        RequestError: it is no finite number.
    """
    from lit_rlvr.environments.episode import correct_if_one
    from lit_rlvr.rewards.base import as_result

    value = body.get("reward")
    correct = body.get("correct")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RequestError("reward: it must be a number")
    if correct is not None and not isinstance(correct, bool):
        raise RequestError("correct: it must be true or false")
    try:
        result = as_result(float(value))
    except (ValueError, OverflowError) as error:
        raise RequestError(f"reward: {error}") from error
    return correct_if_one(replace(result, correct=correct, detail=str(body.get("detail", ""))[:500]))
