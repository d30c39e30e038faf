"""The speed and memory of training on one GPU, part by part; each part takes less than ten minutes.

`--part attention`  one layer's attention: ours, padded, and one completion per row (`attention.py`)
`--part step`       the training step alone, on a made-up rollout: seconds, MFU, memory, by tokens per micro-batch
`--part memory`     the peak of GPU memory of a training step, beside what `lit-rlvr plan` says
`--part engine`     weight sync and generation, and how far the engine's log-probabilities are from the trainer's
`--part trl`        whole GRPO steps of `lit-rlvr fit`, then of TRL (vLLM in the training process for both)
`--part overlap`    the same steps with a vLLM server, generating in turn with training and while it trains; the server
                    takes the second GPU if there is one, else 40 % of the only one

The weights are random, at the shapes of Qwen2.5-1.5B or, with `--shape vision`, Qwen2.5-VL-3B, so nothing is
downloaded; weights and AdamW are in fp32, products in bf16. MFU = useful FLOP/s (prompts once per group, no
recomputation) over the best rate of large bf16 matrix products measured here. All parts but `trl` and `overlap` run
where only torch, transformers, lightning and peft are installed, with `--engine hf`. Without a GPU the command ends in
one line.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from common import (
    MatmulRate,
    add_contestants,
    draw_lengths,
    make_parser,
    peak_memory_mb,
    print_result,
    print_table,
    say,
)
from flops import step_flops
from training import make_rollout, train, with_image
from turns import Player
from workload import Workload, gpu_memory_mb, start, take_turns, wait_for_gpu

from lit_rlvr.commands.plan.memory import Strategy, largest_microbatch, shape_of, training_memory
from lit_rlvr.engines.base import EngineContext, RolloutEngine
from lit_rlvr.engines.hf import HFEngine
from lit_rlvr.policy.families.qwen_vl import VLM_SPECIALS, language_sizes, markers
from lit_rlvr.policy.policy import Policy
from lit_rlvr.policy.speed import enable_checkpointing
from lit_rlvr.policy.tiny import CHAT_TEMPLATE, byte_tokenizer
from lit_rlvr.training.step import logprobs_of
from lit_rlvr.types import Prompt, Rollout, Sample, Sampling

TEXT = {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12,
        "num_key_value_heads": 2, "vocab_size": 151936, "max_position_embeddings": 32768}  # fmt: skip
LANGUAGE = {**TEXT, "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16}
TOWER = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "patch_size": 14,
         "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31], "spatial_merge_size": 2}  # fmt: skip
TINY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 2, "vocab_size": 512, "max_position_embeddings": 1024}  # fmt: skip
TINY_TOWER = {**TOWER, "depth": 2, "hidden_size": 64, "intermediate_size": 128, "num_heads": 2, "window_size": 56,
              "fullatt_block_indexes": [1]}  # fmt: skip
TINY_SIZES = {"prompts": 2, "group_size": 4, "prompt_tokens": 96, "max_tokens": 16, "steps": 1, "budgets": [256, 512],
              "features": 4}  # fmt: skip
TAKEN = ("model", "lora", "freeze_vision", "shared_prefix", "tokens_per_microbatch")
NOT_OURS = {"step": TAKEN, "memory": TAKEN, "trl": ("model", "lr"), "overlap": ("model", "lr")}
"""Options of ours that a part sets itself, or that its ready-made model would ignore."""
END = VLM_SPECIALS.index("<|im_end|>")
FRAME = len("[user\n]\n[assistant\n")  # the chat markup, special tokens as brackets


def parse() -> Any:
    parser = make_parser(__doc__)
    parser.add_argument("--part", choices=PARTS, required=True, help="what to measure")
    parser.add_argument("--shape", choices=["text", "vision"], default="text", help="Qwen2.5-1.5B or Qwen2.5-VL-3B")
    parser.add_argument("--engine", choices=["hf", "vllm"], default="vllm", help="what generates")
    parser.add_argument("--lengths", choices=["equal", "lognormal"], default="lognormal", help="of the completions")
    parser.add_argument("--steps", type=int, default=3, help="measured steps of each, besides the first")
    parser.add_argument("--prompts", type=int, default=64, help="prompts per step")
    parser.add_argument("--group-size", type=int, default=8, help="completions per prompt")
    parser.add_argument("--prompt-tokens", type=int, default=256, help="tokens of every prompt, about")
    parser.add_argument("--max-tokens", type=int, default=512, help="tokens of a completion: all, or the mean")
    parser.add_argument("--features", type=int, default=256, help="tokens of a prompt's image (vision)")
    parser.add_argument("--budgets", type=int, nargs="+", default=[4096, 16384, 32768], help="tokens per micro-batch")
    add_contestants(parser)
    parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)  # the same paths on a CPU, in a minute
    options = parser.parse_args()
    if wrong := [name for name in options.ours if name in NOT_OURS.get(options.part, options.ours)]:
        parser.error(f"--ours: --part {options.part} cannot set {', '.join(wrong)}")
    options.device = "cpu" if options.tiny else "cuda"
    if options.tiny:
        vars(options).update(TINY_SIZES)
    elif not torch.cuda.is_available():
        parser.exit(2, "gpu.py: there is no CUDA GPU (torch.cuda.is_available() is False)\n")
    return options


# ---- models and rollouts --------------------------------------------------------------------------------------


def make_config(options: Any) -> Any:
    """Build the config of the model with the requested shape."""
    from transformers import Qwen2_5_VLConfig, Qwen2Config

    ends = {"bos_token_id": None, "eos_token_id": END, "pad_token_id": END}
    if options.shape == "text":
        return Qwen2Config(**(TINY if options.tiny else TEXT), **ends, tie_word_embeddings=True)
    text = language_sizes(**(TINY if options.tiny else LANGUAGE))
    tower = {**(TINY_TOWER if options.tiny else TOWER), "out_hidden_size": text["hidden_size"]}
    return Qwen2_5_VLConfig(text_config=text, vision_config=tower, **markers())


def make_policy(options: Any) -> Policy:
    """Build a policy with random weights in fp32 on the device."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, GenerationConfig

    kind = AutoModelForCausalLM if options.shape == "text" else AutoModelForImageTextToText
    torch.manual_seed(0)
    with torch.device(options.device):
        model = kind.from_config(make_config(options))
    if checkpointing(options):
        enable_checkpointing(model)
    model.generation_config = GenerationConfig(eos_token_id=END, pad_token_id=END)
    say(f"{model.num_parameters() / 1e6:.1f} M parameters")
    return Policy(model.eval(), (END,))


