"""Measures the processor time of the trainer's process for each completion that vLLM servers generate.

The servers are stubs in processes of their own: they answer as vLLM does, without a model, so that only the client is
measured. The process has `--descriptors` open files and sockets, fewer than there are completions.
"""

from __future__ import annotations

import asyncio
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import passive  # noqa: F401
from common import make_parser, print_result, print_table, say

TOKENS = 16
"""Tokens of a completion."""


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--servers", type=int, default=1)
    parser.add_argument("--completions", type=int, default=8192)
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--sequences", type=int, default=8192, help="what a server generates at once")
    parser.add_argument("--seconds", type=float, default=1.0, help="mean of a completion's seconds")
    parser.add_argument("--descriptors", type=int, default=1024)
    parser.add_argument("--stub", metavar="MODEL", help="be a server of this model")
    options = parser.parse_args()
    if options.stub:
        serve(options.stub, options.sequences, options.seconds)
        return
    from lit_rlvr.policy.tiny import save_tiny_llm

    with tempfile.TemporaryDirectory() as folder:
        model = save_tiny_llm(Path(folder) / "model")
        line = [sys.executable, __file__, "--stub", str(model)]
        line += ["--sequences", str(options.sequences), "--seconds", str(options.seconds)]
        stubs = [subprocess.Popen(line, stdout=subprocess.PIPE, text=True) for _ in range(options.servers)]
        try:
            urls = [f"http://127.0.0.1:{stub.stdout.readline().strip()}" for stub in stubs]  # type: ignore[union-attr]
            measure(model, urls, options.completions, options.group_size, options.descriptors)
        finally:
            for stub in stubs:
                stub.kill()


def measure(model: Path, urls: list[str], completions: int, group_size: int, descriptors: int) -> None:
    """Generate on the servers and print what it cost."""
    from lit_rlvr.engines.base import EngineContext
    from lit_rlvr.engines.server import VLLMServerEngine
    from lit_rlvr.engines.transfer import FileTransfer
    from lit_rlvr.policy.loading import load_policy, load_tokenizer
    from lit_rlvr.sampling import Sampling
    from lit_rlvr.types import Prompt, Sample

    policy = load_policy(str(model))
    resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))
    engine = VLLMServerEngine(urls, FileTransfer(model.parent / "weights"), timeout=60)
    engine.start(EngineContext(str(model), policy, load_tokenizer(str(model)), 64, completions, 0))
    engine.sync(policy)
    prompts = [Prompt(Sample(str(p), "", ""), [5, 6, 7], None) for p in range(completions // group_size)]
    seeds = [[p * group_size + g for g in range(group_size)] for p in range(len(prompts))]
    say(f"{completions} completions on {len(urls)} server(s)")
    began, used = time.perf_counter(), time.process_time()
    groups = engine.generate(prompts, Sampling(max_tokens=TOKENS), seeds)
    wall, cpu = time.perf_counter() - began, time.process_time() - used
    engine.close()
    right = sum(
        c.token_ids[0] == 10 + seed % 90
        for group, row in zip(groups, seeds, strict=True)
        for c, seed in zip(group, row, strict=True)
    )
    print_table(
        ["completions", "right", "seconds", "a second", "CPU ms each"],
        [[completions, right, wall, completions / wall, 1000 * cpu / completions]],
    )
    print_result(completions=completions, right=right, seconds=wall, cpu_ms=1000 * cpu / completions)


def serve(model: str, sequences: int, seconds: float) -> None:
    """Answer as vLLM's server does, on a free port, which is printed."""
    from aiohttp import web

    from lit_rlvr.engines.dispatch import raise_descriptor_limit

    raise_descriptor_limit()
    state = {"version": "none"}

    async def generate(request: web.Request) -> web.Response:
        seed = (await request.json())["sampling_params"]["seed"]
        await asyncio.sleep(random.Random(seed).expovariate(1 / seconds) if seconds else 0)
        tokens = [10 + seed % 90] * TOKENS
        choice = {
            "finish_reason": "length",
            "token_ids": tokens,
            "logprobs": {"content": [{"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": []}] * TOKENS},
            "weight_versions": [{"start": 0, "end": TOKENS, "version": state["version"]}],
        }
        return web.json_response({"choices": [choice]})

    async def other(request: web.Request) -> web.Response:
        answers: dict[str, Any] = {
            "/server_info": {
                "vllm_config": {
                    "model_config": {
                        "model": model,
                        "dtype": "torch.float32",
                        "max_model_len": 4096,
                        "logprobs_mode": "processed_logprobs",
                    },
                    "scheduler_config": {"max_num_seqs": sequences},
                    "parallel_config": {"data_parallel_size": 1},
                },
                "vllm_env": {},
            },
            "/weight_info": {"weight_version": state["version"]},
            "/is_paused": {"is_paused": False},
        }
        if request.path == "/update_weight_version":
            state["version"] = json.loads(await request.text())["new_version"]
        return web.json_response(answers.get(request.path, {}))

    async def run() -> None:
        app = web.Application()
        app.router.add_post("/inference/v1/generate", generate)
        app.router.add_route("*", "/{path:.*}", other)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, backlog=1024)
        await site.start()
        print(runner.addresses[0][1], flush=True)
        await asyncio.Event().wait()

    asyncio.run(run())


if __name__ == "__main__":
    main()
