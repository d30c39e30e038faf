"""A discrete-event simulation of a trainer and its servers; `asynchrony.py` says which rules they follow."""

from __future__ import annotations

import heapq
import math
from collections import Counter, deque
from dataclasses import dataclass, replace
from itertools import count

import numpy as np

WAITS = ("groups", "rule", "drain")
"""Why the trainer is idle: too few groups, a group that would grow too old, an update that waits for completions."""


@dataclass(frozen=True)
class Setting:
    """The inputs of a simulation, in seconds and tokens.

    Args:
        staleness: k.
        quotas: groups that a step takes from each queue; one queue is shared by all training processes.
        capacity: completions that each queue may send at once to each server.
        places: completions that a server runs at once; others wait there.
        lengths: completion tokens, (groups, group size), in the order in which groups start.
        decode: seconds of a decoding step, and of each completion in it.
        train: seconds of a token on all training GPUs together.
        prompt: tokens of a prompt; a group computes it once.
        prefill: seconds of a token that a server computes for its KV cache.
        update: seconds of a weight update, in which nothing else happens.
        partial: whether completions go on after an update.
    """

    staleness: int
    quotas: tuple[int, ...]
    capacity: tuple[tuple[int, ...], ...]
    places: int
    lengths: np.ndarray
    decode: tuple[float, float]
    train: float
    prompt: int = 0
    prefill: float = 0.0
    update: float = 0.0
    partial: bool = True

    @property
    def bound(self) -> float:
        """Seconds of a step if the busier side never waits, and servers always run all the completions they can."""
        groups, servers = sum(self.quotas), len(self.capacity[0])
        tokens = groups * self.lengths.mean() * self.lengths.shape[1]
        generation = tokens * (self.decode[0] / self.places + self.decode[1]) + groups * self.prompt * self.prefill
        return self.update + max(self.train * (groups * self.prompt + tokens), generation / servers)