def checkpointing(options: Any) -> bool:
    return bool(options.ours.get("gradient_checkpointing"))


def made_up(options: Any, lengths: str | None = None) -> Rollout:
    """Build a rollout of random tokens, with images if the model takes them."""
    count = options.prompts * options.group_size
    drawn = draw_lengths(lengths or options.lengths, count, options.max_tokens)
    config = make_config(options)
    vocabulary = config.get_text_config().vocab_size
    rollout = make_rollout(options.prompts, options.group_size, options.prompt_tokens, drawn, vocabulary)
    return rollout if options.shape == "text" else with_image(rollout, config, options.features)


def steps(options: Any, policy: Policy, rollout: Rollout, budget: int, count: int) -> list[float]:
    """Return the seconds of training steps."""
    given = {"tokens_per_microbatch": budget, **options.ours}
    return train(policy, [rollout] * count, "bf16", device=options.device, **given)


# ---- the parts ------------------------------------------------------------------------------------------------


def attention(options: Any) -> None:
    sizes = ["--groups", "2", "--group-size", "2", "--mean", "32", "--rounds", "1"] if options.tiny else []
    script = str(Path(__file__).with_name("attention.py"))
    arguments = ["--device", options.device, "--lengths", options.lengths, *sizes]
    subprocess.run([sys.executable, script, *arguments], check=True)


