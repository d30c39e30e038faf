"""An agent in plain Python: it asks the model several times, and reports the reward of what it got."""

import http.client
import json
import os
import sys
from typing import Any
from urllib.parse import urlsplit

TASK = json.load(sys.stdin)
URL = urlsplit(os.environ["OPENAI_BASE_URL"])
HEADERS = {"authorization": f"Bearer {os.environ['OPENAI_API_KEY']}", "content-type": "application/json"}


def post(path: str, body: Any, **headers: str) -> tuple[int, Any]:
    """Post JSON to the endpoint; return the status and the answer."""
    connection = http.client.HTTPConnection(URL.hostname or "", URL.port, timeout=60)
    connection.request("POST", f"{URL.path}{path}", json.dumps(body), HEADERS | headers)
    response = connection.getresponse()
    return response.status, json.loads(response.read())


def ask(messages: list[Any], **options: Any) -> dict[str, Any]:
    """Return the model's message, which is added to the messages."""
    status, answer = post("/chat/completions", {"model": "m", "messages": messages, **options})
    assert status == 200, answer
    message = answer["choices"][0]["message"]
    messages.append(message)
    return message


def several_turns(turns: int) -> str:
    messages = list(TASK["messages"])
    said = [ask(messages)["content"]]
    for turn in range(1, turns):
        messages.append({"role": "user", "content": f"{turn}?"})
        said.append(ask(messages)["content"])
    return "".join(said)


if __name__ == "__main__":
    text = several_turns(int(sys.argv[1]) if sys.argv[1:] else 3)
    print(json.dumps({"reward": text.count("1") + 0.25 * ("2" in text)}))
