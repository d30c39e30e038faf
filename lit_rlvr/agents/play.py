"""Plays the episodes of a batch: starts the agents, samples what they ask for together, and makes rows of episodes."""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_rlvr.agents.conversation import Conversations
from lit_rlvr.agents.processes import FILES_OF_PROGRAM, Worker, play_episode
from lit_rlvr.agents.requests import SamplingRules
from lit_rlvr.agents.session import CAUSES, Group, Limits, Session, completion_of, sequences_of, shared_start
from lit_rlvr.common.packages import require
from lit_rlvr.common.pictures import png_url
from lit_rlvr.distributed.collectives import gather_objects, world_size
from lit_rlvr.engines.base import OnGroupStarted, RolloutEngine
from lit_rlvr.engines.dispatch import free_descriptors
from lit_rlvr.engines.turns import Continuation, OnGroupDone, Turns
from lit_rlvr.environments.agent import Agent
from lit_rlvr.errors import UserError
from lit_rlvr.media import kinds_of
from lit_rlvr.rewards.forms import as_messages
from lit_rlvr.sampling import Sampling
from lit_rlvr.types import Completion, Prompt

if TYPE_CHECKING:
    from lit_rlvr.agents.endpoint import Job
    from lit_rlvr.datamodules import PromptDataModule

Generate = Callable[..., list[list[Completion]]]
"""The engine's `generate`."""
POLL_SECONDS = 0.05
"""How long to wait for a request before looking at the episodes again; ranks then ask each other for work."""


class LimitedTurns(Turns):
    """Single turns, each with a longest length of its own.

    Args:
        limits: of each prompt.
    """

    def __init__(self, limits: Sequence[int]) -> None:
        super().__init__()
        self._limits = limits

    def opening(self, p: int, g: int) -> Continuation:
        return Continuation((), self._limits[p])


