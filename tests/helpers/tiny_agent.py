"""An agent in plain Python, which asks the model in the way that its first argument names."""

import base64
import http.client
import json
import os
import struct
import sys
import time
import zlib
from typing import Any
from urllib.parse import urlsplit

IS_WORKER = sys.argv[2:] == ["worker"]
TASK = json.loads(sys.stdin.readline())
URL = urlsplit(os.environ["OPENAI_BASE_URL"])
KEY = os.environ["OPENAI_API_KEY"]
IDS: list[str] = []
"""Of the completions, in their order."""
PAID: list[list[float]] = []
"""The reward of each completion, and a number for what it was shown."""


def post(path: str, body: Any, key: str = "", **headers: str) -> tuple[int, Any]:
    """Post JSON, or bytes as they are, to the endpoint; return the status and the answer."""
    connection = http.client.HTTPConnection(URL.hostname or "", URL.port, timeout=60)
    named = {"authorization": f"Bearer {key or KEY}", "content-type": "application/json"} | headers
    data = body if isinstance(body, bytes) else json.dumps(body)
    connection.request("POST", f"{URL.path}{path}", data, named)
    response = connection.getresponse()
    return response.status, json.loads(response.read())


def ask(messages: list[Any], **options: Any) -> str:
    """Return the model's text; its message is added to the messages."""
    status, answer = post("/chat/completions", {"model": "m", "messages": messages, **options})
    assert status == 200, answer
    IDS.append(answer["id"])
    message = answer["choices"][0]["message"]
    messages.append(message)
    return str(message["content"])


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def turns() -> str:
    """Three turns of one conversation."""
    messages = list(TASK["messages"])
    said = [ask(messages)]
    for question in ("how?", "why?"):
        messages.append(user(question))
        said.append(ask(messages))
    return "".join(said)


def uneven() -> str:
    """One to three turns, by the seed."""
    messages = list(TASK["messages"])
    said = [ask(messages)]
    for _ in range(TASK["seed"] % 3):
        messages.append(user("how?"))
        said.append(ask(messages))
    return "".join(said)


def branches() -> str:
    """A turn that two others follow, and a conversation of its own."""
    begun = list(TASK["messages"])
    said = [ask(begun)]
    for question in ("how?", "why?"):
        said.append(ask([*begun, user(question)]))
    return "".join([*said, ask([{"role": "system", "content": "Sum up."}, user("all?")])])


def paid() -> str:
    """As `branches`, with a reward for each message but the second."""
    text = branches()
    assert post("/reward", {"completion_id": "another", "reward": 1})[0] == 404
    for number, completion_id in enumerate(IDS[-4:]):
        reward = sum(map(ord, completion_id)) % 5 / 4 * (number != 1)
        PAID.append([reward, number])
        if number != 1:
            post("/reward", {"completion_id": completion_id, "reward": 9.0})  # the last one counts
            assert post("/reward", {"completion_id": completion_id, "reward": reward})[0] == 200
    return text


