"""A judge's server that judges by a rule and has faults on request."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Callable
from typing import Any

from aiohttp import web

ANSWER = re.compile(r"\[answer(?: A)? \w+\]\n(.*?)\n\[end of answer", re.DOTALL)


def answer_in(text: str) -> str:
    """The answer in a question, or the first of two."""
    found = ANSWER.search(text)
    assert found, text
    return found[1]


class StubJudge:
    """An OpenAI-compatible server on a port of its own.

    Args:
        rule: (the chat's text, the fields with their possible values) -> the fields that it fills in, or the text that
            it answers.
        seconds: how long it thinks.

    Attributes:
        faults: what it does with the next requests: a status, `broken` (no JSON), `slow` or `cut` (it hangs up).
        calls, most: numbers of requests, and of those at one time.
    """

    def __init__(self, rule: Callable[[str, dict[str, list[Any]]], Any], seconds: float = 0.0) -> None:
        self.rule, self.seconds = rule, seconds
        self.faults: list[Any] = []
        self.calls = self.now = self.most = 0
        self.loop = asyncio.new_event_loop()

    def __enter__(self) -> StubJudge:
        ready = threading.Event()
        self.thread = threading.Thread(target=lambda: self.loop.run_until_complete(self.serve(ready)), daemon=True)
        self.thread.start()
        assert ready.wait(10)
        return self

    def __exit__(self, *_: Any) -> None:
        self.loop.call_soon_threadsafe(self.over.set)
        self.thread.join(10)

    async def serve(self, ready: threading.Event) -> None:
        self.over = asyncio.Event()
        app = web.Application()
        app.router.add_post("/{path:.*}", self.answer)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, backlog=2048, shutdown_timeout=0.1)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        ready.set()
        await self.over.wait()
        await runner.cleanup()

    def server(self, **options: Any) -> dict[str, Any]:
        """The options `server` of a judge that asks here."""
        return {"base_url": self.url, "model": "stub", **options}

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.calls += 1
        self.now += 1
        self.most = max(self.most, self.now)
        fault = self.faults.pop(0) if self.faults else None
        await asyncio.sleep(30 if fault == "slow" else self.seconds)
        self.now -= 1
        if fault == "cut":
            assert request.transport
            request.transport.abort()
        if isinstance(fault, int):
            return web.json_response({"error": {"message": "not now"}}, status=fault, headers={"retry-after-ms": "1"})
        if fault == "broken":
            return web.Response(text='{"choices": [', content_type="application/json")
        return web.json_response(self.reply(body))

    def reply(self, body: dict[str, Any]) -> dict[str, Any]:
        text = "\n".join(message["content"] for message in body["messages"])
        usage = {"prompt_tokens": len(text), "completion_tokens": 7, "total_tokens": 0}
        if "use_activation" in body:
            return {"data": [{"probs": [float(len(body["messages"][-1]["content"]))]}], "usage": usage}
        schema = body.get("response_format", {"json_schema": {"schema": {"properties": {}}}})["json_schema"]["schema"]
        fields = {name: kind["enum"] for name, kind in schema["properties"].items() if "enum" in kind}
        said = 1 if text.startswith("Reply with") else self.rule(text, fields)
        if isinstance(said, int):
            said = dict.fromkeys(fields, said)
        content = said if isinstance(said, str) else json.dumps({"reason": "so", **said})
        message = {"role": "assistant", "content": content}
        choices = [{"index": 0, "finish_reason": "stop", "message": message}]
        return {
            "id": "1", "object": "chat.completion", "created": 0, "model": body["model"], "choices": choices,
            "usage": usage,
        }  # fmt: skip
