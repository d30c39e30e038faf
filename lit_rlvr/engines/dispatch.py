"""Spreads the groups of a rollout over the servers by free capacity; the others take over from a server that dies."""

from __future__ import annotations

import asyncio
import os
import resource
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from lit_rlvr.common.log import log
from lit_rlvr.engines.client import HEALTH_SECONDS, ServerError, VLLMServer
from lit_rlvr.errors import UserError, first_line

MAX_DESCRIPTORS = 65_536
"""Open files and sockets that a process asks for."""
RESERVED_DESCRIPTORS = 128
"""Those that are left for everything but requests."""
KEEP_ALIVE = 2.0
"""Seconds that an idle connection is kept: less than vLLM's server keeps it, which could close it under a request."""

TRANSIENT_FAILURES = 3
"""The most transient failures (`ServerError.transient`) of a living server after which a request is made again."""


@dataclass(eq=False)
class Replica:
    """A server, and what runs on it.

    Args:
        capacity: completions that this process may run there at once.
        failure: why it takes no requests; None = it does.
    """

    server: VLLMServer
    capacity: int
    failure: str | None = None
    running: int = 0
    requests: set[asyncio.Task[dict[str, Any]]] = field(default_factory=set)
    seen: float = field(default_factory=time.monotonic)  # the last sign of life

    @property
    def free(self) -> int:
        return self.capacity - self.running


@dataclass(eq=False)
class Placement:
    """A group's place on a server.

    Args:
        completions: those that are not over yet.
    """

    replica: Replica
    completions: int


_Waiting = tuple[int, "asyncio.Future[Replica]"]