class AgentEpisodes:
    """Plays episodes with agents.

    Args:
        agent: the settings.
        eos_token_ids: tokens that end a turn.
        folder: the folder of the model, whose name agents see.
        context: the longest sequence; 0 = no limit.
        takes_stop: whether the engine ends completions at texts.
        takes_images: whether the policy is a vision model.
        process: the number of this process, by which a given port is counted up.

    Attributes:
        counts: of the episodes of training that ended since `take_counts`, by name.
        seconds: waited for programs, so far.
    """

    def __init__(
        self,
        agent: Agent,
        eos_token_ids: tuple[int, ...],
        folder: str,
        context: int,
        takes_stop: bool,
        takes_images: bool = False,
        process: int = 0,
    ) -> None:
        require("starlette", "rollout.environment: Agent", "starlette", "uvicorn")
        from lit_rlvr.agents.endpoint import Endpoint  # it imports an optional package

        self._agent = agent
        self._eos_token_ids = eos_token_ids
        self._context = context
        self._takes_stop = takes_stop
        self._takes_images = takes_images
        most = free_descriptors() // FILES_OF_PROGRAM
        if agent.parallel > most:
            option = "workers" if agent.workers else "parallel"
            raise UserError(
                f"Agent.{option}: {agent.parallel} programs at once need {FILES_OF_PROGRAM} open files each; use at "
                f"most {most}, or raise `ulimit -Hn`"
            )
        port = agent.port
        if port:
            port += process
        self._endpoint = Endpoint(agent.host, port, Path(folder).name, agent.rewards_turns)
        self._conversations: dict[str, Conversations] = {}  # by the name of the data set
        self._threads = ThreadPoolExecutor(agent.parallel, "agent")  # a program dies with the thread that starts it
        self._sampling = ThreadPoolExecutor(agent.parallel, "agent-sampling")  # for `play_stream`
        self._is_closed = False
        self._workers: list[Worker] = []  # those that are free
        self.counts: Counter[str] = Counter()
        self.seconds = 0.0

    def play(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        seeds: Sequence[Sequence[int]],
        done: OnGroupDone | None,
        data: PromptDataModule,
        generate: Generate,
        is_training: bool,
    ) -> tuple[list[Prompt], list[list[Completion]]]:
        """Play an episode for each seed; return the prompts with which the rows begin, and the rows.

        Collective: call it on every rank.

        Args:
            prompts: P prompts of the data, whose samples are the tasks.
            sampling: how the model samples.
            seeds: P lists of G.
            done: called with each group that is complete.
            data: the prompts' DataModule.
            generate: the engine's, which several ranks call together.
            is_training: requests that sample otherwise are refused.
        """
        groups = _Groups(prompts, self._open_sessions(prompts, sampling, seeds, data))

        def report() -> None:
            for p in self._finish(groups, is_training):
                if done is not None:
                    done(p, groups.completions[p])

        with self._running(groups.every, self._rules(sampling if is_training else None, data)):
            while (jobs := self._take_jobs(groups.every, self._agent.batch_seconds, together=True)) is not None:
                self._sample(jobs, groups.every, sampling, generate, together=True)
                report()
        report()
        return groups.prompts, groups.completions

    def play_stream(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        seeds: Sequence[Sequence[int]],
        opened: Callable[[list[Prompt]], None],
        started: OnGroupStarted,
        done: OnGroupDone,
        data: PromptDataModule,
        engine: RolloutEngine,
    ) -> None:
        """Play episodes during training, without the other ranks; several threads may do so at once.

        On servers each request is sampled as soon as it comes; else those of all running episodes together, as in
        `play`. A group begins when the first of its requests is sampled.

        Args:
            prompts, sampling, seeds, data: those of `play`.
            opened: called with the prompts whenever the tokens with which the rows of a group begin are known.
            started: called with each prompt's index when its group begins, and a function that drops the group.
            done: called with each group that is complete.
            engine: samples the messages.
        """
        groups = _Groups(prompts, self._open_sessions(prompts, sampling, seeds, data))
        begun: set[int] = set()
        asked: list[Future[None]] = []

        def begin(p: int) -> None:
            if p not in begun:
                begun.add(p)
                started(p, partial(self._drop, groups, p))

        def report() -> None:
            for p in self._finish(groups, is_training=True):
                begin(p)  # none of its programs may have asked for anything
                opened(groups.prompts)
                done(p, groups.completions[p])

        with self._running(groups.every, self._rules(sampling, data)):
            seconds = 0.0 if engine.concurrent else self._agent.batch_seconds
            while (jobs := self._take_jobs(groups.every, seconds, together=False)) is not None:
                for job in jobs:
                    begin(groups.place(job.session))
                if engine.concurrent:
                    for job in jobs:
                        asked.append(self._sampling.submit(self._sample_one, job, sampling, engine))
                    for future in [future for future in asked if future.done()]:
                        future.result()  # raises what ended the engine
                        asked.remove(future)
                else:
                    self._sample(jobs, groups.every, sampling, engine.generate, together=False)
                report()
        report()

    def _drop(self, groups: _Groups, p: int) -> None:
        """End the episodes of a group, of which no row is made."""
        groups.dropped.add(p)
        for session in groups.sessions[p]:
            self._endpoint.end(session)

    @contextmanager
    def _running(self, sessions: list[Session], rules: SamplingRules) -> Iterator[None]:
        """Run the programs of some episodes, and end those that are left.

        Args:
            sessions: the episodes.
            rules: the parameters that their requests may give.
        """
        self._endpoint.open(sessions, rules)
        stopped: list[bool] = []
        running = [self._threads.submit(self._play_one, session, lambda: bool(stopped)) for session in sessions]
        try:
            yield
        finally:
            stopped.append(True)
            for future in running:
                future.cancel()
            for session in sessions:
                self._endpoint.end(session)
            wait(running)
            self._endpoint.forget(sessions)
        for future in running:
            if not future.cancelled():
                future.result()

    def _rules(self, sampling: Sampling | None, data: PromptDataModule) -> SamplingRules:
        """Return the parameters that requests may give.

        Args:
            sampling: the settings that they may repeat; None = they may give any.
            data: says in which size the model sees images.
        """
        images = None
        if self._takes_images:
            images = data.images
        return SamplingRules(sampling, frozenset(self._agent.ignore), self._takes_stop, images)

    def conversations_of(self, data: PromptDataModule) -> Conversations:
        """Return what renders conversations of a data set."""
        if data.name not in self._conversations:
            processor = None
            if self._takes_images:
                processor = partial(getattr, data, "image_processor")
            self._conversations[data.name] = Conversations(data.chat, data.tokenizer, self._eos_token_ids, processor)
        return self._conversations[data.name]

    def _open_sessions(
        self, prompts: Sequence[Prompt], sampling: Sampling, seeds: Sequence[Sequence[int]], data: PromptDataModule
    ) -> list[list[Session]]:
        """Return a session for each seed.

        Raises:
            UserError: a row has a video, or answers begin with a prefill.
        """
        for prompt in prompts:
            if "video" in kinds_of(prompt.sample.images):
                source = prompt.sample.source or prompt.sample.id
                raise UserError(f"{source}: agents get no videos, and this row has one; leave it out")
        if data.chat.prefill:
            raise UserError("data.chat.prefill: answers to an agent begin as they are sampled; leave it out")
        sessions = []
        for prompt, row in zip(prompts, seeds, strict=True):
            images = len(prompt.sample.images) + sampling.max_turns
            limits = Limits(sampling, data.reading.max_prompt_tokens, self._context, images)
            with self._endpoint.lock:  # whose thread renders, too
                conversations = self.conversations_of(data).for_row(prompt.sample)
            group = Group(limits)
            for seed in row:
                group.sessions.append(Session(secrets.token_urlsafe(24), prompt.sample, seed, group, conversations))
            sessions.append(group.sessions)
        return sessions

    def _take_jobs(self, sessions: list[Session], batch_seconds: float, together: bool) -> list[Job] | None:
        """Wait for requests; return their messages to sample, perhaps none, or None if all episodes are over.

        Args:
            sessions: the episodes.
            batch_seconds: how long a request waits for those of the other episodes.
            together: all episodes of all ranks are over; then call it on every rank.
        """
        started = time.perf_counter()
        until = time.monotonic() + POLL_SECONDS
        jobs = self._endpoint.take({*sessions}, lambda jobs: _seconds_to_wait(jobs, sessions, until, batch_seconds))
        is_over = self._is_closed or (not jobs and all(session.is_finished for session in sessions))
        if together and world_size() > 1:
            is_over = all(gather_objects(is_over))
        self.seconds += time.perf_counter() - started
        if is_over:
            return None
        return jobs

    def _play_one(self, session: Session, is_stopped: Callable[[], bool]) -> None:
        """Play one episode, in a thread."""
        with self._endpoint.lock:
            if is_stopped() or session.is_over:
                return
            session.is_running = True
        try:
            if self._agent.workers:
                self._play_by_worker(session, is_stopped)
            else:
                play_episode(self._agent, session, task_of(session), self._endpoint.url, is_stopped)
        finally:
            session.is_running = False
            self._endpoint.end(session)

    def _play_by_worker(self, session: Session, is_stopped: Callable[[], bool]) -> None:
        try:
            worker = self._workers.pop()
        except IndexError:  # all others play
            worker = Worker(self._agent, self._endpoint.url)
        is_usable = False
        try:
            is_usable = worker.play(session, task_of(session), is_stopped)
        finally:
            if is_usable:
                self._workers.append(worker)
            else:
                worker.close()

    def _sample(
        self, jobs: list[Job], sessions: list[Session], sampling: Sampling, generate: Generate, together: bool
    ) -> None:
        """Sample the completions of some jobs together, those with the same stop texts in one call of the engine.

        Args:
            jobs: the messages.
            sessions: all episodes, in the order in which their messages are sampled.
            sampling: how the model samples.
            generate: the engine's.
            together: other ranks sample at the same time; then call it on every rank.
        """
        together = together and world_size() > 1
        if not jobs and not together:
            return
        order = {}
        for number, session in enumerate(sessions):
            order[id(session)] = number
        jobs.sort(key=lambda job: order[id(job.session)])  # so that it does not depend on who was faster
        stops = list(dict.fromkeys(job.message.request.stop for job in jobs))
        if together:
            stops = list(dict.fromkeys(chain.from_iterable(gather_objects(stops))))
        for stop in stops:
            batch = []
            for job in jobs:
                if job.message.request.stop == stop:
                    batch.append(job)
            prompts, settings, seeds, limits = _call_of(batch, sampling, stop)

            def deliver(p: int, group: list[Completion], batch: list[Job] = batch) -> None:
                self._endpoint.deliver(batch[p], group[0])

            groups = generate(prompts, settings, seeds, deliver, limits)
            for p, group in enumerate(groups):  # an engine need not report them before
                deliver(p, group)

    def _sample_one(self, job: Job, sampling: Sampling, engine: RolloutEngine) -> None:
        """Sample a message on servers, in a thread during training."""

        def started(p: int, drop: Callable[[], object] | None) -> None:
            job.drop = drop

        prompts, settings, seeds, limits = _call_of([job], sampling, job.message.request.stop)
        engine.generate_stream(
            prompts, settings, seeds, started, lambda p, group: self._endpoint.deliver(job, group[0]), limits
        )

    def _finish(self, groups: _Groups, is_training: bool) -> list[int]:
        """Make the rows of groups whose episodes are over; return the indices of their prompts."""
        finished = groups.finish()
        if is_training:
            for p in finished:
                self._count(groups.sessions[p])
        return finished

    def take_counts(self) -> Counter[str]:
        """Return the counts of the episodes that ended since the last call."""
        with self._endpoint.lock:
            counts = self.counts
            self.counts = Counter()
        return counts

    def _count(self, sessions: list[Session]) -> None:
        """Count what the episodes of a group did."""
        counts = Counter(episodes=len(sessions))
        for session in sessions:
            sequences = sequences_of(session)
            roots = []
            for message in session.trained:
                if message.parent is None:
                    roots.append(message)
            counts["sequences"] += len(sequences)
            counts["forked_tokens"] += sum(len(message.prompt) for message in roots[1:])
            counts["auxiliary"] += sum(message.is_auxiliary for message in session.messages)
            counts["lost"] += sum(message.is_lost for message in session.messages)
            counts["refused"] += session.refused
            counts[session.failure or "ended"] += 1
        with self._endpoint.lock:
            self.counts += counts

    def close(self) -> None:
        """End the programs, and stop serving."""
        self._is_closed = True  # which ends what other threads play
        self._sampling.shutdown(wait=False, cancel_futures=True)
        self._threads.shutdown()
        for worker in self._workers:
            worker.close()
        self._endpoint.close()