def shares_of(groups: int, processes: int) -> tuple[int, ...]:
    """Return the groups of each process, as equal as possible."""
    return tuple(groups * (k + 1) // processes - groups * k // processes for k in range(processes))


def without_shared_queue(setting: Setting, trainers: int) -> Setting:
    """Give each training process its prompts, and its part of each server's places, as `VLLMServerEngine` does."""
    capacity = ((math.ceil(setting.places / trainers),) * len(setting.capacity[0]),) * trainers
    return replace(setting, quotas=shares_of(sum(setting.quotas), trainers), capacity=capacity)


@dataclass(eq=False)
class Group:
    """A group that has started.

    Args:
        version: of the weights at its start.
        running: completions that are not over yet.
        versions: sum over the tokens of the version that each was sampled with.
    """

    queue: int
    version: int
    lengths: np.ndarray
    running: int
    versions: float = 0.0


class Server:
    """Decodes its running completions in lockstep: `tokens` counts the tokens of one that never ends."""

    def __init__(self, decode: tuple[float, float], places: int) -> None:
        self._fixed, self._each = decode
        self._places = places
        self._now = self._paused_until = self.tokens = 0.0
        self._order = count()
        self.waiting: deque[tuple[float, Group]] = deque()  # length, group
        self.running: list[tuple[float, int, float, Group]] = []  # a heap: `tokens` at the end, order, at the start
        self.at_updates: list[float] = []  # `tokens` at the update from version 0, 1, ...

    @property
    def _step_seconds(self) -> float:
        return self._fixed + self._each * len(self.running)

    def next_end(self) -> float:
        """Return when the next completion ends."""
        if not self.running:
            return math.inf
        return max(self._now, self._paused_until) + (self.running[0][0] - self.tokens) * self._step_seconds

    def start(self, group: Group) -> None:
        self.waiting.extend((length, group) for length in group.lengths)
        self._fill()

    def _fill(self) -> None:
        while self.waiting and len(self.running) < self._places:
            length, group = self.waiting.popleft()
            heapq.heappush(self.running, (self.tokens + length, next(self._order), self.tokens, group))

    def pause(self, seconds: float) -> None:
        self._paused_until = max(self._now, self._paused_until) + seconds

    def advance(self, now: float, seconds: Counter[str]) -> list[tuple[float, Group]]:
        """Decode until `now`; return the completions that end then: `tokens` at the start, group."""
        decoding = max(0.0, now - max(self._now, self._paused_until)) if self.running else 0.0
        self.tokens += decoding / self._step_seconds if decoding else 0.0
        seconds["decoding"] += decoding
        seconds["completions"] += len(self.running) * (now - self._now)
        self._now, ended = now, []
        while self.running and self.running[0][0] <= self.tokens + 1e-6:
            ended.append(heapq.heappop(self.running)[2:])
        self._fill()
        return ended


class Simulation:
    """The trainer and its servers; `seconds` counts what each side does, `steps` the counters after each step."""

    def __init__(self, setting: Setting) -> None:
        self.setting, self.version, self.now = setting, 0, 0.0
        self.servers = [Server(setting.decode, setting.places) for _ in setting.capacity[0]]
        self.sent = [[0] * len(self.servers) for _ in setting.quotas]  # completions that run or wait there
        self.started: list[Group] = []
        self.started_by_queue = [0] * len(setting.quotas)
        self.untrained: list[Counter[int]] = [Counter() for _ in setting.quotas]  # version of the start -> groups
        self.finished: list[list[Group]] = [[] for _ in setting.quotas]  # and not yet trained
        self.trained: list[tuple[int, Group]] = []  # version of the step, group
        self.seconds: Counter[str] = Counter()
        self.steps: list[dict[str, float]] = []
        self._state, self._until = "wait", math.inf

    def run(self, steps: int) -> Simulation:
        while self.version < steps:
            self.start_groups()
            self._start_step()
            self._advance(min(self._until, *(server.next_end() for server in self.servers)))
            if self._now_due():
                self._next_state()
        return self

    def start_groups(self) -> None:
        """Start the groups that the capacity rule and the servers have room for, in turn from each queue."""
        blocked = self._state in ("drain", "update")
        while not blocked:
            blocked = True
            for queue, quota in enumerate(self.setting.quotas):
                if self.started_by_queue[queue] >= (self.setting.staleness + self.version + 1) * quota:
                    continue
                free = [a - b for a, b in zip(self.setting.capacity[queue], self.sent[queue], strict=True)]
                server = max(range(len(free)), key=free.__getitem__)
                if free[server] > 0:  # as `lit_rlvr.engines.dispatch`, for the whole group
                    self._start(queue, server)
                    blocked = False

    def _start(self, queue: int, server: int) -> None:
        lengths = self.setting.lengths[len(self.started) % len(self.setting.lengths)]
        group = Group(queue, self.version, lengths, len(lengths))
        self.started.append(group)
        self.started_by_queue[queue] += 1
        self.untrained[queue][self.version] += 1
        self.sent[queue][server] += len(lengths)
        self.servers[server].start(group)
        self._compute_prompts(server, self.setting.prompt)

    def _compute_prompts(self, server: int, tokens: float) -> None:
        self.servers[server].pause(tokens * self.setting.prefill)
        self.seconds["prefill"] += tokens * self.setting.prefill

    def _start_step(self) -> None:
        if self._state != "wait" or not self._has_enough():
            return
        taken = [sorted(groups, key=lambda group: group.version) for groups in self.finished]  # stable: by their end
        taken = [groups[:quota] for groups, quota in zip(taken, self.setting.quotas, strict=True)]
        left = [n - Counter(group.version for group in groups) for n, groups in zip(self.untrained, taken, strict=True)]
        if any(self._is_late(*queue) for queue in zip(left, self.setting.quotas, strict=True)):
            return
        for queue, groups in enumerate(taken):
            self.finished[queue] = [group for group in self.finished[queue] if group not in groups]
        self.untrained = left
        groups = [group for groups in taken for group in groups]
        self.trained += [(self.version, group) for group in groups]
        tokens = sum(self.setting.prompt + group.lengths.sum() for group in groups)
        self._state, self._until = "train", self.now + tokens * self.setting.train

    def _has_enough(self) -> bool:
        return all(len(groups) >= quota for groups, quota in zip(self.finished, self.setting.quotas, strict=True))

    def _is_late(self, left: Counter[int], quota: int) -> bool:
        """Return whether the steps after this one are too few for the groups that it leaves.

        Those of version s can be trained until version s + k. It is not enough to wait for a group that would be too
        old after this step: several old groups may end together.
        """
        oldest = self.version - self.setting.staleness
        return any(
            sum(n for version, n in left.items() if version <= oldest + steps) > steps * quota
            for steps in range(self.setting.staleness)
        )

    def _advance(self, now: float) -> None:
        state = self._state if self._state != "wait" else "rule" if self._has_enough() else "groups"
        self.seconds[state] += now - self.now
        self.now = now
        for k, server in enumerate(self.servers):
            for begin, group in server.advance(now, self.seconds):
                group.running -= 1
                group.versions += self.version * (server.tokens - begin)
                group.versions -= sum(max(0.0, at - begin) for at in server.at_updates[group.version :])
                self.sent[group.queue][k] -= 1
                if not group.running:
                    self.finished[group.queue].append(group)

    def _now_due(self) -> bool:
        drained = self._state == "drain" and not any(server.running for server in self.servers)
        return drained or self.now >= self._until

    def _next_state(self) -> None:
        if self._state == "train" and not self.setting.partial:
            self._state, self._until = "drain", math.inf
            if not self._now_due():
                return
        if self._state in ("train", "drain"):
            self._state, self._until = "update", self.now + self.setting.update
            for k, server in enumerate(self.servers):
                prompts = len(server.running) * self.setting.prompt / self.setting.lengths.shape[1]
                server.pause(self.setting.update)
                server.at_updates.append(server.tokens)
                held = prompts + sum(server.tokens - begin for _, _, begin, _ in server.running)
                self._compute_prompts(k, held)
                self.seconds["recompute"] += held * self.setting.prefill
            return
        self.version += 1
        self._state, self._until = "wait", math.inf
        self.steps.append(dict(self.seconds) | {"now": self.now, "started": len(self.started)})


def measure(setting: Setting, steps: int, warm_up: int) -> dict[str, float]:
    """Simulate, and return the means over the steps after the first `warm_up`."""
    run = Simulation(setting).run(warm_up + steps)
    before = run.steps[warm_up - 1] if warm_up else {}
    spent = {name: value - before.get(name, 0.0) for name, value in run.steps[-1].items()}
    wall, groups, servers = spent["now"], sum(setting.quotas), len(run.servers)
    trained = [(version, group) for version, group in run.trained if version >= warm_up]
    tokens = sum(group.lengths.sum() for _, group in trained)
    sampled = run.started[int(before.get("started", 0)) :]
    return {
        "seconds": wall / steps,
        "groups_per_second": steps * groups / wall,
        "trainer_idle": sum(spent.get(name, 0.0) for name in WAITS) / wall,
        "servers_idle": 1 - (spent["decoding"] + spent["prefill"]) / wall / servers,
        "capacity_used": spent["completions"] / wall / servers / setting.places,
        "rule_seconds": spent.get("rule", 0.0) / steps,
        "recompute_seconds": spent["recompute"] / steps / servers,
        "token_staleness": max(0.0, sum(v * group.lengths.sum() - group.versions for v, group in trained) / tokens),
        "group_staleness": sum(v - group.version for v, group in trained) / len(trained),
        "max_staleness": max(v - group.version for v, group in trained),
        "length_trained": tokens / len(trained) / setting.lengths.shape[1],
        "length_sampled": float(np.mean([group.lengths for group in sampled])),
        "bound": setting.bound,
        "of_bound": setting.bound / (wall / steps),
    }
