"""Plays the episodes of a batch: starts the agents, samples what they ask for together, and makes rows of episodes."""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_rlvr.agents.conversation import Conversations
from lit_rlvr.agents.processes import FILES_OF_PROGRAM, Worker, play_episode
from lit_rlvr.agents.requests import SamplingRules
from lit_rlvr.agents.session import CAUSES, Group, Limits, Session, completion_of, sequences_of, shared_start
from lit_rlvr.common.packages import require
from lit_rlvr.distributed.collectives import gather_objects, rank, world_size
from lit_rlvr.engines.dispatch import free_descriptors
from lit_rlvr.engines.turns import Continuation, OnGroupDone, Turns
from lit_rlvr.environments.agent import Agent
from lit_rlvr.errors import UserError
from lit_rlvr.rewards.forms import as_messages
from lit_rlvr.types import Completion, Prompt, Sampling

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

    Attributes:
        counts: of the last batch: episodes, sequences, calls and others, by name.
    """

    def __init__(
        self, agent: Agent, eos_token_ids: tuple[int, ...], folder: str, context: int, takes_stop: bool
    ) -> None:
        require("starlette", "rollout.environment: Agent", "starlette", "uvicorn")
        from lit_rlvr.agents.endpoint import Endpoint  # it imports an optional package

        self._agent = agent
        self._eos_token_ids = eos_token_ids
        self._context = context
        self._takes_stop = takes_stop
        most = free_descriptors() // FILES_OF_PROGRAM
        if agent.parallel > most:
            option = "workers" if agent.workers else "parallel"
            raise UserError(
                f"Agent.{option}: {agent.parallel} programs at once need {FILES_OF_PROGRAM} open files each; use at "
                f"most {most}, or raise `ulimit -Hn`"
            )
        port = agent.port
        if port:
            port += rank()
        self._endpoint = Endpoint(agent.host, port, Path(folder).name, agent.rewards_turns)
        self._conversations: dict[str, Conversations] = {}  # by the name of the data set
        self._threads = ThreadPoolExecutor(agent.parallel, "agent")  # a program dies with the thread that starts it
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
        sessions = self._open_sessions(prompts, sampling, seeds, data)
        every = [session for group in sessions for session in group]
        rules = SamplingRules(sampling if is_training else None, frozenset(self._agent.ignore), self._takes_stop)
        self._endpoint.open(every, rules)
        groups = _Groups(prompts, sessions, done)
        stopped: list[bool] = []
        running = [self._threads.submit(self._play_one, session, lambda: bool(stopped)) for session in every]
        try:
            while (jobs := self._take_jobs(every)) is not None:
                self._sample(jobs, every, sampling, generate)
                groups.report()
        finally:
            stopped.append(True)
            for session in every:
                self._endpoint.end(session)
            wait(running)
        for future in running:
            future.result()
        groups.report()
        self._count(every)
        return groups.prompts, groups.completions

    def _open_sessions(
        self, prompts: Sequence[Prompt], sampling: Sampling, seeds: Sequence[Sequence[int]], data: PromptDataModule
    ) -> list[list[Session]]:
        """Return a session for each seed.

        Raises:
            UserError: rows have images, or answers begin with a prefill.
        """
        for prompt in prompts:
            if prompt.sample.images:
                source = prompt.sample.source or prompt.sample.id
                raise UserError(f"{source}: agents get no images, and this row has some")
        if data.chat.prefill:
            raise UserError("data.chat.prefill: answers to an agent begin as they are sampled; leave it out")
        if data.name not in self._conversations:
            self._conversations[data.name] = Conversations(data.chat, data.tokenizer, self._eos_token_ids)
        limits = Limits(sampling, data.reading.max_prompt_tokens, self._context)
        sessions = []
        for prompt, row in zip(prompts, seeds, strict=True):
            conversations = self._conversations[data.name].for_row(prompt.sample)
            group = Group(limits)
            for seed in row:
                group.sessions.append(Session(secrets.token_urlsafe(24), prompt.sample, seed, group, conversations))
            sessions.append(group.sessions)
        return sessions

    def _take_jobs(self, sessions: list[Session]) -> list[Job] | None:
        """Wait for requests; return their messages to sample, perhaps none, or None if all episodes are over.

        Collective: call it on every rank.
        """
        started = time.perf_counter()
        until = time.monotonic() + POLL_SECONDS
        jobs = self._endpoint.take(lambda jobs: self._seconds_to_wait(jobs, sessions, until))
        is_over = not jobs and all(session.is_finished for session in sessions)
        if world_size() > 1:
            is_over = all(gather_objects(is_over))
        self.seconds += time.perf_counter() - started
        if is_over:
            return None
        return jobs

    def _play_one(self, session: Session, is_stopped: Callable[[], bool]) -> None:
        """Play one episode, in a thread."""
        if is_stopped():
            return
        try:
            with self._endpoint.lock:
                session.is_running = True
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

    def _seconds_to_wait(self, jobs: list[Job], sessions: list[Session], until: float) -> float:
        """Return how long to wait for more jobs: all running episodes ask, or the first has waited long enough.

        Args:
            jobs: those that wait.
            sessions: all episodes.
            until: when to return without a job, in seconds of `time.monotonic`.
        """
        if all(session.is_finished for session in sessions):
            return 0.0
        now = time.monotonic()
        if not jobs:
            return max(0.0, until - now)
        asking = {id(job.session) for job in jobs}
        if all(id(session) in asking for session in sessions if session.is_running and not session.is_over):
            return 0.0
        return max(0.0, jobs[0].since + self._agent.batch_seconds - now)

    def _sample(self, jobs: list[Job], sessions: list[Session], sampling: Sampling, generate: Generate) -> None:
        """Sample the completions of some jobs together, those with the same stop texts in one call of the engine."""
        if not jobs and world_size() == 1:
            return
        order = {id(session): number for number, session in enumerate(sessions)}
        jobs.sort(key=lambda job: order[id(job.session)])  # so that it does not depend on who was faster
        stops = list(dict.fromkeys(job.message.request.stop for job in jobs))
        if world_size() > 1:
            stops = list(dict.fromkeys(stop for of_rank in gather_objects(stops) for stop in of_rank))
        for stop in stops:
            batch = [job for job in jobs if job.message.request.stop == stop]
            prompts = [Prompt(job.session.sample, list(job.message.prompt)) for job in batch]
            limits = LimitedTurns([job.message.limit for job in batch])

            def deliver(p: int, group: list[Completion], batch: list[Job] = batch) -> None:
                if batch[p].message.turn is None:
                    self._endpoint.deliver(batch[p], group[0])

            settings = replace(sampling, stop=tuple(dict.fromkeys((*sampling.stop, *stop))))
            seeds = [[job.message.seed] for job in batch]
            groups = generate(prompts, settings, seeds, deliver, limits)
            for p, group in enumerate(groups):  # an engine need not report them before
                deliver(p, group)

    def _count(self, sessions: list[Session]) -> None:
        """Count what the episodes of a batch did."""
        counts = self.counts = Counter(episodes=len(sessions))
        for session in sessions:
            sequences = sequences_of(session)
            roots = [message for message in session.trained if message.parent is None]
            counts["sequences"] += len(sequences)
            counts["forked_tokens"] += sum(len(message.prompt) for message in roots[1:])
            counts["auxiliary"] += sum(message.is_auxiliary for message in session.messages)
            counts["lost"] += sum(message.is_lost for message in session.messages)
            counts["refused"] += session.refused
            counts[session.failure or "ended"] += 1

    def close(self) -> None:
        """End the programs, and stop serving."""
        for worker in self._workers:
            worker.close()
        self._threads.shutdown()
        self._endpoint.close()


class _Groups:
    """The rows of episodes, group by group.

    Args:
        prompts: those of the data.
        sessions: P lists of G.
        done: called with each group that is complete.

    Attributes:
        prompts: with the tokens that the rows of a group have in common.
        completions: P lists of G.
    """

    def __init__(self, prompts: Sequence[Prompt], sessions: list[list[Session]], done: OnGroupDone | None) -> None:
        self.prompts = list(prompts)
        self.completions: list[list[Completion]] = [[] for _ in prompts]
        self._sessions = sessions
        self._done = done

    def report(self) -> None:
        """Make rows of the groups whose episodes are over."""
        for p, sessions in enumerate(self._sessions):
            if self.completions[p] or not all(session.is_finished for session in sessions):
                continue
            start = shared_start(sessions)
            if start:
                self.prompts[p] = replace(self.prompts[p], token_ids=list(start), prefill="", score_prefill=False)
            self.completions[p] = [completion_of(session, len(start)) for session in sessions]
            if self._done is not None:
                self._done(p, self.completions[p])


def task_of(session: Session) -> dict[str, Any]:
    """Return an episode's task, as its program gets it."""
    sample = session.sample
    return {
        "id": sample.id,
        "messages": as_messages(sample.told),
        "prompt": sample.prompt,
        "answer": sample.answer,
        "row": dict(sample.row),
        "seed": session.seed,
    }


def agent_metrics(counts: Counter[str]) -> dict[str, float]:
    """Return means over all ranks' episodes of a batch, and the shares of those that failed, by cause.

    Collective: call it on every rank.
    """
    total: Counter[str] = Counter()
    for of_rank in gather_objects(counts):
        total.update(of_rank)
    episodes = max(total["episodes"], 1)
    means = ("sequences", "forked_tokens", "auxiliary", "lost", "refused")
    return {f"rollout/agent/{name}": total[name] / episodes for name in (*means, *CAUSES)}
