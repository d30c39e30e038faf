"""The HTTP endpoint that agents call: OpenAI's chat completions, Anthropic's messages, and the reward of an episode.

It runs in a thread of its own. A request waits until the main thread has sampled its completions.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
import time
from collections.abc import Callable, Collection, Coroutine, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from lit_rlvr.agents.replies import Reply, anthropic_body, anthropic_events, openai_body, openai_events
from lit_rlvr.agents.requests import ChatRequest, RequestError, SamplingRules, read_anthropic, read_openai
from lit_rlvr.agents.session import SampledMessage, Session, read_reward
from lit_rlvr.common.sockets import open_socket
from lit_rlvr.types import Completion

AUXILIARY = "x-lit-rlvr-auxiliary"
"""The header that marks a call which is not part of the episode, such as one for a title."""
RETRY = "x-stainless-retry-count"
"""The header with which OpenAI's and Anthropic's clients number their retries."""
MAX_BODY = 4 << 20
"""Most bytes of a request."""
START_SECONDS = 30.0
OVER = "the episode is over"


@dataclass(eq=False)
class Job:
    """A message to sample.

    Args:
        session: the episode.
        message: the message.
        answer: gets its reply; it belongs to the endpoint's loop.
        since: when it was asked for, in seconds of `time.monotonic`.
        drop: ends its sampling; None = it cannot be ended, or has not begun.
    """

    session: Session
    message: SampledMessage
    answer: asyncio.Future[Reply]
    since: float
    drop: Callable[[], object] | None = None


@dataclass
class _Player:
    """A session, the parameters that its requests may give, and the answers to them by the digest of their bodies."""

    session: Session
    rules: SamplingRules
    answers: dict[str, asyncio.Task[list[SampledMessage]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Call:
    """A call of an agent, with the session that it belongs to."""

    request: Request
    player: _Player
    raw: bytes
    body: dict[str, Any]


Handler = Callable[[Call], Coroutine[Any, Any, Response]]
FORMS: dict[str, tuple[Callable[..., ChatRequest], Callable[..., Any], Callable[..., Iterator[str]]]] = {
    "/v1/chat/completions": (read_openai, openai_body, openai_events),
    "/v1/messages": (read_anthropic, anthropic_body, anthropic_events),
}
"""Path -> what reads a request, and what makes its answer and the stream of it."""


class Endpoint:
    """Answers the calls of agents.

    Args:
        host: address to listen at.
        port: port; 0 = any free one.
        model: the name of the model in `/v1/models`.
        rewards_turns: take rewards of single messages.

    Attributes:
        lock: guards the sessions and the jobs; it is notified whenever one of them changes.
    """

    def __init__(self, host: str, port: int, model: str, rewards_turns: bool = False) -> None:
        self.lock = threading.Condition()
        self._model = model
        self._rewards_turns = rewards_turns
        self._host = host
        self._players: dict[str, _Player] = {}
        self._past: set[str] = set()
        self._jobs: list[Job] = []
        self._taken: list[Job] = []  # those that are being sampled
        self._socket = open_socket(host, port, f"rollout.environment: Agent cannot listen at {host}:{port}")
        handlers: dict[str, Handler] = {
            **dict.fromkeys(FORMS, self._complete),
            "/v1/reward": self._reward,
            "/v1/end": self._end,
            "/v1/responses": self._unsupported,
        }
        routes = []
        for path, handler in handlers.items():
            routes.append(Route(path, partial(self._answer, handler), methods=["POST"]))
        routes.append(Route("/v1/models", partial(self._answer, self._models)))
        routes.append(Route("/v1/models/{name:path}", partial(self._answer, self._one_model)))
        application = Starlette(routes=routes, exception_handlers={404: _unknown, 405: _unknown})
        config = uvicorn.Config(
            application, log_level="critical", access_log=False, lifespan="off", timeout_keep_alive=600
        )
        self._server = uvicorn.Server(config)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="agents", daemon=True)
        self._thread.start()
        began = time.monotonic()
        while not self._server.started and time.monotonic() - began < START_SECONDS:
            time.sleep(0.001)

    @property
    def url(self) -> str:
        """Its address, without a path."""
        host = self._host
        if host in ("", "0.0.0.0", "::"):
            host = "127.0.0.1"
        if ":" in host:
            host = f"[{host}]"
        return f"http://{host}:{self._socket.getsockname()[1]}"

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._server.serve(sockets=[self._socket]))

    def close(self) -> None:
        """Stop serving."""
        self._server.should_exit = True
        self._server.force_exit = True
        self._thread.join(START_SECONDS)

    def open(self, sessions: list[Session], rules: SamplingRules) -> None:
        """Answer the calls of some sessions from now on.

        Args:
            sessions: the episodes.
            rules: the parameters that their requests may give.
        """
        with self.lock:
            for session in sessions:
                self._players[session.key] = _Player(session, rules)

    def forget(self, sessions: list[Session]) -> None:
        """Keep only the keys of some sessions, which are over."""
        with self.lock:
            for session in sessions:
                del self._players[session.key]
                self._past.add(session.key)

    def end(self, session: Session) -> None:
        """Answer no further call of a session; those that wait are refused."""
        with self.lock:
            session.is_over = True
            waiting = []
            for job in (*self._jobs, *self._taken):
                if job.session is session:
                    waiting.append(job)
            self._jobs = [job for job in self._jobs if job.session is not session]
            self._taken = [job for job in self._taken if job.session is not session]
            self.lock.notify_all()
        for job in waiting:
            self._loop.call_soon_threadsafe(_settle, job.answer, RequestError(OVER, 410))
            if job.drop is not None:
                job.drop()

    def take(self, sessions: Collection[Session], seconds_to_wait: Callable[[list[Job]], float]) -> list[Job]:
        """Return the messages to sample for some sessions, once that is due.

        Args:
            sessions: the episodes.
            seconds_to_wait: returns how long to wait for more jobs than these; 0 = take them.
        """
        with self.lock:
            while True:
                jobs = []
                for job in self._jobs:
                    if job.session in sessions:
                        jobs.append(job)
                seconds = seconds_to_wait(jobs)
                if seconds <= 0:
                    break
                self.lock.wait(seconds)
            self._jobs = [job for job in self._jobs if job.session not in sessions]
            self._taken += jobs
            return jobs

    def deliver(self, job: Job, turn: Completion) -> None:
        """Answer a request with the tokens that were sampled, once."""
        result: Reply | RequestError = RequestError(OVER, 410)
        with self.lock:
            if job.message.turn is not None:
                return
            if not job.session.is_over:
                result = job.session.finish(job.message, turn)
                self._taken.remove(job)
        self._loop.call_soon_threadsafe(_settle, job.answer, result)

    # ---- calls --------------------------------------------------------------------------------------------

    async def _answer(self, answer: Handler, request: Request) -> Response:
        """Answer a call, or say in the caller's form what is wrong with it."""
        player = None
        try:
            player = self._player(request)
            raw = await _read_body(request)
            return await answer(Call(request, player, raw, _parse(raw)))
        except RequestError as error:
            if player is not None:
                with self.lock:
                    player.session.refused += 1
            return _error(request, error)
        except ClientDisconnect:
            return Response(status_code=499)

    async def _complete(self, call: Call) -> Response:
        read, body, events = FORMS[call.request.url.path]
        asked = read(call.body, call.player.rules)
        replies = await self._sample(call, asked)
        if asked.stream:
            return StreamingResponse(events(replies, asked), media_type="text/event-stream")
        return JSONResponse(body(replies, asked))

    async def _models(self, call: Call) -> Response:
        return JSONResponse({"object": "list", "data": [self._model_body(self._model)]})

    async def _one_model(self, call: Call) -> Response:
        return JSONResponse(self._model_body(call.request.path_params["name"]))

    def _model_body(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": 0, "owned_by": "lit-rlvr"}

    async def _reward(self, call: Call) -> Response:
        reward = read_reward(call.body)
        completion_id = call.body.get("completion_id")
        if completion_id is not None and not self._rewards_turns:
            raise RequestError("completion_id: set rollout.environment: rewards_turns: true to reward messages", 501)
        for name in ("correct", "detail"):
            if completion_id is not None and call.body.get(name) is not None:
                raise RequestError(f"{name}: an episode has one, a message has a reward alone; leave it out")
        with self.lock:
            if completion_id is None:
                call.player.session.reward = reward
            else:
                call.player.session.reward_message(str(completion_id), reward.value)
        return JSONResponse({})

    async def _end(self, call: Call) -> Response:
        if "reward" in call.body:
            await self._reward(call)
        self.end(call.player.session)
        return JSONResponse({})

    async def _unsupported(self, call: Call) -> Response:
        raise RequestError("/v1/responses is not supported; use /v1/chat/completions", 501)

    def _player(self, request: Request) -> _Player:
        """Return the session that a call belongs to.

        Raises:
            RequestError: its key is that of no session, or of one that is over.
        """
        key = request.headers.get("x-api-key", "")
        if not key:
            key = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
        with self.lock:
            if key in self._past or (key in self._players and self._players[key].session.is_over):
                raise RequestError(OVER, 410)
            if key not in self._players:
                raise RequestError("the key is that of no episode; use OPENAI_API_KEY or ANTHROPIC_API_KEY", 401)
            return self._players[key]

    async def _sample(self, call: Call, asked: ChatRequest) -> list[Reply]:
        """Return the replies to a request; a client's retry of the same request gets the same replies."""
        request = call.request
        player = call.player
        digest = hashlib.sha256(request.url.path.encode() + call.raw).hexdigest()
        is_retry = request.headers.get(RETRY, "0") not in ("", "0")
        task = player.answers.get(digest)
        if task is None or not is_retry:
            is_auxiliary = request.headers.get(AUXILIARY, "") not in ("", "0", "false")
            task = asyncio.create_task(self._begin(player.session, asked, is_auxiliary))
            player.answers[digest] = task
        messages = await asyncio.shield(task)  # it goes on for a retry if this client is gone
        is_lost = await request.is_disconnected()
        with self.lock:
            for message in messages:
                message.is_lost = is_lost
        return [message.reply for message in messages if message.reply is not None]

    async def _begin(self, session: Session, asked: ChatRequest, is_auxiliary: bool) -> list[SampledMessage]:
        """Have the main thread sample the completions of a request; return them."""
        loop = asyncio.get_running_loop()
        with self.lock:
            if session.is_over:
                raise RequestError(OVER, 410)
            messages = session.begin(asked, is_auxiliary)
            jobs = [Job(session, message, loop.create_future(), time.monotonic()) for message in messages]
            self._jobs += jobs
            self.lock.notify_all()
        await asyncio.gather(*(job.answer for job in jobs))
        return messages


def _settle(future: asyncio.Future[Reply], result: Reply | RequestError) -> None:
    if future.done():  # the loop ends
        return
    if isinstance(result, RequestError):
        future.set_exception(result)
    else:
        future.set_result(result)


async def _read_body(request: Request) -> bytes:
    """Return the body of a request.

    Raises:
        RequestError: it is too large.
    """
    parts = []
    size = 0
    async for part in request.stream():
        parts.append(part)
        size += len(part)
        if size > MAX_BODY:
            raise RequestError(f"the request has more than {MAX_BODY} bytes", 413)
    return b"".join(parts)


def _parse(raw: bytes) -> dict[str, Any]:
    try:
        body = json.loads(raw or b"{}")
    except (ValueError, RecursionError):
        raise RequestError("the request is not valid JSON") from None
    if not isinstance(body, dict):
        raise RequestError("the request must be a JSON object")
    return body


async def _unknown(request: Request, error: Exception) -> Response:
    """Answer a call of a path or method that the endpoint does not have."""
    status = getattr(error, "status_code", 404)
    calls = ", ".join(f"POST {path}" for path in FORMS)
    return _error(request, RequestError(f"there is no {request.method} {request.url.path} here; use {calls}", status))


def _error(request: Request, error: RequestError) -> Response:
    """Return an error in the form of the API that was called."""
    kinds = {401: "authentication_error", 413: "request_too_large"}
    kind = kinds.get(error.status, "invalid_request_error")
    if request.url.path == "/v1/messages":
        body: dict[str, Any] = {"type": "error", "error": {"type": kind, "message": error.message}}
    else:
        body = {"error": {"message": error.message, "type": kind, "param": None, "code": error.code or None}}
    return JSONResponse(body, error.status)
