"""Agents on the clients of OpenAI and Anthropic, with a tool; the argument names the client."""

import json
import os
import sys
from pathlib import Path
from typing import Any

TASK = json.loads(Path(os.environ["LIT_RLVR_TASK"]).read_text())
QUESTION = TASK["messages"][-1]["content"]
ADDS = {
    "type": "object",
    "properties": {"a": {"type": "integer", "description": "one"}, "b": {"type": "integer", "description": "another"}},
    "required": ["a", "b"],
}


def by_openai(stream: bool = False) -> str:
    from openai import OpenAI

    client = OpenAI()
    tool: Any = {"type": "function", "function": {"name": "add", "description": "Add.", "parameters": ADDS}}
    assert client.models.list().data[0].id == "tiny" and client.models.retrieve("m").id == "m"
    messages: list[Any] = [{"role": "user", "content": QUESTION}]
    while True:
        if stream:
            with client.chat.completions.stream(model="m", messages=messages, tools=[tool]) as events:
                message = events.get_final_completion().choices[0].message
        else:
            answer = client.chat.completions.create(model="m", messages=messages, tools=[tool])
            message = answer.choices[0].message
        if not message.tool_calls:
            return message.content or ""
        messages.append(message.model_dump(exclude_none=True, exclude={"parsed"}))
        for call in message.tool_calls:
            total = sum(json.loads(call.function.arguments).values())
            messages.append({"role": "tool", "tool_call_id": call.id, "content": str(total)})


def by_openai_stream() -> str:
    return by_openai(stream=True)


def by_anthropic(stream: bool = False) -> str:
    from anthropic import Anthropic

    client = Anthropic()
    tool: Any = {"name": "add", "description": "Add.", "input_schema": ADDS}
    messages: list[Any] = [{"role": "user", "content": QUESTION}]
    while True:
        options: Any = {"model": "m", "max_tokens": 40, "messages": messages, "tools": [tool], "system": "Be brief."}
        if stream:
            with client.messages.stream(**options) as events:
                answer = events.get_final_message()
        else:
            answer = client.messages.create(**options)
        if answer.stop_reason != "tool_use":
            return "".join(block.text for block in answer.content if block.type == "text")
        messages.append({"role": "assistant", "content": answer.content})
        results = [
            {"type": "tool_result", "tool_use_id": block.id, "content": str(sum(block.input.values()))}
            for block in answer.content
            if block.type == "tool_use"
        ]
        messages.append({"role": "user", "content": results})


def by_anthropic_stream() -> str:
    return by_anthropic(stream=True)


if __name__ == "__main__":
    text = globals()[f"by_{sys.argv[1]}"]()
    print(json.dumps({"reward": 1 if text == "5" else 0}))
