"""Trains an agent on the client of OpenAI or Anthropic, or on smolagents, until it uses its tool more often.

A tiny Llama first learns from rows, a fifth of which call the tool `times` and then give its result; the others answer
at once, and are wrong. Then GRPO trains it with the agent, which reports 0.5 for an episode with a call, and 0.5 for a
right answer. use: tool calls per episode. reward: its mean.

smolagents needs an environment of its own: `--client smolagents --python venv/bin/python`. Its agent takes one step,
and then asks for the last answer by a request of its own.
"""

from __future__ import annotations

import csv
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
from common import make_parser

PARAMETERS = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}}
TIMES: Any = {"type": "function", "function": {"name": "times", "description": "", "parameters": PARAMETERS}}
TURNS = 2
SMOLAGENTS_SYSTEM = "times"
"""The system prompt of smolagents' agent; its own, of 10,000 characters, is too long for the model."""


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--client", choices=[*CLIENTS], default="openai")
    parser.add_argument("--python", default=sys.executable, help="runs the agent; the client is installed there")
    parser.add_argument("--steps", type=int, default=30, help="steps of GRPO")
    parser.add_argument("--model", default="tiny-llama", help="where supervised training starts: a folder, or a name")
    parser.add_argument("--sft-steps", type=int, default=640, help="steps of supervised training")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/agent_tools"), help="folder; a model in it is used again"
    )
    parser.add_argument("--play", action="store_true", help="be the agent")
    options = parser.parse_args()
    if os.path.isdir(options.model):
        options.model = os.path.abspath(options.model)
    if options.play:
        play(CLIENTS[options.client])
        return
    if not (options.out / "model").exists():
        options.out.mkdir(parents=True)
        write_rows(options.out, options.client)
        fit(options.out, "shown", supervised(options.model, options.sft_steps))
        run(options.out, "export", "shown", "--to", "model")
    fit(options.out, options.client, with_agent(options.client, options.python, options.steps))
    print_use(options.out / options.client, options.client)


def write_rows(folder: Path, client: str) -> None:
    """Write the rows that show the model the tool, and those that the agent plays."""
    is_smolagents = client == "smolagents"
    rng = random.Random(0)
    shown = []
    played = []
    for number in range(8000):
        a, b = rng.randint(10, 99), rng.randint(10, 99)
        question = f"{a}*{b}="
        turns = [f"<call>times({a}, {b})</call>", str(a * b)]
        if number % 5:
            turns = [str(rng.randint(100, 9801))]
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": turns[0]}]
        if len(turns) > 1:
            messages.append({"role": "tool", "name": "times", "content": turns[1]})
            messages.append({"role": "assistant", "content": turns[1]})
        row = {"messages": messages, "tools": [TIMES]}
        if is_smolagents:
            row = smolagents_row(question, turns[0])
        shown.append(row)
        if number < 512:
            played.append({"prompt": question, "answer": str(a * b)})
    for name, rows in (("shown", shown), ("played", played)):
        lines = [json.dumps(row) + "\n" for row in rows]
        (folder / f"{name}.jsonl").write_text("".join(lines))


def smolagents_row(question: str, turn: str) -> dict[str, Any]:
    """Return a row that shows the first turn of smolagents' agent, with the tools as it describes them."""
    numbers = {"a": described("integer", "one number."), "b": described("integer", "the other number.")}
    answer = {"answer": described("string", "The final answer to the problem")}
    tools = [
        function("times", "Multiply two numbers.", numbers),
        function("final_answer", "Provides a final answer to the given problem.", answer),
    ]
    messages = [
        {"role": "system", "content": SMOLAGENTS_SYSTEM},
        {"role": "user", "content": f"New task:\n{question}"},
        {"role": "assistant", "content": turn},
    ]
    return {"messages": messages, "tools": tools}


def described(kind: str, description: str) -> dict[str, str]:
    """Return the schema of an argument."""
    return {"type": kind, "description": description}