def png(shade: int) -> str:
    """Return a small picture in base64."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    size = 56 + 28 * (shade > 150)
    lines = [b"\0" + bytes((shade + 7 * x + 3 * y) % 256 for x in range(size) for _ in "RGB") for y in range(size)]
    head = struct.pack(">IIBBBBB", size, size, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"".join(lines))) + chunk(b"IEND", b"")
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + body).decode()


def shown(shade: int, text: str) -> dict[str, Any]:
    """Return a message with a picture."""
    picture = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{png(shade)}"}}
    return {"role": "user", "content": [picture, {"type": "text", "text": text}]}


def pictures() -> str:
    """Two turns with a picture each, another second turn, and a conversation of its own by Anthropic's API.

    The first picture is that of the seed, halved; the other conversation begins with the same one for seeds up to 5.
    """
    for url in ("https://example.org/cat.png", "/etc/passwd", "data:image/png;base64,AAAA"):
        part = {"type": "image_url", "image_url": {"url": url}}
        status, answer = post("/chat/completions", {"messages": [{"role": "user", "content": [part]}]})
        assert status == 400 and "messages: an image " in answer["error"]["message"], answer
    begun = [shown(TASK["seed"] // 2, "One?")]
    said = [ask(begun)]
    for shade in (100, 200):
        said.append(ask([*begun, shown(shade, "Two?")]))
    source = {"type": "base64", "media_type": "image/png", "data": png(TASK["seed"] // 2 + 50 * (TASK["seed"] > 5))}
    content = [{"type": "image", "source": source}, {"type": "text", "text": "One?"}]
    body = {"messages": [{"role": "user", "content": content}], "max_tokens": 9}
    status, answer = post("/messages", body)
    assert status == 200, answer
    source["type"] = "url"
    assert post("/messages", body)[0] == 400
    return "".join(said)


def silent() -> str:
    """No call."""
    return ""


def crash() -> str:
    """A call, and an exception."""
    ask(list(TASK["messages"]))
    raise SystemExit("out of luck")


def endless() -> str:
    """A call, and no end; a process of its own stays behind."""
    ask(list(TASK["messages"]))
    if os.fork() == 0:
        os.setsid()
        with open(os.environ["PIDS"], "a") as file:
            file.write(f"{os.getpid()}\n")
    time.sleep(600)
    return ""


def refusals() -> str:
    """Calls that are refused, then one that is answered, a retry, and calls behind the end."""
    body = {"model": "m", "messages": TASK["messages"]}
    assert post("/chat/completions", body, "another")[0] == 401
    for change, name in (
        ({"temperature": 0.3}, "temperature"), ({"logit_bias": {"1": 5}}, "logit_bias"), ({"what": 1}, "what"),
        ({"tool_choice": "required"}, "tool_choice"), ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"n": 0}, "n:"), ({"messages": []}, "messages"), ({"messages": [{"role": "judge", "content": "?"}]}, "judge"),
        ({"messages": [user("long " * 2000)]}, "too long"), ({"seed": 3}, "seed"), ({"max_tokens": "x"}, "max_tokens"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "images"),
    ):  # fmt: skip
        status, answer = post("/chat/completions", body | change)
        assert status == 400 and name in answer["error"]["message"], (change, status, answer)
    assert post("/chat/completions", b"garbage \xff")[0] == 400
    assert post("/chat/completions", b"[]")[0] == 400
    assert post("/chat/completions", b" " * 10_000_000)[0] == 413
    assert post("/responses", {})[0] == 501
    status, answer = post("/embeddings", {})
    assert status == 404 and "use POST /v1/chat/completions" in answer["error"]["message"], answer
    assert post("/reward", {"reward": "high"})[0] == 400
    status, answer = post("/messages", {"messages": [user("long " * 2000)], "max_tokens": 5})
    assert status == 400 and answer["type"] == "error" and "too long" in answer["error"]["message"]
    status, first = post("/chat/completions", body)
    status, again = post("/chat/completions", body, **{"x-stainless-retry-count": "1"})
    assert first["choices"] == again["choices"] and first["id"] == again["id"]
    status, title = post("/chat/completions", body, **{"x-lit-rlvr-auxiliary": "1"})
    assert status == 200 and title["id"] != first["id"]
    assert post("/end", {"reward": 0.5})[0] == 200
    for path in ("/chat/completions", "/reward", "/end"):
        assert post(path, body)[0] == 410
    return str(first["choices"][0]["message"]["content"])


if __name__ == "__main__":
    while TASK:
        if KEY and TASK.get("api_key", KEY) != KEY:
            assert post("/reward", {"reward": 0.0})[0] == 410, "the key of an episode that is over"
        KEY = TASK.get("api_key", KEY)
        text = globals()[sys.argv[1]]()
        print("done", flush=True)
        detail = json.dumps(PAID) if PAID else str(os.getpid())
        print(json.dumps({"reward": sum(map(ord, text)) % 7 / 7, "detail": detail}), flush=True)
        TASK = json.loads(sys.stdin.readline() or "{}") if IS_WORKER else {}