def step(options: Any) -> None:
    rate = make_rate(options)
    rate.measure(5)
    policy, rollout = make_policy(options), made_up(options)
    model: Any = policy.model
    tokens = sum(len(p.token_ids) for p in rollout.prompts) + int(rollout.lengths.sum())
    rows = []
    for budget in options.budgets:
        forget_peak(options)
        seconds = median(steps(options, policy, rollout, budget, 1 + options.steps)[1:])
        mfu = None  # of the tower no FLOPs are counted
        if options.shape == "text":
            mfu = step_flops(model.config, model.num_parameters(), rollout)[1] / seconds / rate.measure()
        rows.append((budget, seconds, tokens / seconds, mfu, peak(options)))
    columns = ("tokens at once", "s / step", "tokens/s", "MFU", "peak MiB")
    print_table(columns, rows)
    names = ("budget", "seconds", "tokens_per_second", "mfu", "peak_mib")
    finish(
        options,
        rate=rate,
        tokens=tokens,
        lengths=options.lengths,
        rows=[dict(zip(names, r, strict=True)) for r in rows],
    )


def memory(options: Any) -> None:
    policy, config, rows = make_policy(options), make_config(options), []
    shape, base = shape_of(config), peak(options)
    for lengths in ("equal", "lognormal"):
        rollout = made_up(options, lengths)
        longest = int(rollout.lengths.max())
        for budget in options.budgets:
            forget_peak(options)
            steps(options, policy, rollout, budget, 2)
            sizes = (len(rollout.prompts[0].token_ids), longest, options.group_size, options.prompts)
            load, strategy = largest_microbatch(budget, *sizes), Strategy(False, checkpointing(options))
            terms = training_memory(shape, load, strategy, 1, 2)
            measured, formula = peak(options), sum(terms.values()) / 2**20
            rows.append((lengths, budget, measured, formula, formula / measured))
            say(f"{lengths} {budget}: {measured:.0f} MiB, formula {formula:.0f}")
    print_table(("lengths", "tokens at once", "measured MiB", "formula MiB", "formula / measured"), rows)
    finish(options, base_mib=base, rows=rows)


def engine(options: Any) -> None:
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as folder:
        policy = make_policy(options)
        model: Any = policy.model
        model.save_pretrained(folder)
        byte_tokenizer(VLM_SPECIALS, CHAT_TEMPLATE, pad="<|endoftext|>").save_pretrained(folder)
        generator = make_engine(options.engine)
        ids = [p.token_ids for p in made_up(replace_shape(options)).prompts]
        prompts = [Prompt(Sample(str(p), "", ""), tokens) for p, tokens in enumerate(ids)]
        sampling = Sampling(max_tokens=options.max_tokens, banned_token_ids=policy.placeholder_ids)
        context = EngineContext(
            folder, policy, AutoTokenizer.from_pretrained(folder), len(ids[0]) + options.max_tokens,
            options.prompts * options.group_size, seed=0, dtype=torch.bfloat16,
        )  # fmt: skip
        times: dict[str, float] = {}

        def timed(name: str, call: Any) -> Any:
            wait_for_gpu()
            started = time.perf_counter()
            result = call()
            wait_for_gpu()
            times[name] = time.perf_counter() - started
            say(f"{name}: {times[name]:.2f} s")
            return result

        seeds = [[p * options.group_size + g for g in range(options.group_size)] for p in range(options.prompts)]
        timed("start", lambda: generator.start(context))
        timed("sync", lambda: generator.sync(policy))
        timed("first", lambda: generator.generate(prompts[:1], replace(sampling, max_tokens=8), seeds[:1]))
        timed("again", lambda: generator.sync(policy))
        completions = timed("generate", lambda: generator.generate(prompts, sampling, seeds))
        generator.sleep()
        held = peak(options)
        few = Rollout.unscored(prompts[:4], completions[:4], sampling, options.group_size)
        with torch.autocast(options.device, torch.bfloat16):
            rows = list(range(len(few.mask)))
            ours = logprobs_of(policy, few, rows, options.budgets[0], False)[0].cpu()
        generator.close()
    difference = (ours - few.rollout_logprobs)[few.mask].abs()
    spread = {
        "mean": float(difference.mean()),
        "99.9 %": float(difference.quantile(0.999)),
        "most": float(difference.max()),
    }
    tokens = sum(len(c.token_ids) for group in completions for c in group)
    print_table(("", "s"), list(times.items()))
    print_table(("difference from the trainer", "nats"), list(spread.items()))
    finish(
        options, engine=generator.name, times=times, tokens=tokens, difference=spread, peak_mib=held,
        tokens_per_second=round(tokens / times["generate"], 1),
    )  # fmt: skip


