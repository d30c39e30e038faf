"""Groups are spread over servers by free capacity, and no completion is lost with a server."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from lit_rlvr.engines import dispatch
from lit_rlvr.engines.client import ServerError, VLLMServer
from lit_rlvr.engines.dispatch import Dispatch, Replica


class Fake(VLLMServer):
    """A server without a network: it answers a request when the test says so, unless it is dead or silent.

    Attributes:
        asked: the requests, in order. gate: set = it answers.
    """

    def __init__(self, name: str, answers: bool = True) -> None:
        super().__init__(f"http://{name}", None, timeout=0.2)
        self.asked: list[int] = []
        self.gate = asyncio.Event()
        self.dead = self.silent = False
        self.closes = 0  # how many requests lose their connection
        if answers:
            self.gate.set()

    async def complete(self, session: Any, request: dict[str, Any]) -> dict[str, Any]:
        if self.dead:
            raise ServerError(f"{self.url}: connection refused")
        self.asked.append(request["id"])
        if self.closes:
            self.closes -= 1
            error = ServerError(f"{self.url}: Server disconnected")
            error.transient = True
            raise error
        await self.gate.wait()
        if request.get("fails"):
            raise ServerError(f"{self.url}: status 500")
        return {"by": self.url, "id": request["id"]}

    async def is_healthy(self, session: Any) -> bool:
        if self.dead:
            raise ServerError(f"{self.url}: connection refused")
        return not self.silent


async def group(dispatcher: Dispatch, *ids: int, fails: bool = False) -> list[dict[str, Any]]:
    place = await dispatcher.place(len(ids))

    async def one(k: int) -> dict[str, Any]:
        answer = await dispatcher.complete(place, {"id": k, "fails": fails})
        dispatcher.release(place)
        return answer

    return await asyncio.gather(*map(one, ids))


@asynccontextmanager
async def opened(replicas: list[Replica], restore: Callable[[VLLMServer], None]) -> AsyncIterator[Dispatch]:
    dispatcher = Dispatch(replicas, restore)
    await dispatcher.open()
    try:
        yield dispatcher
    finally:
        await dispatcher.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "HEALTH_SECONDS", 0.02)


def test_groups_go_where_most_capacity_is_free_and_wait_when_none_is() -> None:
    async def run() -> None:
        one, two = Fake("one", answers=False), Fake("two", answers=False)
        async with opened([Replica(one, 4), Replica(two, 6)], lambda server: None) as dispatcher:
            groups = [asyncio.create_task(group(dispatcher, 10 * k, 10 * k + 1)) for k in range(7)]
            await until(lambda: len(one.asked) + len(two.asked) == 10)
            assert one.asked == [10, 11, 30, 31] and two.asked == [0, 1, 20, 21, 40, 41]
            one.gate.set()  # two completions leave room for the sixth group, the other two for the seventh
            await until(lambda: len(one.asked) == 8)
            two.gate.set()
            answers = await asyncio.gather(*groups)
        assert [[answer["id"] for answer in found] for found in answers] == [[10 * k, 10 * k + 1] for k in range(7)]
        assert len({answer["by"] for answer in answers[0]}) == 1, "a group shares its prompt"

    asyncio.run(run())


def test_the_others_take_over_from_a_server_that_dies_and_it_is_taken_back(
    quick: None, caplog: pytest.LogCaptureFixture
) -> None:
    restored: list[str] = []

    def restore(server: VLLMServer) -> None:
        restored.append(server.url)
        if len(restored) == 1:
            raise RuntimeError("NCCL error")

    async def run() -> None:
        one, two = Fake("one", answers=False), Fake("two")
        replicas = [Replica(one, 4), Replica(two, 3)]
        async with opened(replicas, restore) as dispatcher:
            first = asyncio.create_task(group(dispatcher, 1, 2))
            await until(lambda: len(one.asked) == 2)
            one.dead = True  # noticed by its health: its requests never end
            assert [answer["by"] for answer in await first] == ["http://two"] * 2 and sorted(two.asked) == [1, 2]
            one.dead = False
            await until(lambda: replicas[0].failure is None)
            one.gate.set()
            assert [answer["by"] for answer in await group(dispatcher, 3)] == ["http://one"]
            one.dead = True  # noticed by its answer
            assert [answer["by"] for answer in await group(dispatcher, 4)] == ["http://two"]
            assert [replica.running for replica in replicas] == [0, 0]

    asyncio.run(run())
    assert restored == ["http://one"] * 2
    assert caplog.text.count("http://one cannot be used again: RuntimeError: NCCL error") == 1
    assert caplog.text.count("http://one: connection refused; the other servers take over") == 2


def test_a_server_may_take_longer_than_its_timeout_but_not_without_a_sign_of_life(quick: None) -> None:
    async def run() -> None:
        one = Fake("one", answers=False)
        async with opened([Replica(one, 4)], lambda server: None) as dispatcher:
            waiting = asyncio.create_task(group(dispatcher, 1))
            await asyncio.sleep(3 * one.timeout)
            assert not waiting.done()
            one.silent = True
            with pytest.raises(ServerError, match="http://one has given no sign of life for"):
                await waiting

    asyncio.run(run())


def test_a_request_is_made_again_if_a_living_server_fails_it_for_a_while() -> None:
    async def run() -> None:
        one = Fake("one")
        async with opened([Replica(one, 1)], lambda server: None) as dispatcher:
            one.closes = dispatch.TRANSIENT_FAILURES
            assert [answer["id"] for answer in await group(dispatcher, 1)] == [1]
            one.closes = dispatch.TRANSIENT_FAILURES + 1
            with pytest.raises(ServerError, match="http://one: Server disconnected"):
                await group(dispatcher, 2)

    asyncio.run(run())


def test_without_servers_and_with_a_living_one_that_fails_the_rollout_ends(quick: None) -> None:
    async def run() -> None:
        one, two = Fake("one"), Fake("two")
        async with opened([Replica(one, 1), Replica(two, 1)], lambda server: None) as dispatcher:
            with pytest.raises(ServerError, match="http://one: status 500"):
                await group(dispatcher, 1, fails=True)
            one.dead = two.dead = True
            with pytest.raises(ServerError, match="http://one: connection refused; http://two: connection refused"):
                await group(dispatcher, 2)
            with pytest.raises(ServerError, match="http://two: connection refused"):
                await group(dispatcher, 3)

    asyncio.run(run())