class _Groups:
    """The rows of episodes, group by group.

    Args:
        prompts: those of the data.
        sessions: P lists of G.

    Attributes:
        prompts: with the tokens that the rows of a group have in common.
        completions: P lists of G.
        every: all sessions.
        dropped: the indices of groups of which no row is made.
    """

    def __init__(self, prompts: Sequence[Prompt], sessions: list[list[Session]]) -> None:
        self.prompts = list(prompts)
        self.completions: list[list[Completion]] = [[] for _ in prompts]
        self.sessions = sessions
        self.every = list(chain.from_iterable(sessions))
        self.dropped: set[int] = set()
        self._places = {session: p for p, group in enumerate(sessions) for session in group}

    def place(self, session: Session) -> int:
        """Return the index of a session's prompt."""
        return self._places[session]

    def finish(self) -> list[int]:
        """Make rows of the groups whose episodes are over since the last call; return their indices."""
        finished = []
        for p, sessions in enumerate(self.sessions):
            if self.completions[p] or p in self.dropped or not all(session.is_finished for session in sessions):
                continue
            start, pixels = shared_start(sessions)
            if start:
                self.prompts[p] = replace(
                    self.prompts[p], token_ids=list(start), pixels=pixels, prefill="", score_prefill=False
                )
            self.completions[p] = [completion_of(session, len(start)) for session in sessions]
            finished.append(p)
        return finished