def function(name: str, description: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return a tool."""
    parameters = {"type": "object", "properties": arguments}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


def supervised(model: str, steps: int) -> dict[str, Any]:
    """Return the config of the supervised training."""
    data = {"train": "shown.jsonl", "columns": {"prompt": "messages"}, "prompts_per_rollout": 32}
    data |= {"chat": {"system_prompt": None}}
    return {
        "model": {"class_path": "SFT", "init_args": {"model": model, "lr": 1e-3}},
        "data": {"class_path": "PromptDataModule", "init_args": data},
        "rollout": {"engine": "hf", "sampling": {"max_tokens": 64}, "evaluation": {"samples": 0}},
        "trainer": trainer("shown", steps),
    }


def with_agent(client: str, python: str, steps: int) -> dict[str, Any]:
    """Return the config of the training with the agent."""
    command = [os.path.abspath(python), os.path.abspath(__file__), "--play", "--client", client]
    agent: dict[str, Any] = {"command": command, "workers": 16}
    sampling = {"max_tokens": 32, "max_turns": TURNS, "max_episode_tokens": 128}
    if client == "smolagents":
        agent["ignore"] = ["tool_choice"]
        sampling |= {"max_observation_tokens": 1024, "max_episode_tokens": 1024}  # its second prompt is rendered anew
    data = {"train": "played.jsonl", "prompts_per_rollout": 4, "chat": {"system_prompt": None}}
    return {
        "model": {"class_path": "GRPO", "init_args": {"model": "model", "lr": 2e-4}},
        "data": {"class_path": "PromptDataModule", "init_args": data},
        "rollout": {
            "group_size": 8,
            "engine": "hf",
            "environment": {"class_path": "Agent", "init_args": agent},
            "sampling": sampling,
            "replay": {"record": 0},
        },
        "trainer": trainer(client, steps),
    }


def trainer(name: str, steps: int) -> dict[str, Any]:
    """Return the trainer's options."""
    return {"max_steps": steps, "precision": "32-true", "accelerator": "cpu", "devices": 1, "default_root_dir": name}


def fit(folder: Path, name: str, config: dict[str, Any]) -> None:
    """Run `lit-rlvr fit` with a config in a folder."""
    (folder / f"{name}.yaml").write_text(json.dumps({"seed_everything": 0} | config))
    run(folder, "fit", "--config", f"{name}.yaml")


def run(folder: Path, *arguments: str) -> None:
    """Run a command of `lit-rlvr` in a folder."""
    subprocess.run([sys.executable, "-m", "lit_rlvr", *arguments], cwd=folder, check=True, stdout=sys.stderr)


def print_use(run: Path, client: str) -> None:
    """Print the use of the tool in ten parts of a run, and a line of JSON."""
    with (run / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row.get("rollout/tool_calls")]
    size = max(len(rows) // 10, 1)
    table = []
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        use = mean(float(row["rollout/tool_calls"]) for row in part)
        reward = mean(float(row["rollout/reward"]) for row in part)
        table.append((use, reward))
        print(f"rollouts {start + 1} to {start + len(part)}: use {use:.2f}, reward {reward:.2f}")
    uses, rewards = zip(*table, strict=True)
    print(json.dumps({"client": client, "use": uses, "reward": rewards}))


# ---- the agent ------------------------------------------------------------------------------------------------


def play(ask: Callable[[dict[str, Any]], tuple[str, bool]]) -> None:
    """Play one episode after another, as the tasks come."""
    for line in sys.stdin:
        task = json.loads(line)
        answer, has_called = ask(task)
        reward = 0.5 * has_called + 0.5 * (answer.strip() == task["answer"])
        print(json.dumps({"reward": reward}), flush=True)


def ask_openai(task: dict[str, Any]) -> tuple[str, bool]:
    """Return the answer to a task, by OpenAI's client, and whether it took a call of the tool."""
    from openai import OpenAI

    client = OpenAI(base_url=task["base_url"], api_key=task["api_key"])
    messages: list[Any] = list(task["messages"])
    for turn in range(TURNS):
        answer = client.chat.completions.create(model="any", messages=messages, tools=[TIMES])
        message = answer.choices[0].message
        if not message.tool_calls:
            return message.content or "", turn > 0
        messages.append(message.model_dump(exclude_none=True))
        for call in message.tool_calls:
            result = product(json.loads(call.function.arguments))
            messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
    return "", True


def ask_anthropic(task: dict[str, Any]) -> tuple[str, bool]:
    """Return the answer to a task, by Anthropic's client, and whether it took a call of the tool."""
    from anthropic import Anthropic

    client = Anthropic(base_url=task["base_url"].removesuffix("/v1"), api_key=task["api_key"])
    tool: Any = {"name": "times", "description": "", "input_schema": PARAMETERS}
    messages: list[Any] = list(task["messages"])
    for turn in range(TURNS):
        answer = client.messages.create(model="any", max_tokens=32, messages=messages, tools=[tool])
        calls = [block for block in answer.content if block.type == "tool_use"]
        if not calls:
            return "".join(block.text for block in answer.content if block.type == "text"), turn > 0
        messages.append({"role": "assistant", "content": answer.content})
        results = [{"type": "tool_result", "tool_use_id": call.id, "content": product(call.input)} for call in calls]
        messages.append({"role": "user", "content": results})
    return "", True


def ask_smolagents(task: dict[str, Any]) -> tuple[str, bool]:
    """Return the answer to a task, by an agent of smolagents, and whether it took a call of the tool."""
    from smolagents import OpenAIServerModel, ToolCallingAgent, tool

    @tool
    def times(a: int, b: int) -> str:
        """Multiply two numbers.

        Args:
            a: one number.
            b: the other number.
        """
        return str(a * b)

    model = OpenAIServerModel("any", api_base=task["base_url"], api_key=task["api_key"])
    agent = ToolCallingAgent(tools=[times], model=model, max_steps=TURNS - 1, verbosity_level=0)
    agent.prompt_templates["system_prompt"] = SMOLAGENTS_SYSTEM
    agent.prompt_templates["final_answer"] = {"pre_messages": SMOLAGENTS_SYSTEM, "post_messages": "{{task}}"}
    answer = agent.run(task["prompt"])
    return str(answer), any(getattr(step, "observations", None) for step in agent.memory.steps)


def product(arguments: Any) -> str:
    """Return the product of two numbers."""
    try:
        return str(int(arguments["a"]) * int(arguments["b"]))
    except (KeyError, TypeError, ValueError) as error:
        return f"error: {error!r}"


CLIENTS = {"openai": ask_openai, "anthropic": ask_anthropic, "smolagents": ask_smolagents}

if __name__ == "__main__":
    main()
