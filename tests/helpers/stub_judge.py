"""A judge's server that judges by a rule and has faults on request."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from typing import Any

from aiohttp import web

from lit_rlvr.rewards.function import resolved

ANSWER = re.compile(r"\[answer(?: A)? \w+\]\n(.*?)\n\[end of answer", re.DOTALL)


def answer_in(text: str) -> str:
    """The answer in a question, or the first of two."""
    found = ANSWER.search(text)
    assert found, text
    return found[1]


class StubJudge:
    """An OpenAI-compatible server on a port of its own, in the thread of asynchronous rewards.

    Args:
        rule: (the chat's text, the fields with their possible values) -> the fields that it fills in, one number for
            all, or the text that it answers.
        seconds: how long it thinks.

    Attributes:
        faults: what it does with the next requests: a status, `broken` (no JSON), `slow` or `cut` (it hangs up).
        calls, most: numbers of requests, and of those at one time.
    """

    def __init__(self, rule: Callable[[str, dict[str, list[Any]]], Any], seconds: float = 0.0) -> None:
        self.rule, self.seconds = rule, seconds
        self.faults: list[Any] = []
        self.calls = self.now = self.most = 0

    def __enter__(self) -> StubJudge:
        resolved(self.start())
        self.url = f"http://127.0.0.1:{self.runner.addresses[0][1]}/v1"
        return self

    def __exit__(self, *_: Any) -> None:
        resolved(self.runner.cleanup())

    async def start(self) -> None:
        app = web.Application()
        app.router.add_post("/{path:.*}", self.answer)
        self.runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", 0, backlog=2048).start()

    def server(self, **options: Any) -> dict[str, Any]:
        """The options `server` of a judge that asks here."""
        return {"base_url": self.url, "model": "stub", **options}

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.calls, self.now = self.calls + 1, self.now + 1
        self.most = max(self.most, self.now)
        fault = self.faults.pop(0) if self.faults else None
        await asyncio.sleep(30 if fault == "slow" else self.seconds)
        self.now -= 1
        if fault == "cut" and request.transport:
            request.transport.abort()
        if isinstance(fault, int):
            return web.json_response({"error": {"message": "not now"}}, status=fault, headers={"retry-after-ms": "1"})
        return web.json_response(text='{"choices": [' if fault == "broken" else json.dumps(self.reply(body)))

    def reply(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return the response to a request: a rating by the rule; from a reward model, the last message's length."""
        text = "\n".join(message["content"] for message in body["messages"])
        usage = {"prompt_tokens": len(text), "completion_tokens": 7, "total_tokens": 0}
        if "use_activation" in body:
            return {"data": [{"probs": [float(len(body["messages"][-1]["content"]))]}], "usage": usage}
        properties = body["response_format"]["json_schema"]["schema"]["properties"]
        fields = {name: kind["enum"] for name, kind in properties.items() if "enum" in kind}
        said = 1 if text.startswith("Reply with") else self.rule(text, fields)
        if not isinstance(said, str):
            said = json.dumps({"reason": "so"} | (dict.fromkeys(fields, said) if isinstance(said, int) else said))
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": said}}
        return {
            "id": "1", "object": "chat.completion", "created": 0, "model": body["model"], "choices": [choice],
            "usage": usage,
        }  # fmt: skip
