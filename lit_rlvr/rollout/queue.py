"""Groups that are generated all the time, by weights of bounded age, and are trained on in the order they finish."""

from __future__ import annotations

import math
import statistics
import threading
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from itertools import chain, takewhile
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lit_rlvr.common.log import log
from lit_rlvr.common.terminal import progress
from lit_rlvr.distributed.collectives import gather_objects, rank, world_size
from lit_rlvr.engines.synced import catch_crash
from lit_rlvr.errors import UserError
from lit_rlvr.rewards.background import BackgroundScoring
from lit_rlvr.rewards.combine import Scores
from lit_rlvr.rollout.generate import completion_seeds
from lit_rlvr.rollout.source import STAGE_TEXTS, CollectingSource
from lit_rlvr.rollout.summaries import Summaries, count_repeats, mixed_groups
from lit_rlvr.training.optimizer import steps_per_iteration
from lit_rlvr.types import Completion, Prompt, PromptBatch, Rollout

POLL = 0.05
"""Seconds between two looks at the groups of all ranks."""
THREADS = 1024
"""The most admissions that run at once on servers."""


@dataclass(eq=False)
class QueuedGroup:
    """A group on its way from its admission to training.

    Args:
        number: its place in the stream of prompts, over all ranks, from 0; its seeds come from it.
        prompt: the prompt of its completions.
        seeds: the seed of each completion, G.
        started: the version of the weights when its sampling began; None = it waits for the engine.
        started_at: when that was, in seconds of the monotonic clock.
        drop: ends its sampling.
        completions: None = it is not finished.
        has_versions: their labels of weights are versions.
        mixed: whether it has a signal (`mixed_groups`); None = unknown.
    """

    number: int
    prompt: Prompt
    seeds: list[int]
    started: int | None = None
    started_at: float = 0.0
    drop: Callable[[], object] | None = None
    completions: list[Completion] | None = None
    has_versions: bool = False
    mixed: bool | None = None


class GroupState(NamedTuple):
    """What all ranks know of a group; sorted, those come first that are trained on first.

    Args:
        left: the iterations after this one that can still train on it; infinite before its sampling begins.
        number: its place in the stream of prompts.
        rank: where it is.
        finished: whether all its completions are sampled.
        mixed: whether it is scored, and has a signal.
        has_no_signal: it is scored and not mixed.
    """

    left: float
    number: int
    rank: int
    finished: bool
    mixed: bool = False
    has_no_signal: bool = False


def choose(
    groups: Sequence[GroupState], prompts: int, wanted: int = 0, most: int = 0, in_order: bool = False, ranks: int = 1
) -> list[GroupState] | None:
    """Return the groups that an iteration trains on, those with the oldest weights first; None = it has to wait.

    An iteration leaves only groups that those after it can take in time. Else it takes more, up to the oldest group
    that still runs, and waits for that one.

    Args:
        groups: of all ranks.
        prompts: how many the iteration needs.
        wanted: how many of them must be mixed, above 0 with dynamic sampling.
        most: after how many it takes fewer.
        in_order: take groups in the order of the prompts, so that no thread's speed changes the result.
        ranks: they get as many groups each.
    """
    if in_order:
        ready = [*takewhile(lambda group: group.finished, sorted(groups, key=lambda group: group.number))]
    else:
        ready = sorted(group for group in groups if group.finished)
    oldest = min((group for group in groups if not group.finished), default=None)
    ahead = sum(oldest is None or group < oldest for group in ready)
    mixed = 0
    for count, group in enumerate(ready, 1):
        mixed += group.mixed
        if count < prompts or count % ranks or (mixed < wanted and count < most):
            continue
        rest = {*groups} - {*ready[:count]}
        # An iteration with fewer mixed groups than prompts leaves more to later ones, which take more if they must.
        if in_order or in_time(rest, len(groups) if wanted and mixed < prompts else prompts):
            return ready[:count]
        if count >= ahead:
            return None
    return None


def in_time(groups: Collection[GroupState], prompts: int) -> bool:
    """Return whether the iterations after this one can train on all these groups before they are too old.

    Args:
        groups: those that are left; nobody trains on those without a signal.
        prompts: how many an iteration trains on at least.
    """
    lefts = sorted(group.left for group in groups if math.isfinite(group.left) and not group.has_no_signal)
    for place, left in enumerate(lefts):
        if place >= left * prompts:
            return False
    return True


