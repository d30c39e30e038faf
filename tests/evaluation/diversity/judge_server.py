"""A real HTTP server on this machine that imitates `/v1/chat/completions`."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Answer:
    """What the server sends; a str is the text of a chat completion."""

    body: str
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0


def completion(content: Any) -> str:
    message = {"role": "assistant", "content": content}
    return json.dumps({"id": "1", "object": "chat.completion", "created": 0, "model": "m",
                       "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})  # fmt: skip


@dataclass
class JudgeServer:
    """Answers by `respond(message, attempt)`, and remembers what it was asked."""

    respond: Callable[[str, int], Answer | str]
    url: str = ""
    requests: list[tuple[dict[str, str], dict[str, Any]]] = field(default_factory=list)
    attempts: Counter[str] = field(default_factory=Counter)
    at_once: int = 0
    most_at_once: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, path: str, headers: dict[str, str], request: dict[str, Any]) -> Answer:
        message = request["messages"][0]["content"]
        with self.lock:
            self.requests.append((headers, request))
            self.attempts[message] += 1
            attempt = self.attempts[message]
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        answer = self.respond(message, attempt) if path == "/v1/chat/completions" else Answer("", 404)
        answer = Answer(completion(answer)) if isinstance(answer, str) else answer
        time.sleep(answer.delay)
        with self.lock:
            self.at_once -= 1
        return answer


@contextmanager
def serve(respond: Callable[[str, int], Answer | str]) -> Iterator[JudgeServer]:
    """The server, while the context lasts."""
    judge = JudgeServer(respond)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            answer = judge.answer(self.path, {k.lower(): v for k, v in self.headers.items()}, request)
            body = answer.body.encode()
            headers = {"Content-Type": "application/json", "Content-Length": str(len(body))} | answer.headers
            try:
                self.send_response(answer.status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)
            except ConnectionError:
                self.close_connection = True  # the client had waited long enough

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    judge.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield judge
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
