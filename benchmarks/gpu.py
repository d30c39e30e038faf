"""A GRPO step at the shapes of Qwen2.5-1.5B on one GPU: lit-rlvr (vLLM and training) against TRL (colocated vLLM).

The weights are random (nothing is downloaded), the tokenizer has one token a byte, and the reward is a coin toss that
depends on the sampled tokens alone, so that groups are mixed as early in a real run. Random weights almost never end
a completion, so all are --max-tokens long. Each trains in a process of its own, one after the other, in bf16 with
weights and AdamW in fp32; the first step is dropped. MFU = useful FLOP/s over the GPU's best rate of large bf16
matrix products measured here, for both with the FLOPs that the result needs (prompts once per group, no
recomputation), once over the seconds of training and once over the whole step.

The command ends in one line where there is no GPU.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from statistics import median
from typing import Any

import torch
from common import MatmulRate, make_parser, print_result, print_table, say
from flops import step_flops
from training import make_rollout
from turns import Player
from workload import Workload, start, take_turns

QWEN = {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12,
        "num_key_value_heads": 2, "vocab_size": 151936, "max_position_embeddings": 32768}  # fmt: skip
TINY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 2, "vocab_size": 512, "max_position_embeddings": 1024}  # fmt: skip
TINY_SIZES = {"prompts": 2, "group_size": 4, "prompt_tokens": 96, "max_tokens": 8, "steps": 2}
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def parse() -> Any:
    parser = make_parser(__doc__)
    parser.add_argument("--steps", type=int, default=5, help="measured steps of each, besides the first")
    parser.add_argument("--prompts", type=int, default=16, help="prompts per step")
    parser.add_argument("--group-size", type=int, default=8, help="completions per prompt")
    parser.add_argument("--prompt-tokens", type=int, default=256, help="tokens of every prompt, about")
    parser.add_argument("--max-tokens", type=int, default=512, help="tokens of every completion")
    parser.add_argument("--no-trl", action="store_true", help="measure lit-rlvr alone")
    parser.add_argument("--trl-generate", action="store_true", help="let TRL generate without vLLM")
    parser.add_argument(
        "--trl", nargs="*", default=[], metavar="NAME=VALUE", help="settings of TRL's GRPOConfig (values as JSON)"
    )
    parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)  # the same path on a CPU, in a minute
    options = parser.parse_args()
    if options.tiny:
        vars(options).update(TINY_SIZES)
    elif not torch.cuda.is_available():
        parser.exit(2, "gpu.py: there is no CUDA GPU (torch.cuda.is_available() is False)\n")
    return options


def save_model(shape: dict[str, int], folder: str) -> Any:
    """A Qwen2 of random weights with a byte tokenizer as a model folder; its config and number of parameters."""
    from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

    from lit_rlvr.policy.tiny_vlm import byte_tokenizer

    special = ["<|im_start|>", "<|im_end|>"]
    byte_tokenizer(special, CHATML, pad="<|im_end|>").save_pretrained(folder)
    end = special.index("<|im_end|>")
    config = Qwen2Config(**shape, tie_word_embeddings=True, bos_token_id=None, eos_token_id=end, pad_token_id=end)
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(config)
    model.generation_config = GenerationConfig(eos_token_id=end, pad_token_id=end)
    model.save_pretrained(folder)
    return config, model.num_parameters()


def make_workload(options: Any, folder: str) -> Workload:
    device = "cpu" if options.tiny else "cuda"
    filler = options.prompt_tokens - len("[user\n][\n[assistant\n")  # the chat markup, special tokens as brackets
    question = "What is {a} + {b}? "
    vllm = {"use_vllm": True, "vllm_mode": "colocate", "vllm_gpu_memory_utilization": 0.4,
            "vllm_max_model_length": options.prompt_tokens + 64 + options.max_tokens}  # fmt: skip
    uses_vllm = device == "cuda" and not options.trl_generate
    own = {name: json.loads(value) for name, _, value in (item.partition("=") for item in options.trl)}
    return Workload(
        model=folder,
        data="Arithmetic",
        data_options={
            "held_out": 0,
            "system_prompt": None,
            "question": question.rjust(filler, "."),
            "max_prompt_tokens": options.prompt_tokens + 64,
        },
        prompts=options.prompts,
        group_size=options.group_size,
        max_tokens=options.max_tokens,
        steps=1 + options.steps,
        precision="bf16",
        device=device,
        engine="hf" if options.tiny else "vllm",
        reward="coin.Coin",
        trl_options=(vllm if uses_vllm else {}) | own,
    )


def play(name: str, workload: Workload) -> Player:
    """One contestant's whole run, alone on the machine."""
    player = start(name, workload)
    try:
        take_turns([player], workload.steps, workload.steps, 1, lambda p: True, lambda: None)
    finally:
        player.kill()
    return player


def main() -> None:
    options = parse()
    rate = MatmulRate("bf16", "cpu" if options.tiny else "cuda", (512,) if options.tiny else (4096, 8192))
    rate.measure(5)
    with tempfile.TemporaryDirectory() as folder:
        config, parameters = save_model(TINY if options.tiny else QWEN, folder)
        say(f"{parameters / 1e6:.1f} M parameters")
        workload = make_workload(options, folder)
        names = ["lit-rlvr"] if options.no_trl else ["lit-rlvr", "TRL"]
        players = [play(name, workload) for name in names]
    rate.measure(5)
    if not options.tiny:
        torch.cuda.empty_cache()
    rollout = make_rollout(
        options.prompts, options.group_size, options.prompt_tokens, options.max_tokens, config.vocab_size
    )
    flops, _ = step_flops(config, parameters, rollout)
    results = {}
    for player in players:
        steps = player.steps[1:]
        parts = {name: median(step[name] for step in steps) for name in ("seconds", "sync", "generate", "train")}
        results[player.name] = {
            **parts,
            "tokens_per_second": median(step["tokens"] / step["generate"] for step in steps),
            "mfu_train": flops / parts["train"] / rate.best,
            "mfu_step": flops / parts["seconds"] / rate.best,
            "peak_gpu_memory_mb": max(step["peak_gpu_memory_mb"] for step in player.steps),
        }
    print_table(("", *results["lit-rlvr"]), [(name, *result.values()) for name, result in results.items()])
    seconds = {name: result["seconds"] for name, result in results.items()}
    ratio = {} if options.no_trl else {"ratio_step": round(seconds["TRL"] / seconds["lit-rlvr"], 3)}
    print_result(
        **ratio, contestants=results, matmul_tflops=round(rate.best / 1e12, 2), parameters=parameters,
        tflop_per_step=round(flops / 1e12, 3), gpu=None if options.tiny else torch.cuda.get_device_name(),
    )  # fmt: skip


if __name__ == "__main__":
    main()