class QueueSource(CollectingSource):
    """Generates groups during training, and trains on the first that finish; none of their tokens was sampled by
    weights more than `staleness` iterations old.

    A group is admitted only if it can still be used (AReaL, arXiv:2505.24298, eq. 3): with version v, at most
    (staleness + v + 1) P groups have been, without those that give no signal where mixed ones are asked for. What was
    admitted is finished and trained on, the oldest first, unless it takes longer than `max_group_seconds`; an iteration
    waits until those after it can take all others in time, so that long completions are not lost. With an engine that
    takes weights while it generates (servers), a group may be sampled by several versions. In this process, what runs
    ends before weights change, and groups are taken in the order of their prompts, so that a resumed run is exact.

    Checkpoints store what is finished. What ran is generated again on resuming, with the same seeds.

    Args:
        args, kwargs: the arguments of `CollectingSource`.
        staleness: the most iterations between the weights that sample a token and those that train on it, at least 1.
        max_group_seconds: drop a group that has been sampled for longer; None = none.
    """

    def __init__(self, *args: Any, staleness: int, max_group_seconds: float | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.staleness = staleness
        self.max_group_seconds = max_group_seconds
        self._dropped = 0  # groups, since the last iteration
        self._groups: list[QueuedGroup] = []  # this rank's, from admission to training
        self._admitted = 0  # groups, over all ranks
        self._ready: dict[str, Prompt] = {}  # sample id -> prompt of the loader's batch, prepared
        self._running: list[tuple[Future[None], list[QueuedGroup]]] = []
        self._changed = threading.Event()  # a group has finished
        self._lengths: list[int] = []  # of completions that finished since the last iteration
        self._expected: dict[str, float] = {}  # sample id -> mean length of its last completions on this rank
        self._idle_since: float | None = None
        self._idle_seconds = 0.0
        self._taken_at: float | None = None  # when the last iteration had its groups
        self._seconds_of_generation = 0.0
        self._version = 0  # of the weights that the engine has
        self._saved: dict[str, Any] | None = None
        self._concurrent = self.sampler.synced_engine.engine.concurrent
        self._scoring = BackgroundScoring(self.sampler.rewards)
        self._threads = ThreadPoolExecutor(THREADS if self._concurrent else 1, thread_name_prefix="lit-rlvr-queue")

    # ---- admission and generation -------------------------------------------------------------------------

    def admit(self, count: int, cursor: dict[str, int]) -> dict[str, int]:
        """Begin to generate `count` more groups, over all ranks; return the data's position after their prompts."""
        per_rollout = self.data.prompts_per_rollout
        groups = []
        for number in range(self._admitted, self._admitted + max(count, 0)):
            (prompt,), cursor = self.data.stream.take(1, cursor)
            if number % per_rollout * world_size() // per_rollout == rank():  # a share of every rollout's prompts
                groups.append(self._queued(number, prompt))
        self._admitted += max(count, 0)
        if self._concurrent and self._expected:  # the longest expected first: they would end last
            usual = statistics.mean([*self._expected.values()])  # a copy: threads add to it
            groups.sort(key=lambda group: -self._expected.get(group.prompt.sample.id, usual))
        share = per_rollout // world_size()  # an engine in this process is made for as many at once
        for start in range(0, len(groups), share):
            self._begin(groups[start : start + share])
        return cursor

    def _queued(self, number: int, prompt: Prompt) -> QueuedGroup:
        seeds = completion_seeds([prompt], [0], self.group_size, "queue", number)
        ready = self._ready.get(prompt.sample.id) or self.data.prepare(prompt)
        group = QueuedGroup(number, ready, seeds[0])
        self._groups.append(group)
        return group

    def _begin(self, groups: list[QueuedGroup]) -> None:
        if not groups:
            return
        if self._idle_since is not None:
            self._idle_seconds += time.perf_counter() - self._idle_since
            self._idle_since = None
        self._running.append((self._threads.submit(self._generate, groups), groups))

    def _generate(self, groups: list[QueuedGroup]) -> None:
        """Generate groups, in a thread during training."""

        def opened(prompts: list[Prompt]) -> None:
            for group, prompt in zip(groups, prompts, strict=True):
                group.prompt = prompt

        def started(p: int, drop: Callable[[], object] | None) -> None:
            groups[p].started_at = time.monotonic()
            groups[p].drop = drop
            groups[p].started = self._version  # or newer weights: then its tokens say so

        def done(p: int, completions: list[Completion]) -> None:
            if groups[p].completions is None:
                self._finish(groups[p], completions)

        prompts = [group.prompt for group in groups]
        seeds = [group.seeds for group in groups]
        self.sampler.generate_stream(prompts, seeds, self.sampling, self.data, opened, started, done)

    def _finish(self, group: QueuedGroup, completions: list[Completion]) -> None:
        self._scoring.add(group, group.prompt.for_rewards(completions), group.prompt.sample)
        lengths = [completion.length for completion in completions]
        self._lengths += lengths
        self._expected[group.prompt.sample.id] = statistics.mean(lengths)
        group.drop = None
        group.completions = completions  # last: another thread looks at it
        if all(other.completions is not None for other in [*self._groups]):
            self._idle_since = time.perf_counter()
        self._changed.set()

    def _begin_again(self) -> None:
        """Restart an engine that has crashed, and generate again what it has not finished."""
        over = []
        for future, groups in self._running:
            if future.done():
                over.append((future, groups))
        self._running = [(future, groups) for future, groups in self._running if not future.done()]
        crashes = [crash for future, _ in over if (crash := catch_crash(future.result)) is not None]
        if over:
            prompts = []
            for _, groups in over:
                for group in groups:
                    prompts.append(group.prompt)
            self.sampler.synced_engine.restart_if(crashes[0] if crashes else None, prompts, self.sampling)
        for _, groups in over:
            unfinished = []
            for group in groups:
                if group.completions is None and group in self._groups:
                    unfinished.append(group)
            self._begin(unfinished)

    def _drop_endless(self) -> None:
        """Drop groups that have been sampled for too long."""
        if self.max_group_seconds is None:
            return
        now = time.monotonic()
        for group in [*self._groups]:
            drop = group.drop  # which another thread may remove
            if group.completions is None and drop is not None and now - group.started_at > self.max_group_seconds:
                log.warning(
                    "rollout.safeguards.max_group_seconds: the completions of %s have not ended after %.0f s; they are "
                    "dropped",
                    group.prompt.sample.id,
                    now - group.started_at,
                )
                drop()
                self._groups.remove(group)
                self._dropped += 1

    def wait(self) -> None:
        """Wait until the engine is free, if weights cannot be synced while it generates."""
        if not self._concurrent:
            wait([future for future, _ in self._running])

    # ---- the groups of an iteration -----------------------------------------------------------------------

    def generate(self, batch: PromptBatch) -> tuple[Rollout, Summaries]:
        """Return the rollout of the groups that finish first, enough of them mixed, and what all ranks know of them."""
        return self.assemble_groups(self.take(batch))

    def take(self, batch: PromptBatch) -> list[QueuedGroup]:
        """Admit groups, and wait for those of this iteration; return this rank's.

        Collective: call it on every rank.
        """
        module = self.module
        prompts = len(batch) * world_size()
        min_mixed = module.selection.num_needed(prompts)
        max_prompts = module.selection.max_rounds * prompts
        late = 0.0
        began = time.perf_counter()
        cursor = dict(self.data.cursor)
        self._ready = {prompt.sample.id: prompt for prompt in batch.prompts}
        progress.begin(STAGE_TEXTS["wait"])
        self._take_up_saved()
        chosen = None
        is_first = True
        while chosen is None:
            self._begin_again()
            self._drop_endless()
            states = self._states(min_mixed > 0)
            if is_first:
                self._log_queue(states)
            needs = prompts, min_mixed, max_prompts, not self._concurrent, world_size()
            chosen = choose(states, *needs)
            finished = [state for state in states if state.finished]
            early = chosen is None and self._concurrent and choose(finished, *needs) is not None
            stuck = chosen is None and all(state.finished for state in states)
            if is_first or stuck or self._concurrent:  # in this process, no thread's speed may decide when
                cursor = self.admit((self.staleness + 1) * prompts - sum(not s.has_no_signal for s in states), cursor)
            if chosen is None and not is_first:
                waited = time.perf_counter()
                self._changed.wait(POLL)
                self._changed.clear()
                late += (time.perf_counter() - waited) * early
            is_first = False
        batch.cursor = cursor
        end = time.perf_counter()
        self._seconds_of_generation = end - (self._taken_at or began)
        self._taken_at = end
        self.seconds["generate"] = end - began
        self.metrics["train/staleness/wait"] = late
        return self._taken(chosen)

    def _states(self, judge: bool) -> list[GroupState]:
        """Return the states of all ranks' groups.

        Collective: call it on every rank.

        Args:
            judge: say which are mixed.
        """
        states = []
        for group in self._groups:
            finished = group.completions is not None
            if finished:
                self._settle(group)
            if group.started is None:
                left = math.inf
            else:
                left = self._iterations_left(group.started)
            scored = finished and (self._scoring.is_scored(group) or not self._concurrent)  # there it is waited for
            if judge and scored and group.mixed is None:
                scores = self._scoring.scores([group], self.group_size)
                group.mixed = bool(mixed_groups(scores, self.module.selection.by))
            states.append(GroupState(left, group.number, rank(), finished, group.mixed is True, group.mixed is False))
        return list(chain.from_iterable(gather_objects(states)))

    def _iterations_left(self, started: int) -> float:
        """Return how many iterations after this one can train on a group that began with this version."""
        return self.staleness - (self.module.updates - started) / steps_per_iteration(self.module)

    def _settle(self, group: QueuedGroup) -> None:
        """Replace the labels of the weights that sampled a finished group by their versions, once.

        Raises:
            UserError: other weights than the policy's sampled a token.
        """
        assert group.completions is not None and group.started is not None
        if group.has_versions:
            return
        versions = self.sampler.synced_engine.synced_versions
        for label in set(chain(*(completion.labels for completion in group.completions))):
            if label not in versions or versions[label][0] != "policy":
                raise UserError(
                    f"engine {self.sampler.synced_engine.engine.name}: other weights ({label}) than the run's sampled "
                    "a completion; does somebody else use it?"
                )
        relabelled = []
        for completion in group.completions:
            labels = tuple(str(versions[label][1]) for label in completion.labels)
            relabelled.append(replace(completion, labels=labels))
        group.completions = relabelled
        group.started = min(
            (int(version) for completion in group.completions for version in completion.labels),
            default=group.started,
        )
        group.has_versions = True

    def _taken(self, chosen: list[GroupState]) -> list[QueuedGroup]:
        """Take the chosen groups out of the queue, as many on each rank; return this rank's.

        Collective: call it on every rank.
        """
        places = even_places([state.rank for state in chosen], world_size())
        groups = {group.number: group for group in self._groups}
        numbers = {state.number for state in chosen}
        self._groups = [group for group in self._groups if group.number not in numbers]
        moved = []
        for state, place in zip(chosen, places, strict=True):
            if state.rank == rank() != place:
                moved.append(state)
        sent = {}
        for state in moved:
            sent[state.number] = (groups[state.number], self._scoring.result(groups[state.number]))
        received = {}
        for part in gather_objects(sent):
            for number, scored in part.items():
                received[number] = scored
        numbers_here = []
        for state, place in zip(chosen, places, strict=True):
            if place == rank():
                numbers_here.append(state.number)
        for number in numbers_here:
            if number not in groups:
                groups[number], result = received[number]
                completions = groups[number].prompt.for_rewards(groups[number].completions or [])
                self._scoring.add(groups[number], completions, groups[number].prompt.sample, result)
        return [groups[number] for number in numbers_here]

    def assemble_groups(self, groups: list[QueuedGroup]) -> tuple[Rollout, Summaries]:
        """Return the rollout of this rank's groups, and what all ranks know of them.

        Collective: call it on every rank.
        """
        began = time.perf_counter()
        scores = self._scoring.scores(groups, self.group_size)
        self.seconds["score"] = time.perf_counter() - began
        completions = [group.completions or [] for group in groups]
        prompts_of_groups = [group.prompt for group in groups]
        rollout = self.sampler.build_rollout(prompts_of_groups, completions, scores, self.sampling, self.module.updates)
        rollout.versions = versions_of(groups, rollout)
        if not self.sampler.synced_engine.engine.recompute_cache:
            nowhere = torch.zeros(rollout.token_ids.shape, dtype=torch.bool)
            rollout.stale_cache = with_sampled(nowhere, groups, lambda completion: completion.stale_cache)
        for group in groups:
            self._scoring.forget(group)
        summaries = self.summarise(rollout)
        repeats = count_repeats(group.sample_id for rank_groups in summaries for group in rank_groups)  # of all ranks
        start = sum(len(rank_groups) for rank_groups in summaries[: rank()])
        rollout.repeats = repeats[start : start + len(groups)]
        return rollout, summaries

    def round_size(self, summaries: Summaries, batch: PromptBatch) -> int:
        return len(summaries[rank()])

    def generate_reference(self, prompts: list[Prompt], seeds: list[list[int]]) -> Scores | None:
        """Score new completions of the reference, after what runs has ended: it needs the policy's weights."""
        while self._running:
            wait([future for future, _ in self._running])
            self._begin_again()
        scores = super().generate_reference(prompts, seeds)
        self.sync_weights(None)
        return scores

    def sync_weights(self, prompts: list[Prompt] | None) -> None:
        self.wait()
        super().sync_weights(prompts)
        self._version = self.module.updates

    def _log_queue(self, states: list[GroupState]) -> None:
        """Keep metrics of the groups before an iteration.

        Collective: call it on every rank.
        """
        lengths = self._lengths
        self._lengths = []
        counts = gather_objects((sum(lengths), len(lengths), self._dropped))
        total, count, dropped = (sum(numbers) for numbers in zip(*counts, strict=True))
        idle = self._idle_seconds
        self._idle_seconds = 0.0
        self._dropped = 0
        self.metrics |= {
            "time/engine_idle": idle,
            "rollout/queue/running": float(sum(not state.finished for state in states)),
            "rollout/queue/finished": float(sum(state.finished for state in states)),
            "rollout/queue/dropped": float(dropped),
            "rollout/queue/finished_length": total / count if count else math.nan,
        }

    @property
    def generation_seconds(self) -> float:
        """Seconds since the last iteration had its groups."""
        return self._seconds_of_generation

    # ---- start and end ------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return what is finished and what has to be generated again.

        Collective: call it on every rank.
        """
        self.wait()
        saved_groups: list[dict[str, Any]] = []
        for group in self._groups:
            finished = group.completions is not None  # a thread may finish it right after
            if finished:
                self._settle(group)
            saved_groups.append(
                {
                    "number": group.number,
                    "sample_id": group.prompt.sample.id,
                    "started": group.started,
                    "completions": saved(group.completions) if finished else None,
                }
            )
        groups_of_ranks, lengths_of_ranks = zip(*gather_objects((saved_groups, self._lengths)), strict=True)
        groups = sorted(chain(*groups_of_ranks), key=lambda group: group["number"])
        lengths = [*chain(*lengths_of_ranks)]
        return super().state_dict() | {"queue": {"admitted": self._admitted, "groups": groups, "lengths": lengths}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.reference_rewards.load_state_dict(state["reference"])
        self._saved = state.get("queue")

    def _take_up_saved(self) -> None:
        """Go on with the groups of the checkpoint that the run was resumed from."""
        if self._saved is None:
            return
        queue = self._saved
        self._saved = None
        self._admitted = queue["admitted"]
        for values in queue["groups"][rank() :: world_size()]:
            group = self._queued(values["number"], self.data.stream.by_id[values["sample_id"]])
            if (
                values["completions"] is not None and self._iterations_left(values["started"]) >= 0
            ):  # staleness may be lower
                group.started = values["started"]
                group.has_versions = True
                self._finish(group, [Completion(**fields) for fields in values["completions"]])
        self._begin([group for group in self._groups if group.completions is None])
        self._lengths = queue["lengths"] if rank() == 0 else []

    def close(self) -> None:
        """Wait for what runs in this process, and score no more."""
        super().close()
        self.wait()
        self._scoring.close()


def even_places(ranks: list[int], world: int) -> list[int]:
    """Return which rank each group goes to so that all get as many, up to one; as few as possible move.

    Args:
        ranks: where each group is.
        world: number of ranks.
    """
    room = []
    for r in range(world):
        room.append(len(ranks) * (r + 1) // world - len(ranks) * r // world)
    places: list[int | None] = []
    for r in ranks:
        stays = room[r] > 0
        room[r] -= stays
        if stays:
            places.append(r)
        else:
            places.append(None)
    free = iter([r for r in range(world) for _ in range(room[r])])
    return [next(free) if place is None else place for place in places]


def versions_of(groups: list[QueuedGroup], rollout: Rollout) -> Tensor:
    """Return the version of the weights that sampled each token (B, T); elsewhere the one its group began with."""
    started = []
    for group in groups:
        for _ in group.completions or []:
            started.append(group.started)
    versions = torch.tensor(started)[:, None].repeat(1, rollout.token_ids.shape[1])
    return with_sampled(versions, groups, lambda completion: [int(version) for version in completion.labels])


def with_sampled(values: Tensor, groups: list[QueuedGroup], values_of: Callable[[Completion], Sequence[int]]) -> Tensor:
    """Set the (B, T) values of sampled tokens to those that `values_of` gives for a completion, if any; return them."""
    for row, completion in enumerate(completion for group in groups for completion in group.completions or []):
        numbers = values_of(completion)
        if numbers:
            values[row, torch.tensor(completion.from_model).nonzero().flatten()] = torch.tensor(numbers)
    return values


def saved(completions: list[Completion] | None) -> list[dict[str, Any]] | None:
    """Return finished completions as a checkpoint stores them; None = generate them again, as episodes always are."""
    if completions is None or any(completion.turns or completion.outcome for completion in completions):
        return None
    return [vars(completion) for completion in completions]