def _call_of(
    jobs: Sequence[Job], sampling: Sampling, stop: tuple[str, ...]
) -> tuple[list[Prompt], Sampling, list[list[int]], LimitedTurns]:
    """Return the arguments with which an engine samples the messages of jobs that end at the same texts."""
    prompts = []
    for job in jobs:
        prompts.append(Prompt(job.session.sample, list(job.message.prompt), job.message.pixels))
    settings = replace(sampling, stop=tuple(dict.fromkeys((*sampling.stop, *stop))))
    seeds = [[job.message.seed] for job in jobs]
    return prompts, settings, seeds, LimitedTurns([job.message.limit for job in jobs])


def _seconds_to_wait(jobs: list[Job], sessions: list[Session], until: float, batch_seconds: float) -> float:
    """Return how long to wait for more jobs: all running episodes ask, or the first has waited long enough.

    Args:
        jobs: those that wait.
        sessions: all episodes.
        until: when to return without a job, in seconds of `time.monotonic`.
        batch_seconds: how long the first waits.
    """
    if all(session.is_finished for session in sessions):
        return 0.0
    now = time.monotonic()
    if not jobs:
        return max(0.0, until - now)
    asking = {id(job.session) for job in jobs}
    if all(id(session) in asking for session in sessions if session.is_running and not session.is_over):
        return 0.0
    return max(0.0, jobs[0].since + batch_seconds - now)


def task_of(session: Session) -> dict[str, Any]:
    """Return an episode's task, as its program gets it."""
    sample = session.sample
    return {
        "id": sample.id,
        "messages": _with_urls(as_messages(sample.told), sample.images),
        "prompt": sample.prompt,
        "answer": sample.answer,
        "row": dict(sample.row),
        "seed": session.seed,
    }


def _with_urls(messages: list[dict[str, Any]], images: Sequence[Any]) -> list[dict[str, Any]]:
    """Return messages in OpenAI's form, with a row's images as URLs that hold them."""
    left = iter(images)
    shown = []
    for message in messages:
        content = message["content"]
        if not isinstance(content, str):
            content = []
            for part in message["content"]:
                if part["type"] == "image":
                    part = {"type": "image_url", "image_url": {"url": png_url(next(left))}}
                content.append(part)
        shown.append({**message, "content": content})
    return shown


def agent_metrics(counts: Counter[str]) -> dict[str, float]:
    """Return means over all ranks' episodes of a batch, and the shares of those that failed, by cause.

    Collective: call it on every rank.
    """
    total: Counter[str] = Counter()
    for of_rank in gather_objects(counts):
        total.update(of_rank)
    episodes = max(total["episodes"], 1)
    means = ("sequences", "forked_tokens", "auxiliary", "lost", "refused")
    metrics = {}
    for name in (*means, *CAUSES):
        metrics[f"rollout/agent/{name}"] = total[name] / episodes
    return metrics