class Dispatch:
    """Sends each group to the server with the most free capacity, from `open` to `close`.

    All completions of a group go to one server, which computes their prompt once. Requests have no deadline: what ends
    them is a server without life. It is dropped, its requests are made again to the others, and when it is back, it
    gets its weights and is used again.

    Args:
        replicas: the servers. All that take requests hold the same weights; between equal ones, the first is used.
        restore: gives a server that came back the weights that the others hold; called in a thread.

    Raises:
        ServerError: no server is left, or one that lives reports a failure.
    """

    def __init__(self, replicas: Iterable[Replica], restore: Callable[[VLLMServer], None]) -> None:
        self.replicas = list(replicas)
        self._restore = restore
        # Groups: their completions, and their replica. Those of the second queue wait for all of the first.
        self._waiting: tuple[deque[_Waiting], deque[_Waiting]] = (deque(), deque())

    async def open(self) -> None:
        """Begin to watch the servers."""
        import aiohttp

        never = aiohttp.ClientTimeout(total=None)
        connector = aiohttp.TCPConnector(limit=free_descriptors(), keepalive_timeout=KEEP_ALIVE)
        self._session = aiohttp.ClientSession(connector=connector, timeout=never)  # requests beyond the limit wait
        self._health = aiohttp.ClientSession()
        self._watch = asyncio.create_task(self._watch_health())

    async def close(self) -> None:
        """End the connections."""
        self._watch.cancel()
        await asyncio.gather(self._watch, return_exceptions=True)  # a restore that runs is finished first
        await self._session.close()
        await self._health.close()

    async def place(self, completions: int, later: bool = False) -> Placement:
        """Wait for a server with free capacity, and reserve it for a group.

        Args:
            completions: of the group.
            later: groups that come without this word go first.
        """
        replica: asyncio.Future[Replica] = asyncio.get_running_loop().create_future()
        self._waiting[later].append((completions, replica))
        self._admit()
        return Placement(await replica, completions)

    async def complete(self, place: Placement, request: dict[str, Any]) -> dict[str, Any]:
        """Return the completion that the group's server generates, or another one if that dies.

        Args:
            place: where the group is generated.
            request: see `VLLMServer.complete`.
        """
        left = TRANSIENT_FAILURES
        while True:
            replica = place.replica
            if replica.failure is None:
                task = asyncio.create_task(replica.server.complete(self._session, request))
                replica.requests.add(task)
                try:
                    return await task
                except ServerError as error:
                    left -= error.transient
                    await self._drop_if_dead(replica, error, again=error.transient and left >= 0)
                except asyncio.CancelledError:
                    if replica.failure is None or is_cancelled():
                        raise
                finally:
                    replica.requests.discard(task)
            if place.replica is replica:
                self._move(place)

    def release(self, place: Placement, completions: int = 1) -> None:
        """Free the place of completions that are over."""
        place.completions -= completions
        place.replica.running -= completions
        self._admit()

    def _admit(self) -> None:
        """Assign waiting groups, in their order, to servers with free capacity."""
        while queue := self._waiting[0] or self._waiting[1]:
            replica = self._freest()
            if replica is not None and replica.free <= 0:
                return
            completions, place = queue.popleft()
            if place.done():  # cancelled
                continue
            if replica is None:
                place.set_exception(self._nobody())
            else:
                replica.running += completions
                place.set_result(replica)

    def _move(self, place: Placement) -> None:
        """Continue a group on another server, full or not.

        Raises:
            ServerError: there is none.
        """
        replica = self._freest()
        if replica is None:
            raise self._nobody()
        place.replica.running -= place.completions
        replica.running += place.completions
        place.replica = replica

    def _freest(self) -> Replica | None:
        """Return the living server with the most free capacity, None if there is none."""
        return max(
            (replica for replica in self.replicas if replica.failure is None),
            key=lambda replica: replica.free,
            default=None,
        )

    def _nobody(self) -> ServerError:
        return ServerError("; ".join(str(replica.failure) for replica in self.replicas))

    async def _drop_if_dead(self, replica: Replica, error: ServerError, again: bool) -> None:
        """Drop a server that failed a request if it has died.

        Args:
            replica: the server.
            error: of its failed request.
            again: a server that lives is asked again.

        Raises:
            ServerError: `error`, because it lives.
        """
        if replica.failure is None:
            try:
                await replica.server.is_healthy(self._health)
            except ServerError as death:
                await self.drop(replica, str(death))
        if replica.failure is None and not again:
            raise error

    async def drop(self, replica: Replica, reason: str) -> None:
        """Use a server no more, and make its requests again on the others."""
        if replica.failure is not None:
            return
        replica.failure = reason
        if self._freest() is not None:
            log.warning("%s; the other servers take over its completions", reason)
        for request in replica.requests:
            request.cancel()
        self._admit()

    async def _watch_health(self) -> None:
        # One may be back since the last rollout.
        replicas = [replica for replica in self.replicas if replica.failure is not None]
        while True:
            await asyncio.gather(*map(self._look, replicas))
            await asyncio.sleep(HEALTH_SECONDS)
            replicas = self.replicas

    async def _look(self, replica: Replica) -> None:
        """Drop a server that has died, and take back one that lives again."""
        try:
            alive = await replica.server.is_healthy(self._health)
        except ServerError as death:
            await self.drop(replica, str(death))
            return
        silent = time.monotonic() - replica.seen
        if alive:
            replica.seen = time.monotonic()
            if replica.failure is not None:
                await self._take_back(replica)
        elif silent > replica.server.timeout:
            await self.drop(replica, f"{replica.server.url} has given no sign of life for {silent:.0f} s")

    async def _take_back(self, replica: Replica) -> None:
        restoring = asyncio.create_task(asyncio.to_thread(self._restore, replica.server))
        try:
            await asyncio.shield(restoring)
        except asyncio.CancelledError:  # nothing else may talk to the server before the thread has ended
            if await asyncio.gather(restoring, return_exceptions=True) == [None]:
                replica.failure = None
            raise
        except Exception as error:  # of any kind: it is not back
            if isinstance(error, UserError):
                reason = str(error)
            else:
                reason = first_line(error)
            if replica.failure != reason:
                log.warning("%s cannot be used again: %s", replica.server.url, reason)
            replica.failure = reason
            return
        replica.failure = None
        log.info("%s is back", replica.server.url)
        self._admit()


def is_cancelled() -> bool:
    """Return whether this task is to end, not only what it waits for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def raise_descriptor_limit() -> int:
    """Raise this process's limit of open files and sockets as far as it may be raised; return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        soft = MAX_DESCRIPTORS
    if hard == resource.RLIM_INFINITY:
        wanted = MAX_DESCRIPTORS
    else:
        wanted = min(hard, MAX_DESCRIPTORS)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return max(soft, wanted)


def free_descriptors() -> int:
    """Return how many requests this process can have open at once."""
    if os.path.isdir("/proc/self/fd"):
        open_count = len(os.listdir("/proc/self/fd"))
    else:
        open_count = RESERVED_DESCRIPTORS
    return max(1, raise_descriptor_limit() - open_count - RESERVED_DESCRIPTORS)
