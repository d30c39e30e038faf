"""The speed and memory of training on one GPU, part by part; each part takes less than ten minutes.

`--part all`        what needs no vLLM, in `--minutes`, each part in a process of its own (`gpu_all.py`)
`--part attention`  one layer's attention: ours, padded, and one completion per row (`attention.py`)
`--part step`       the training step alone, on a made-up rollout: seconds, MFU, memory, by tokens per micro-batch
`--part memory`     the peak of GPU memory of a training step, and what `lit-rlvr plan` says
`--part profile`    the 20 most expensive kernels of a step of one micro-batch, and how often the CPU waits
`--part compile`    the same step plain, with `torch_compile`, and with liger's kernels if they are installed
`--part score`      log-probabilities and exact entropies of a vocabulary: ours, plain torch, compiled; share of a pass
`--part lora`       the step with adapters over frozen weights in fp32 and in bf16
`--part deterministic`  the step under `rollout.deterministic` and without: seconds, and whether two runs end alike
`--part fit`        `lit-rlvr fit` on smoke/sums: twice deterministic and resumed, twice in fp32, in bf16; equal hashes?
`--part iteration`  `lit-rlvr fit` at the shape, with the Hugging Face engine: sync, generation, training
`--part offload`    the same with half of the layers, FSDP2, shards on the CPU, checkpoints written in the background
`--part engine`     weight sync and generation, and how far the engine's log-probabilities are from the trainer's
`--part trl`        whole GRPO steps of `lit-rlvr fit`, then of TRL (vLLM in the training process for both)
`--part overlap`    the same steps with a vLLM server, generating in turn with training and while it trains; the server
                    takes the second GPU if there is one, else 40 % of the only one

The weights are random, at the shapes of Qwen2.5-1.5B or, with `--shape vision`, Qwen2.5-VL-3B, so nothing is
downloaded; weights and AdamW are in fp32, products in bf16, and layers are recomputed (`--ours
compute.gradient_checkpointing=false` keeps them). MFU = useful FLOP/s (prompts once per group, no recomputation) over
the best rate of large bf16 matrix products measured here. What `lit-rlvr plan` puts above the GPU's memory is skipped,
and `budget_used` is what a step that ran out of memory went on with. All parts but `trl` and `overlap` run where only
torch, transformers, lightning and peft are installed, with `--engine hf`; `fit`, `iteration` and `offload` need those
of benchmarks/README.md, too. Without a GPU the command ends in one line.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
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
from gpu_all import run_all
from lightning.pytorch import Callback
from ours import settings
from training import make_rollout, train, with_image
from turns import Player
from workload import Workload, gpu_memory_mb, start, take_turns, wait_for_gpu

from lit_rlvr.common.packages import is_installed
from lit_rlvr.engines.base import EngineContext, RolloutEngine
from lit_rlvr.engines.hf import HFEngine
from lit_rlvr.options import Lora
from lit_rlvr.policy import attention, verify
from lit_rlvr.policy.adapters import add_adapters
from lit_rlvr.policy.families.qwen_vl import VLM_SPECIALS, language_sizes, markers
from lit_rlvr.policy.logprobs import score_tokens
from lit_rlvr.policy.policy import Policy
from lit_rlvr.policy.precision import training_autocast, use_deterministic_kernels
from lit_rlvr.policy.speed import enable_checkpointing, uncompile_layers
from lit_rlvr.policy.tiny import CHAT_TEMPLATE, byte_tokenizer
from lit_rlvr.sampling import Sampling
from lit_rlvr.sizing.memory import Strategy, largest_microbatch, shape_of, training_memory
from lit_rlvr.training.step.microbatches import logprobs_in_microbatches
from lit_rlvr.types import Prompt, Rollout, Sample

TEXT = {
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "max_position_embeddings": 32768,
}
LANGUAGE = {**TEXT, "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16}
TOWER = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "patch_size": 14,
    "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31],
    "spatial_merge_size": 2,
}
TINY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "max_position_embeddings": 1024,
}
TINY_TOWER = {
    **TOWER,
    "depth": 2,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_heads": 2,
    "window_size": 56,
    "fullatt_block_indexes": [1],
}
TINY_SIZES = {
    "prompts": 2,
    "group_size": 4,
    "prompt_tokens": 96,
    "max_tokens": 16,
    "steps": 1,
    "budgets": [256, 512],
    "features": 4,
}
TAKEN = ("model", "lora", "freeze_vision", "compute.shared_prefix", "compute.tokens_per_microbatch")
WHOLE = ("model", "lr")
NOT_OURS = {
    **dict.fromkeys(("step", "memory", "profile", "compile", "score", "lora", "deterministic"), TAKEN),
    **dict.fromkeys(("trl", "overlap", "iteration", "offload"), WHOLE),
}
"""Options of ours that a part sets itself, or that its ready-made model would ignore."""
KERNELS = 20
WAITS = (
    "cudaStreamSynchronize",
    "cudaDeviceSynchronize",
    "cudaEventSynchronize",
    "aten::_local_scalar_dense",
    "cudaMemcpyAsync",
    "cudaLaunchKernel",
    "cudaLaunchKernelExC",
    "cuLaunchKernel",
)
"""Calls with which the CPU launches work on the GPU or waits for it; `profile` counts them."""
SUMS = (
    "--config",
    "smoke/sums",
    "--run.show_every",
    "0",
    "--checkpoint.every",
    "2",
    "--rollout.validate_every_rollouts",
    "6",
)
END = VLM_SPECIALS.index("<|im_end|>")
FRAME = len("[user\n]\n[assistant\n")  # the chat markup, special tokens as brackets


def parse() -> Any:
    parser = make_parser(__doc__)
    parser.add_argument("--part", choices=PARTS, required=True, help="what to measure")
    parser.add_argument("--minutes", type=float, default=10, help="of `all`")
    parser.add_argument("--output", type=Path, default=Path("gpu.json"), help="file of the results of `all`")
    parser.add_argument("--shape", choices=["text", "vision"], default="text", help="Qwen2.5-1.5B or Qwen2.5-VL-3B")
    parser.add_argument("--engine", choices=["hf", "vllm"], default="vllm", help="what generates")
    parser.add_argument("--lengths", choices=["equal", "lognormal"], default="lognormal", help="of the completions")
    parser.add_argument("--steps", type=int, default=3, help="measured steps of each, after the first")
    parser.add_argument("--prompts", type=int, default=64, help="prompts per step")
    parser.add_argument("--group-size", type=int, default=8, help="completions per prompt")
    parser.add_argument("--prompt-tokens", type=int, default=256, help="tokens of every prompt, about")
    parser.add_argument("--max-tokens", type=int, default=512, help="tokens of a completion: all, or the mean")
    parser.add_argument("--features", type=int, default=256, help="tokens of a prompt's image (vision)")
    parser.add_argument("--budgets", type=int, nargs="+", default=[4096, 16384, 32768], help="tokens per micro-batch")
    add_contestants(parser)
    parser.add_argument(
        "--without-spans", action="store_true", help="attention in padded blocks, should the kernels for spans fail"
    )
    parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)  # the same paths on a CPU, in a minute
    parser.add_argument("--wait", action="store_true", help=argparse.SUPPRESS)  # until stdin is closed
    options = parser.parse_args()
    given = {
        name
        for group, fields in options.ours.items()
        for name in (group, *(f"{group}.{field}" for field in (fields if isinstance(fields, dict) else ())))
    }
    if wrong := sorted(given & {*NOT_OURS.get(options.part, options.ours)}):
        parser.error(f"--ours: --part {options.part} cannot set {', '.join(wrong)}")
    options.ours["compute"] = {"gradient_checkpointing": True} | options.ours.get("compute", {})
    if options.without_spans:
        attention.available = verify.available = lambda device, dtype: False
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
        sizes = dict(TINY if options.tiny else TEXT)
        if options.part == "offload":
            sizes["num_hidden_layers"] //= 2  # two checkpoints of all layers may not fit on the disk
        return Qwen2Config(**sizes, **ends, tie_word_embeddings=True)
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
    return bool(options.ours["compute"]["gradient_checkpointing"])


def made_up(options: Any, lengths: str | None = None) -> Rollout:
    """Build a rollout of random tokens, with images if the model takes them."""
    count = options.prompts * options.group_size
    drawn = draw_lengths(lengths or options.lengths, count, options.max_tokens)
    config = make_config(options)
    vocabulary = config.get_text_config().vocab_size
    rollout = make_rollout(options.prompts, options.group_size, options.prompt_tokens, drawn, vocabulary)
    return rollout if options.shape == "text" else with_image(rollout, config, options.features)


class Budget(Callback):
    """Remembers the tokens per micro-batch that a run ended with."""

    used = 0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        self.used = pl_module.budget.tokens


def planned_mib(options: Any, rollout: Rollout, budget: int, lora: Lora | None = None) -> float:
    """Return the MiB of a step by the formula of `lit-rlvr plan`."""
    sizes = (len(rollout.prompts[0].token_ids), int(rollout.lengths.max()), options.group_size, len(rollout.prompts))
    strategy = Strategy(False, checkpointing(options), lora is not None)
    shape, load = shape_of(make_config(options), lora=lora), largest_microbatch(budget, *sizes)
    return sum(training_memory(shape, load, strategy, 1, 2).values()) / 2**20


def run_steps(
    options: Any,
    policy: Policy,
    rollout: Rollout,
    budget: int,
    lora: Lora | None = None,
    label: str = "",
    rate: MatmulRate | None = None,
    **given: Any,
) -> dict[str, Any]:
    """Take 1 + `--steps` training steps; return a row of results, or of why there are none.

    Args:
        lora: the adapters that the policy has. label: of the row. rate: for the MFU of a text model's step. given:
            options of `train`.
    """
    row: dict[str, Any] = {"label": label} if label else {}
    row |= {"budget": budget, "planned_mib": round(planned_mib(options, rollout, budget, lora))}
    seen = Budget()
    callbacks = [seen, *given.pop("callbacks", ())]
    compute = {"tokens_per_microbatch": budget} | options.ours["compute"] | given.pop("compute", {})
    asked = {**options.ours, "compute": compute, "callbacks": callbacks, **given}
    if row["planned_mib"] > device_mib(options):
        row["skipped"] = f"plan puts it above the {device_mib(options):.0f} MiB of this device"
    else:
        forget_peak(options)
        started = time.perf_counter()
        try:
            taken = train(policy, [rollout] * (1 + options.steps), "bf16", device=options.device, **asked)
        except Exception as error:
            row["error"] = f"{type(error).__name__}: {error}"
        else:
            seconds = median(taken[1:])
            tokens = sum(len(p.token_ids) for p in rollout.prompts) + int(rollout.lengths.sum())
            row |= {
                "budget_used": seen.used,
                "first_seconds": taken[0],
                "seconds": seconds,
                "start_seconds": time.perf_counter() - started - sum(taken),
                "tokens_per_second": tokens / seconds,
                "peak_mib": round(peak(options)),
            }
            if rate is not None and options.shape == "text":  # of the tower no FLOPs are counted
                model: Any = policy.model
                useful = step_flops(model.config, model.num_parameters(), rollout)[1]
                row["mfu"] = useful / seconds / rate.measure()
    say(json.dumps(row))
    return row


def one_microbatch(options: Any, budget: int) -> Rollout:
    """Build a rollout of completions of equal length that fills one micro-batch."""
    row = options.prompt_tokens + options.group_size * (options.max_tokens - 1)
    few = argparse.Namespace(**vars(options) | {"prompts": max(1, min(options.prompts, budget // row))})
    return made_up(few, "equal")


def middle(options: Any) -> int:
    """Return the middle of the budgets."""
    return sorted(options.budgets)[len(options.budgets) // 2]


# ---- the parts ------------------------------------------------------------------------------------------------


def attention_(options: Any) -> None:
    sizes = ["--groups", "2", "--group-size", "2", "--mean", "32", "--rounds", "1"] if options.tiny else []
    script = str(Path(__file__).with_name("attention.py"))
    arguments = ["--device", options.device, "--lengths", options.lengths, *sizes]
    subprocess.run([sys.executable, script, *arguments], check=True)


def step(options: Any) -> None:
    rate = make_rate(options)
    rate.measure(5)
    policy, rollout = make_policy(options), made_up(options)
    rows = [run_steps(options, policy, rollout, budget, rate=rate) for budget in sorted(options.budgets, reverse=True)]
    finish(options, rate=rate, rows=rows, lengths=options.lengths)


def memory(options: Any) -> None:
    policy, rows = make_policy(options), []
    base = peak(options)
    options.steps = 1
    for lengths in ("equal", "lognormal"):
        for budget in options.budgets:
            row = run_steps(options, policy, made_up(options, lengths), budget, label=lengths)
            if "peak_mib" in row:
                row["planned_ratio"] = row["planned_mib"] / row["peak_mib"]
            rows.append(row)
    finish(options, base_mib=base, rows=rows)


class Profile(Callback):
    """Profiles one step, the third."""

    def __init__(self) -> None:
        kinds = [torch.profiler.ProfilerActivity.CPU]
        if torch.cuda.is_available():
            kinds.append(torch.profiler.ProfilerActivity.CUDA)
        self.profiler, self.seconds = torch.profiler.profile(activities=kinds), 0.0

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 2:
            wait_for_gpu()
            self.seconds = -time.perf_counter()
            self.profiler.start()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 2:
            wait_for_gpu()
            self.seconds += time.perf_counter()
            self.profiler.stop()


def profile(options: Any) -> None:
    policy, rollout, seen = make_policy(options), one_microbatch(options, middle(options)), Profile()
    options.steps = 3
    row = run_steps(options, policy, rollout, middle(options), callbacks=[seen])
    on_gpu = options.device == "cuda"
    events = [event for event in seen.profiler.key_averages() if not event.is_user_annotation]

    def own(event: Any) -> float:
        """Return the seconds of a kernel; on a CPU of an operator without those that it calls."""
        kernel = str(event.device_type).endswith("CUDA")
        return (event.self_device_time_total if kernel else 0.0 if on_gpu else event.self_cpu_time_total) / 1e6

    ranked = sorted(events, key=own, reverse=True)
    busy = sum(map(own, events))
    kernels = [(event.key[:120], event.count, own(event) * 1e3, own(event) / busy) for event in ranked[:KERNELS]]
    print_table(("kernel", "calls", "ms", "share"), kernels)
    waits = {event.key: event.count for event in events if event.key in WAITS}
    finish(options, rows=[row], profiled_seconds=seen.seconds, busy_seconds=busy, waits=waits, kernels=kernels)


def compile_(options: Any) -> None:
    policy, rollout = make_policy(options), made_up(options)
    modes: dict[str, dict[str, Any]] = {"plain": {"torch_compile": False}, "compiled": {"torch_compile": True}}
    if is_installed("liger_kernel") and not options.tiny:  # last: its kernels stay in the model
        modes |= {"liger": {"torch_compile": False, "liger": True}}
    rows = []
    for name, given in modes.items():
        rows.append(run_steps(options, policy, rollout, middle(options), label=name, compute=given))
        if given["torch_compile"]:
            uncompile_layers(policy.model)
    finish(options, rows=rows)


def score(options: Any) -> None:
    """Time the vocabulary's pass on the completion tokens of one group, forward and backward."""
    from torch.nn.functional import linear

    rate = make_rate(options)
    rate.measure(5)
    policy = make_policy(options)
    one = argparse.Namespace(**vars(options) | {"prompts": 1})
    rollout = made_up(one, "equal")
    head: Any = policy.model.get_output_embeddings()  # type: ignore[operator]
    weight, count = head.weight, int(rollout.lengths.sum())
    hidden = torch.randn(count, weight.shape[1], device=options.device, dtype=torch.bfloat16, requires_grad=True)
    target = torch.randint(len(weight), (count,), device=options.device)

    def ours(entropy: bool = False, gradient: bool = False) -> torch.Tensor:
        logp, spread, *_ = score_tokens(hidden, weight, None, target, Sampling(), entropy, gradient)
        return logp.sum() + (spread.sum() if spread is not None and gradient else 0.0)

    def plain(x: torch.Tensor, w: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        logp = linear(x, w.to(x.dtype)).float().log_softmax(-1)
        spread = -(logp.detach().exp() * logp.detach()).sum(-1)
        return logp.gather(-1, t[:, None]).sum() + 0.0 * spread.sum()

    compiled = torch.compile(plain)
    calls: dict[str, Callable[[], torch.Tensor]] = {
        "model and vocabulary": lambda: policy.logprobs(rollout, [*range(len(rollout.mask))], True)[0].sum(),
        "log-probabilities": ours,
        "with entropies": lambda: ours(True),
        "with gradients of entropies": lambda: ours(True, True),
        "plain torch, with entropies": lambda: plain(hidden, weight, target),
        "compiled, with entropies": lambda: compiled(hidden, weight, target),
    }
    if is_installed("liger_kernel") and not options.tiny:
        from liger_kernel.transformers.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyLoss

        liger = LigerFusedLinearCrossEntropyLoss(reduction="sum")
        calls["liger, log-probabilities"] = lambda: liger(weight.to(hidden.dtype), hidden, target)
    rows = [time_scoring(options, policy, name, call) for name, call in calls.items()]
    print_table(
        ("scoring", "ms", "peak MiB", "error"),
        [[row.get(n) for n in ("label", "ms", "peak_mib", "error")] for row in rows],
    )
    floor = 6e3 * count * weight.numel() / rate.measure()
    share = rows[2]["ms"] / rows[0]["ms"] if "ms" in rows[0] and "ms" in rows[2] else None
    finish(options, rate=rate, rows=rows, tokens=count, floor_ms=floor, share_of_pass=share)


def time_scoring(options: Any, policy: Policy, label: str, call: Callable[[], torch.Tensor]) -> dict[str, Any]:
    """Return the median milliseconds of a forward and backward pass, and its peak of memory."""
    row: dict[str, Any] = {"label": label}
    taken = []
    try:
        for _ in range(2 + 2 * options.steps):
            policy.zero_grad(set_to_none=True)
            forget_peak(options)
            started = time.perf_counter()
            with training_autocast(torch.device(options.device), torch.bfloat16):
                result = call()
            result.backward()
            wait_for_gpu()
            taken.append(time.perf_counter() - started)
        row |= {"ms": median(taken[2:]) * 1e3, "peak_mib": round(peak(options))}
    except Exception as error:
        row["error"] = f"{type(error).__name__}: {error}"
    say(json.dumps(row))
    return row


def lora(options: Any) -> None:
    adapters, policy, rollout = Lora(rank=16), make_policy(options), made_up(options)
    add_adapters(policy.model, adapters)
    policy.model.requires_grad_(False)
    for name, parameter in policy.model.named_parameters():
        parameter.requires_grad_(".lora_" in name)
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        for parameter in policy.model.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.to(dtype)
        label = f"frozen weights in {str(dtype).removeprefix('torch.')}"
        rows += [run_steps(options, policy, rollout, budget, adapters, label) for budget in options.budgets]
    finish(options, rows=rows)


def deterministic(options: Any) -> None:
    """Run each mode twice from equal weights; cuBLAS reads its settings once, so its small workspace stays."""
    rollout, rows, operators = made_up(options), [], set[str]()
    options.steps = 1
    use_deterministic_kernels()
    for mode in ("deterministic", "as usual"):
        torch.use_deterministic_algorithms(mode == "deterministic")
        ended = []
        for _ in range(2):
            policy = make_policy(options)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                rows.append(run_steps(options, policy, rollout, middle(options), label=mode))
            operators |= {str(w.message)[:200] for w in caught if "deterministic" in str(w.message)}
            ended.append([parameter.detach().cpu() for parameter in policy.parameters()])
            del policy
        rows[-1]["ends_alike"] = all(map(torch.equal, *ended))
    finish(options, rows=rows, nondeterministic=sorted(operators))


def fit(options: Any) -> None:
    """Run `lit-rlvr fit` on smoke/sums, in several runs at once after the first, which makes the warm start."""
    device, learning, steps = ("cpu", "20", 4) if options.tiny else ("gpu", "600", 12)
    fixed = ("--rollout.deterministic", "true")
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(5) as pool:

        def sums(name: str, run: str, steps: int, *more: str) -> dict[str, Any]:
            sizes = ("--trainer.max_steps", str(steps), "--trainer.default_root_dir", f"{scratch}/{run}")
            where = ("--trainer.accelerator", device, "--warm_start.steps", learning)
            return run_fit(name, Path(scratch, run), [*SUMS, *where, *sizes, *more])

        def in_two_parts() -> list[dict[str, Any]]:
            half = sums("deterministic, first half", "half", steps // 2, *fixed)
            return [half, sums("deterministic, resumed", "half", steps, *fixed, "--ckpt_path", "last")]

        rows = [sums("deterministic", "one", steps, *fixed)]
        parts = pool.submit(in_two_parts)
        others = [
            ("deterministic again", "two", *fixed),
            ("fp32", "three"),
            ("fp32 again", "four"),
            ("bf16", "five", "--trainer.precision", "bf16-mixed"),
        ]
        running = [pool.submit(sums, name, run, steps, *more) for name, run, *more in others]
        rows += [*parts.result(), *(one.result() for one in running)]
    hashes = {row["label"]: row.get("weights_sha256", row["label"]) for row in rows}
    first = hashes["deterministic"]
    finish(
        options,
        rows=rows,
        equal_again=first == hashes["deterministic again"],
        equal_resumed=first == hashes["deterministic, resumed"],
        equal_fp32=hashes["fp32"] == hashes["fp32 again"],
    )


def iteration(options: Any) -> None:
    finish(options, rows=[fit_shape(options, "one process", {"trainer": {"enable_checkpointing": False}})])


def offload(options: Any) -> None:
    strategy = {"class_path": "lit_rlvr.strategy.FSDP2", "init_args": {"offload": not options.tiny}}
    changed = {"trainer": {"strategy": strategy}, "checkpoint": {"every": 1, "minutes": 0}}
    finish(options, rows=[fit_shape(options, "FSDP2, offload, half of the layers", changed)])


def fit_shape(options: Any, label: str, changed: dict[str, Any]) -> dict[str, Any]:
    """Run `lit-rlvr fit` on random weights at the shape; the rewards toss coins.

    Args:
        changed: settings of the config's parts, over those of `ours.py`.
    """
    with tempfile.TemporaryDirectory() as scratch:
        save_model(options, f"{scratch}/model")
        config = settings(replace(make_workload(options, f"{scratch}/model"), engine="hf"), f"{scratch}/run")
        del config["trainer"]["callbacks"]
        for part, values in changed.items():
            config[part] |= values
        Path(scratch, "gpu.yaml").write_text(json.dumps(config))
        return run_fit(label, Path(scratch, "run"), ["--config", f"{scratch}/gpu.yaml"])


def run_fit(label: str, run: Path, arguments: list[str]) -> dict[str, Any]:
    """Run `lit-rlvr fit`; return its summary and its iterations' seconds, or the end of what it printed."""
    folder = Path(__file__).parent
    path = os.pathsep.join([str(folder), str(folder.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    started, row = time.perf_counter(), {"label": label}
    command = [sys.executable, "-m", "lit_rlvr", "fit", *arguments]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    row["wall_seconds"] = time.perf_counter() - started
    if done.returncode:
        row["error"] = f"status {done.returncode}: " + "\n".join(done.stdout.splitlines()[-40:])
    else:
        row |= json.loads((run / "summary.json").read_text())
        with (run / "metrics.csv").open() as file:
            steps = [one for one in csv.DictReader(file) if one.get("time/train")]
        names = [name for name in steps[0] if name.startswith("time/") or name.startswith("train/engine_")]
        row["iterations"] = [{name: float(one[name]) for name in names if one[name]} for one in steps]
    say(json.dumps(row))
    return row


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
            folder,
            policy,
            AutoTokenizer.from_pretrained(folder),
            len(ids[0]) + options.max_tokens,
            options.prompts * options.group_size,
            seed=0,
            dtype=torch.bfloat16,
        )
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
            ours = logprobs_in_microbatches(policy, few, rows, options.budgets[0], False)[0].cpu()
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
        options,
        engine=generator.name,
        times=times,
        tokens=tokens,
        difference=spread,
        peak_mib=held,
        tokens_per_second=round(tokens / times["generate"], 1),
    )


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
    finish(options, rate=rate, ratio_overlap=round(ratio, 3), modes=results)


def everything(options: Any) -> None:
    shared = ["--shape", options.shape, "--engine", "hf", "--lengths", options.lengths, *["--tiny"] * options.tiny]
    shared += ["--without-spans"] * options.without_spans
    raise SystemExit(min(1, run_all(__file__, shared, options.minutes, options.output)))


PARTS = {
    "all": everything, "attention": attention_, "step": step, "memory": memory, "profile": profile, "compile": compile_,
    "score": score, "lora": lora, "deterministic": deterministic, "fit": fit, "iteration": iteration,
    "offload": offload, "engine": engine, "trl": trl, "overlap": overlap,
}  # fmt: skip


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
    from lit_rlvr.engines.transfer.network import free_port

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


def device_mib(options: Any) -> float:
    """Return the MiB of the device's memory."""
    if options.device == "cuda":
        return torch.cuda.get_device_properties(0).total_memory / 2**20
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**20


def finish(options: Any, rate: MatmulRate | None = None, **result: Any) -> None:
    """Print the last line; end with status 1 if a row failed."""
    gpu = None if options.tiny else torch.cuda.get_device_name()
    rates = {} if rate is None else {"matmul_tflops": round(rate.best / 1e12, 2)}
    spans = attention.available(torch.device(options.device), torch.bfloat16)
    print_result(
        part=options.part,
        shape=options.shape,
        ours=options.ours,
        gpu=gpu,
        reserved_mib=gpu_memory_mb(),
        spans=spans,
        **rates,
        **result,
    )
    if any(isinstance(row, dict) and "error" in row for row in result.get("rows", ())):
        raise SystemExit(1)


def make_workload(options: Any, folder: str) -> Workload:
    question = "What is {a} + {b}? "
    uses_vllm = options.engine == "vllm" and not options.tiny
    vllm = {
        "use_vllm": True,
        "vllm_mode": "colocate",
        "vllm_gpu_memory_utilization": 0.4,
        "vllm_max_model_length": options.prompt_tokens + 64 + options.max_tokens,
    }
    rows = 4 if options.tiny else 8  # of TRL in a micro-batch: its logits are (rows, tokens, V) in fp32
    pieces = {
        "per_device_train_batch_size": rows,
        "gradient_accumulation_steps": options.prompts * options.group_size // rows,
    }
    return Workload(
        model=folder,
        data="Arithmetic",
        data_options={
            "held_out": 0,
            "question": question.rjust(options.prompt_tokens - FRAME, "."),
            "chat": {"system_prompt": None},
            "reading": {"max_prompt_tokens": options.prompt_tokens + 64},
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
    if options.wait:
        sys.stdin.read()
    PARTS[options.part](options)


if __name__ == "__main__":
    main()
