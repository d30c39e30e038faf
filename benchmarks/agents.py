"""Measures what the run spends on a call of an agent; with `--vllm`, what vLLM's own OpenAI server spends on it, too.

`--agents` programs make `--calls` calls each, one after the other in a conversation that grows, all at once.

- door: the endpoint of a run on an engine that samples nothing, so that all of the time is the endpoint's.
- vLLM in the run: the endpoint on `VLLMEngine`, with a tiny Llama that samples `TOKENS` tokens.
- vLLM's server: the same calls to vLLM's own `/v1/chat/completions`, with the same model.

cpu: milliseconds of processor time for each call, of the processes that serve it. wall: milliseconds of the whole
divided by the number of calls. Both are medians of `--rounds`, which take turns, so that other work on the machine
hinders all alike.
"""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import passive  # noqa: F401
from common import make_parser, print_result, print_table, say

TOKENS = 8
"""Tokens of a completion."""
LONGEST = 65_536
"""Tokens of an episode."""
START_SECONDS = 600
Round = Callable[[int], tuple[float, float]]
"""Plays the round of a number; returns the seconds (cpu, wall) that it took."""


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--agents", type=int, default=32)
    parser.add_argument("--calls", type=int, default=20, help="of each agent")
    parser.add_argument("--rounds", type=int, default=5, help="how often each is measured, in turn")
    parser.add_argument("--vllm", action="store_true", help="also measure vLLM in the run, and its server")
    parser.add_argument("--play", type=int, help="act as an agent that makes this many calls")
    options = parser.parse_args()
    if options.play:
        play(options.play)
        return
    from lit_rlvr.policy.loading import load_policy
    from lit_rlvr.policy.tiny import save_tiny_llm

    with tempfile.TemporaryDirectory() as folder, ExitStack() as opened:
        model = save_tiny_llm(Path(folder) / "model")
        policy = load_policy(str(model))
        contestants: dict[str, Round] = {"door": opened.enter_context(in_run(model, policy, Silent(), options))}
        if options.vllm:
            engine = vllm_engine(model, policy, options.agents)
            contestants["vLLM in the run"] = opened.enter_context(in_run(model, policy, engine, options))
            contestants["vLLM's server"] = opened.enter_context(on_server(model, options))
        measured: dict[str, list[tuple[float, float]]] = {name: [] for name in contestants}
        for number in range(options.rounds + 1):
            for name, play_round in contestants.items():
                spent = play_round(number)
                if number > 0:  # the first starts the programs
                    measured[name].append(milliseconds(spent, options.agents * options.calls))
                    say(f"{name}: {measured[name][-1]} ms")
    rows = {}
    for name, rounds in measured.items():
        cpu, wall = zip(*rounds, strict=True)
        rows[name] = (median(cpu), median(wall), min(wall), max(wall))
    headings = ("", "cpu, ms a call", "wall, ms a call", "least wall", "most wall")
    print_table(headings, [(name, *row) for name, row in rows.items()])
    print_result(agents=options.agents, calls=options.calls, milliseconds={n: list(row) for n, row in rows.items()})


def play(calls: int) -> None:
    """Play one episode after another, as the tasks come: `calls` questions in one conversation."""
    for line in sys.stdin:
        task = json.loads(line)
        url = urlsplit(task["base_url"])
        connection = http.client.HTTPConnection(url.hostname or "", url.port, timeout=START_SECONDS)
        headers = {"authorization": f"Bearer {task['api_key']}", "content-type": "application/json"}
        messages = [{"role": "system", "content": "You are brief."}]
        for number in range(calls):
            messages.append({"role": "user", "content": f"What is {number} + {task['seed'] % 97}?"})
            body = {"model": "model", "messages": messages, "max_tokens": TOKENS}
            connection.request("POST", f"{url.path}/chat/completions", json.dumps(body), headers)
            answer = json.loads(connection.getresponse().read())
            messages.append({"role": "assistant", "content": answer["choices"][0]["message"]["content"]})
        print(json.dumps({"reward": 1.0}), flush=True)


def agent_line(calls: int) -> list[str]:
    """Return the command line of an agent."""
    return [sys.executable, __file__, "--play", str(calls)]


class Silent:
    """An engine that answers at once, always the same."""

    takes_stop = True

    def generate(self, prompts: Any, sampling: Any, seeds: Any, done: Any, turns: Any) -> Any:
        from lit_rlvr.policy.tiny import LLM_SPECIALS
        from lit_rlvr.types import Completion

        end = LLM_SPECIALS.index("<|im_end|>")
        ids = (*[len(LLM_SPECIALS) + ord(letter) for letter in "It is 7"], end)
        return [[Completion("It is 7", ids, "stop", (0.0,) * len(ids))] for _ in prompts]

    def close(self) -> None:
        pass