def trl(options: Any) -> None:
    rate = make_rate(options)
    rate.measure(5)
    with tempfile.TemporaryDirectory() as folder:
        flops = save_model(options, folder)
        workload, results = make_workload(options, folder), {}
        for name in ("lit-rlvr", "TRL"):
            results[name] = summarise(play(name, workload), flops, rate)
            say(json.dumps({name: results[name]}))  # before the next one starts, which may fail
    rate.measure(5)
    print_table(("", *results["lit-rlvr"]), [(name, *result.values()) for name, result in results.items()])
    ratio = results["TRL"]["seconds"] / results["lit-rlvr"]["seconds"]
    finish(options, rate=rate, ratio_step=round(ratio, 3), contestants=results, tflop_per_step=round(flops / 1e12, 3))


def overlap(options: Any) -> None:
    rate = make_rate(options)
    rate.measure(5)
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        flops = save_model(options, folder)
        with serving(options, folder) as url:
            transfer = {"class_path": "FileTransfer", "init_args": {"folder": f"{folder}/weights"}}
            server = {"class_path": "VLLMServerEngine", "init_args": {"urls": [url], "transfer": transfer}}
            workload = replace(make_workload(options, folder), engine=server)
            for name, staleness in (("in turn", 0), ("overlapped", 1)):
                results[name] = summarise(play("lit-rlvr", replace(workload, staleness=staleness)), flops, rate)
                say(json.dumps({name: results[name]}))
    print_table(("", *results["in turn"]), [(name, *result.values()) for name, result in results.items()])
    ratio = results["in turn"]["seconds"] / results["overlapped"]["seconds"]
    finish(options, rate=rate, ratio_overlap=round(ratio, 3), ways=results)


PARTS = {"attention": attention, "step": step, "memory": memory, "engine": engine, "trl": trl, "overlap": overlap}


# ---- what they share ------------------------------------------------------------------------------------------


def make_rate(options: Any) -> MatmulRate:
    return MatmulRate("bf16", options.device, (512,) if options.tiny else (4096, 8192))


def make_engine(name: str) -> RolloutEngine:
    if name == "hf":
        return HFEngine()
    from lit_rlvr.engines.vllm import VLLMEngine

    return VLLMEngine()


def save_model(options: Any, folder: str) -> float:
    """Save random weights and a tokenizer for the other processes; return the FLOPs of a step on them."""
    options.lengths = "equal"  # random weights almost never end a completion
    policy = make_policy(options)
    model: Any = policy.model
    flops, _ = step_flops(model.config, model.num_parameters(), made_up(options))
    model.save_pretrained(folder)
    byte_tokenizer(VLM_SPECIALS, CHAT_TEMPLATE, pad="<|endoftext|>").save_pretrained(folder)
    del policy, model
    if not options.tiny:
        torch.cuda.empty_cache()
    return flops


