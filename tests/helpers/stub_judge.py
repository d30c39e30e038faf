"""A judge's server that judges by a rule and has faults on request."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

from aiohttp import web
from PIL import Image

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
        faults: what it does with the next requests: a status, `broken` (no JSON), `slow`, `drips` (a byte now and
            then), `cut` (it hangs up), `Raw` (a body), or parts of the reply as a dict.
        every: what it does with every request that has no other fault.
        calls, most: numbers of requests, and of those at one time.
        bodies, headers: of all requests.
    """

    def __init__(self, rule: Callable[[str, dict[str, list[Any]]], Any], seconds: float = 0.0) -> None:
        self.rule, self.seconds = rule, seconds
        self.faults: list[Any] = []
        self.every: Any = None
        self.calls = self.now = self.most = 0
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []

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
        self.bodies.append(body)
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        self.calls, self.now = self.calls + 1, self.now + 1
        self.most = max(self.most, self.now)
        fault = self.faults.pop(0) if self.faults else self.every
        await asyncio.sleep(30 if fault == "slow" else self.seconds)
        self.now -= 1
        if fault == "cut" and request.transport:
            request.transport.abort()
        if isinstance(fault, int):
            return web.json_response({"error": {"message": "not now"}}, status=fault, headers={"retry-after-ms": "1"})
        if isinstance(fault, Raw):
            return web.Response(text=fault.text, status=fault.status, content_type=fault.content_type)
        if fault == "drips":
            return await drip(request, json.dumps(self.reply(body)))
        reply = self.reply(body)
        if isinstance(fault, dict):
            changed(reply, fault)
        return web.json_response(text='{"choices": [' if fault == "broken" else json.dumps(reply))

    def reply(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return the response to a request: a rating by the rule; from a reward model, the last message's length.

        It fills in the highest values in the question at the start.
        """
        text = "\n".join(text_of(message["content"]) for message in body["messages"])
        usage = {"prompt_tokens": len(text), "completion_tokens": 7, "total_tokens": len(text) + 7}
        if "use_activation" in body:
            return {"data": [{"probs": [float(len(body["messages"][-1]["content"]))]}], "usage": usage}
        fields = fields_of(body, text)
        said = {name: values[-1] for name, values in fields.items()} if TRIAL in text else self.rule(text, fields)
        if not isinstance(said, str):
            said = json.dumps({"reason": "so"} | (dict.fromkeys(fields, said) if isinstance(said, int) else said))
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": said}}
        return {
            "id": "1",
            "object": "chat.completion",
            "created": 0,
            "model": body["model"],
            "choices": [choice],
            "usage": usage,
        }


def text_of(content: Any) -> str:
    """Return the text of a message, which may have images."""
    if isinstance(content, str):
        return content
    return "\n".join(part["text"] for part in content if part["type"] == "text")


def pictures_in(body: dict[str, Any]) -> list[Image.Image]:
    """Return the images in a request, decoded."""
    parts = [part for message in body["messages"] for part in message["content"] if isinstance(part, dict)]
    urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    assert all(url.startswith("data:image/png;base64,") for url in urls)
    return [Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) for url in urls]


TRIAL = "What is 1 + 0?"
"""The question at the start."""


class Raw(NamedTuple):
    """A body that is sent as it is."""

    text: str
    status: int = 200
    content_type: str = "application/json"


def changed(reply: dict[str, Any], fault: dict[str, Any]) -> None:
    """Change the parts of a reply that a fault names: `usage`, `finish_reason`, and those of the message."""
    (choice,) = reply["choices"]
    for name, value in fault.items():
        place = reply if name == "usage" else choice if name == "finish_reason" else choice["message"]
        place[name] = value


def fields_of(body: dict[str, Any], text: str) -> dict[str, list[Any]]:
    """Return the fields that a question asks for, by its schema or else by its text."""
    if "response_format" in body:
        properties = body["response_format"]["json_schema"]["schema"]["properties"]
        return {name: kind["enum"] for name, kind in properties.items() if "enum" in kind}
    form = re.search(r", where (.*)\.", text)
    assert form, text
    fields = dict(part.split(" is one of ") for part in form[1].split("; "))
    return {
        name: [int(value) if value.isdigit() else value for value in values.split(", ")]
        for name, values in fields.items()
    }


async def drip(request: web.Request, text: str) -> web.StreamResponse:
    """Send a response whose bytes come too late one by one, though none is long in coming."""
    response = web.StreamResponse(headers={"content-type": "application/json"})
    await response.prepare(request)
    with suppress(ConnectionError):
        for character in text:
            await response.write(character.encode())
            await asyncio.sleep(0.05)
    return response