def vllm_engine(model: Path, policy: Any, sequences: int) -> Any:
    """Return a started `VLLMEngine` with the model's weights."""
    from lit_rlvr.engines.base import EngineContext
    from lit_rlvr.engines.vllm import VLLMEngine
    from lit_rlvr.policy.loading import load_tokenizer

    say("starting vLLM in this process")
    engine = VLLMEngine(enforce_eager=True)
    engine.start(EngineContext(str(model), policy, load_tokenizer(str(model)), 2048, sequences, 0))
    engine.sync(policy)
    return engine


@contextmanager
def in_run(model: Path, policy: Any, engine: Any, options: Any) -> Iterator[Round]:
    """Yield what plays a round of calls that the endpoint of a run answers."""
    from lit_rlvr.agents.play import AgentEpisodes
    from lit_rlvr.datamodules.reading.chat import Chat
    from lit_rlvr.environments import Agent
    from lit_rlvr.policy.loading import load_tokenizer
    from lit_rlvr.sampling import Sampling
    from lit_rlvr.types import Prompt, Sample

    reading = SimpleNamespace(max_prompt_tokens=LONGEST)
    data: Any = SimpleNamespace(name="tiny", chat=Chat(), tokenizer=load_tokenizer(str(model)), reading=reading)
    sampling = Sampling(max_tokens=TOKENS, max_turns=options.calls, max_episode_tokens=LONGEST)
    agent = Agent(agent_line(options.calls), workers=options.agents, timeout=START_SECONDS)
    episodes = AgentEpisodes(agent, policy.eos_token_ids, str(model), 0, engine.takes_stop)
    prompts = [Prompt(Sample("row", "?", ""), [1])]

    def play_round(number: int) -> tuple[float, float]:
        seeds = [[100 * number + agent_number for agent_number in range(options.agents)]]
        began, used = time.perf_counter(), time.process_time()
        _, groups = episodes.play(prompts, sampling, seeds, None, data, engine.generate, True)
        spent = time.process_time() - used, time.perf_counter() - began
        calls = sum(len(row.turns) for row in groups[0])
        assert calls == options.agents * options.calls, f"{calls} calls were answered: {groups[0][0].outcome}"
        return spent

    try:
        yield play_round
    finally:
        episodes.close()
        engine.close()


@contextmanager
def on_server(model: Path, options: Any) -> Iterator[Round]:
    """Yield what plays a round of calls that vLLM's own server answers."""
    import psutil

    from lit_rlvr.common.sockets import open_socket

    say("starting vLLM's server")
    with open_socket("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    line = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--port", str(port)]
    line += ["--served-model-name", "model", "--max-model-len", "2048", "--enforce-eager", "--dtype", "float32"]
    variables = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1"}
    server = subprocess.Popen(line, env=variables, stdout=sys.stderr)
    agents: list[subprocess.Popen[str]] = []
    try:
        wait_for(port, server)
        root = psutil.Process(server.pid)
        agents += [
            subprocess.Popen(agent_line(options.calls), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for _ in range(options.agents)
        ]

        def seconds_used() -> float:
            times = [process.cpu_times() for process in (root, *root.children(recursive=True))]
            return sum(spent.user + spent.system for spent in times)

        def play_round(number: int) -> tuple[float, float]:
            began, used = time.perf_counter(), seconds_used()
            for seed, agent in enumerate(agents, 100 * number):
                task = {"base_url": f"http://127.0.0.1:{port}/v1", "api_key": "none", "seed": seed}
                agent.stdin.write(json.dumps(task) + "\n")  # type: ignore[union-attr]
                agent.stdin.flush()  # type: ignore[union-attr]
            for agent in agents:
                agent.stdout.readline()  # type: ignore[union-attr]
            return seconds_used() - used, time.perf_counter() - began

        yield play_round
    finally:
        for agent in agents:
            agent.kill()
        server.terminate()
        server.wait()


def wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    """Wait until a server answers."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        with suppress(OSError):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return
        time.sleep(1)
    raise SystemExit("vLLM's server did not start")


def milliseconds(spent: tuple[float, float], calls: int) -> tuple[float, float]:
    """Return seconds (cpu, wall) of some calls as milliseconds of one."""
    cpu, wall = spent
    return round(1000 * cpu / calls, 2), round(1000 * wall / calls, 2)


if __name__ == "__main__":
    main()