@contextmanager
def serving(options: Any, folder: str) -> Iterator[str]:
    """Yield the URL of a vLLM server of the model, which may still be starting."""
    from lit_rlvr.engines.transfer import free_port

    port, several = free_port(), options.device == "cuda" and torch.cuda.device_count() > 1
    length = options.prompt_tokens + 64 + options.max_tokens
    command = ["serve", "--model", folder, "--dtype", "bfloat16", "--port", str(port), "--max-model-len", str(length)]
    if options.tiny:
        command += ["--kv-cache-memory-bytes", str(1 << 28)]
    elif not several:
        command += ["--gpu-memory-utilization", "0.4"]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0,1").split(",")
    environment = {**os.environ, **({"CUDA_VISIBLE_DEVICES": visible[1]} if several else {})}
    say("starting the server")
    server = subprocess.Popen(
        [sys.executable, "-m", "lit_rlvr", *command], env=environment, stdout=sys.stderr, start_new_session=True
    )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGKILL)  # its workers too
        server.wait()


def replace_shape(options: Any) -> Any:
    """Return the same sizes for text alone."""
    return argparse.Namespace(**vars(options) | {"shape": "text"})


def forget_peak(options: Any) -> None:
    if options.device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak(options: Any) -> float:
    """Return the peak in MiB since `forget_peak`; on a CPU since the process began."""
    if options.device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return peak_memory_mb()


def finish(options: Any, rate: MatmulRate | None = None, **result: Any) -> None:
    """Print the last line."""
    gpu = None if options.tiny else torch.cuda.get_device_name()
    rates = {} if rate is None else {"matmul_tflops": round(rate.best / 1e12, 2)}
    print_result(
        part=options.part, shape=options.shape, ours=options.ours, gpu=gpu, reserved_mib=gpu_memory_mb(),
        **rates, **result,
    )  # fmt: skip


def make_workload(options: Any, folder: str) -> Workload:
    question = "What is {a} + {b}? "
    uses_vllm = options.engine == "vllm" and not options.tiny
    vllm = {"use_vllm": True, "vllm_mode": "colocate", "vllm_gpu_memory_utilization": 0.4,
            "vllm_max_model_length": options.prompt_tokens + 64 + options.max_tokens}  # fmt: skip
    rows = 4 if options.tiny else 8  # of TRL in a micro-batch: its logits are (rows, tokens, V) in fp32
    pieces = {"per_device_train_batch_size": rows,
              "gradient_accumulation_steps": options.prompts * options.group_size // rows}  # fmt: skip
    return Workload(
        model=folder,
        data="Arithmetic",
        data_options={
            "held_out": 0,
            "system_prompt": None,
            "question": question.rjust(options.prompt_tokens - FRAME, "."),
            "max_prompt_tokens": options.prompt_tokens + 64,
        },
        prompts=options.prompts,
        group_size=options.group_size,
        max_tokens=options.max_tokens,
        steps=1 + options.steps,
        precision="bf16",
        device=options.device,
        engine=options.engine,
        reward="coin.Coin",
        options=options.ours,
        trl_options=pieces | (vllm if uses_vllm else {}) | options.trl,
    )


def play(name: str, workload: Workload) -> Player:
    """Run one contestant alone on the machine."""
    player = start(name, workload)
    try:
        take_turns([player], workload.steps, workload.steps, 1, lambda p: True, lambda: None)
    finally:
        player.kill()
    return player


def summarise(player: Player, flops: float, rate: MatmulRate) -> dict[str, float]:
    """Return a contestant's medians over its steps, without the first."""
    counted = player.steps[1:]
    parts = {name: median(taken[name] for taken in counted) for name in ("seconds", "sync", "generate", "train")}
    return {
        **parts,
        "tokens_per_second": median(taken["tokens"] / taken["generate"] for taken in counted),
        "mfu_train": flops / parts["train"] / rate.best,
        "mfu_step": flops / parts["seconds"] / rate.best,
        "peak_gpu_memory_mb": max(taken["peak_gpu_memory_mb"] for taken in player.steps),
    }


def main() -> None:
    options = parse()
    PARTS[options.part](options)


if __name__ == "__main__":
    main()
