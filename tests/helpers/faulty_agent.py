"""An agent that misbehaves in the way that its seed chooses; it imports little, so that hundreds start at once."""

import json
import os
import socket
import sys
from contextlib import suppress

TASK = json.loads(sys.stdin.readline())
KEY = os.environ["OPENAI_API_KEY"]
HOST, _, PORT = os.environ["OPENAI_BASE_URL"].removeprefix("http://").partition("/")[0].partition(":")
MESSAGES = [{"role": "user", "content": TASK["prompt"]}]


def send(data: bytes) -> socket.socket:
    connection = socket.create_connection((HOST, int(PORT)))
    connection.settimeout(120)
    connection.sendall(data)
    return connection


def request(path: str, body: bytes, key: str = KEY) -> bytes:
    head = f"POST /v1/{path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ncontent-length: {len(body)}\r\n"
    return head.encode() + b"connection: close\r\n\r\n" + body


def read(connection: socket.socket) -> str:
    """Return the status of an answer, once the whole of it is there."""
    data = b""
    while part := connection.recv(1 << 16):
        data += part
    connection.close()
    return data.split(b" ")[1].decode()


def chat(stream: bool = False) -> bytes:
    return request("chat/completions", json.dumps({"messages": MESSAGES, "stream": stream}).encode())


def well() -> None:
    assert read(send(chat())) == "200"


def parallel() -> None:
    assert [read(connection) for connection in (send(chat()), send(chat()))] == ["200", "200"]


def garbage() -> None:
    assert read(send(b"\x16\x03\x01 garbage\r\n\r\n")) == "400"
    well()


def ten_megabytes() -> None:
    with suppress(OSError):  # the server need not read all of it
        assert read(send(request("chat/completions", b" " * 10_000_000))) == "413"
    well()


def another_key() -> None:
    assert read(send(request("reward", b'{"reward": 1}', "another"))) == "401"
    well()


def gone_in_stream() -> None:
    connection = send(chat(stream=True))
    assert connection.recv(8)
    connection.close()
    well()


def late_reward() -> None:
    well()
    assert read(send(request("end", b'{"reward": 0.5}'))) == "200"
    assert read(send(request("reward", b'{"reward": 1}'))) == "410"


def silent() -> None:
    pass


def crash() -> None:
    well()
    os.kill(os.getpid(), 9)


MODES = [well, parallel, garbage, ten_megabytes, another_key, gone_in_stream, late_reward, silent, crash]

if __name__ == "__main__":
    MODES[TASK["seed"] % len(MODES)]()
    print(json.dumps({"reward": 0.25}))
