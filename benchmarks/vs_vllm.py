"""Tokens per second of a rollout against bare vLLM, on one engine, alternating in one process.

rollout: what the RolloutCallback does between the weight sync and the reward: `engine.generate` with one seed per
completion, decoding of the texts, packing into Completions and padded tensors. bare: `llm.generate` on the same LLM
with inputs and SamplingParams (seeds, log-probabilities) of the same meaning, made beforehand. ratio = the rollout's
median tokens/s over bare vLLM's. Both sample the same tokens, which is checked in fp32.
"""

from __future__ import annotations

import time
from statistics import median
from typing import Any

import passive  # noqa: F401
from common import MatmulRate, make_parser, print_result, print_table, say

SUMS = {"low": 1, "high": 9, "held_out": 0}


def parse() -> Any:
    parser = make_parser(__doc__, precision=True, rate=True)
    parser.add_argument("--model", default="smollm2", help="smollm2, a model folder, or a hub id")
    parser.add_argument("--prompts", type=int, default=8, help="different prompts")
    parser.add_argument("--group-size", type=int, default=8, help="completions per prompt")
    parser.add_argument("--max-tokens", type=int, default=24, help="tokens per completion at most")
    parser.add_argument("--rounds", type=int, default=10, help="turns of each; medians are reported")
    return parser.parse_args()


def ask(engine: Any, prompts: list[Any], sampling: Any, seeds: list[list[int]]) -> tuple[list[Any], list[Any]]:
    """Return inputs and SamplingParams of a bare `llm.generate` that samples the same as the rollout."""
    from vllm import SamplingParams

    inputs, params = [], []
    for prompt, numbers in zip(prompts, seeds, strict=True):
        for seed in numbers:
            inputs.append({"prompt_token_ids": prompt.token_ids})
            params.append(
                SamplingParams(
                    temperature=sampling.temperature,
                    max_tokens=sampling.max_tokens,
                    seed=seed,
                    logprobs=0,
                    stop_token_ids=list(engine._context.policy.eos_token_ids),
                    detokenize=False,
                )
            )
    return inputs, params


def main() -> None:
    options = parse()
    import torch
    from transformers import AutoTokenizer

    from lit_rlvr.datamodules import Arithmetic
    from lit_rlvr.datamodules.reading.stream import START_CURSOR
    from lit_rlvr.engines.base import EngineContext
    from lit_rlvr.engines.vllm import VLLMEngine
    from lit_rlvr.policy.loading import load_policy
    from lit_rlvr.policy.sources import resolve_model
    from lit_rlvr.rollout.generate import completion_seeds
    from lit_rlvr.sampling import Sampling
    from lit_rlvr.types import pad_completions

    folder = resolve_model(options.model)
    policy, tokenizer = load_policy(folder), AutoTokenizer.from_pretrained(folder)
    data = Arithmetic(**SUMS, prompts_per_rollout=options.prompts)
    data.tokenizer = tokenizer
    data.setup("fit")
    prompts, _ = data.stream.take(options.prompts, START_CURSOR)
    sampling = Sampling(max_tokens=options.max_tokens)
    dtype = torch.float32 if options.precision == "fp32" else torch.bfloat16
    engine, sequences = VLLMEngine(), options.prompts * options.group_size
    longest = data.reading.max_prompt_tokens + options.max_tokens
    engine.start(EngineContext(folder, policy, tokenizer, longest, sequences, 0, dtype))
    engine.sync(policy)
    llm = engine._llm
    rate = MatmulRate(options.precision, sizes=options.matmul_sizes)

    rates: dict[str, list[float]] = {"rollout": [], "bare vLLM": []}
    for k in range(-1, options.rounds):  # the first round warms up
        rate.measure(1)
        seeds = completion_seeds(prompts, [0] * len(prompts), options.group_size, "rollout", k + 1)
        asked = ask(engine, prompts, sampling, seeds)
        llm.reset_prefix_cache()  # as after a weight sync
        started = time.perf_counter()
        completions = engine.generate(prompts, sampling, seeds)
        pad_completions(completions)
        ours_ended = time.perf_counter()
        llm.reset_prefix_cache()
        bare_began = time.perf_counter()
        outputs = llm.generate(*asked, use_tqdm=False)
        bare_ended = time.perf_counter()
        ours = [completion.token_ids for group in completions for completion in group]
        bare = [tuple(output.outputs[0].token_ids) for output in outputs]
        if options.precision == "fp32" and ours != bare:
            raise SystemExit("bare vLLM sampled other tokens: this comparison is void")
        if k >= 0:
            rates["rollout"].append(sum(map(len, ours)) / (ours_ended - started))
            rates["bare vLLM"].append(sum(map(len, bare)) / (bare_ended - bare_began))
            say(f"round {k + 1}: " + ", ".join(f"{name} {values[-1]:.0f} tokens/s" for name, values in rates.items()))
    engine.close()
    medians = {name: median(values) for name, values in rates.items()}
    print_table(("", "tokens/s", "slowest", "fastest"), [(n, medians[n], min(v), max(v)) for n, v in rates.items()])
    print_result(
        ratio=round(medians["rollout"] / medians["bare vLLM"], 4),
        precision=options.precision,
        tokens_per_second={name: round(value, 1) for name, value in medians.items()},
        matmul_gflops=round(rate.best / 1e9, 1),
    )


if __name__ == "__main__":
    main()
