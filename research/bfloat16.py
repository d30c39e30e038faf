"""What is a step in bfloat16 worth? Three questions, each a `--part`:

- `rounding`: how much of k steps in one direction arrives in weights that matrix products round to bfloat16: of weights
  as published, of the same on the grid of bfloat16, and as training begins with them (`dither`).
- `gradients`: the cosine of the gradient in bfloat16 with that in float32, by layer and by kind of weight, on one
  recorded rollout: `--run RUN`, a run of `--part learning` (`--keep FOLDER`), and `--iteration N`. Also with bfloat16
  in the layers alone, and in the vocabulary alone (logits and their gradients).
- `learning`: mean rewards of rollouts of `lit-rlvr fit` by precision of training and of sampling, paired by seed. The
  task is that of `benchmarks/vs_trl.py`: sums, 8 prompts x 8 completions of at most 24 tokens, one step a rollout.
"""

from __future__ import annotations

import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from itertools import product
from math import sqrt
from pathlib import Path
from statistics import fmean, stdev
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import torch
from common import make_parser, print_result, print_table, run_command, say
from scipy.stats import t
from torch import Tensor

from lit_rlvr import datamodules
from lit_rlvr.common.run_files import read_metrics
from lit_rlvr.policy import logprobs
from lit_rlvr.policy.loading import load_policy
from lit_rlvr.policy.policy import Policy
from lit_rlvr.policy.precision import dither, training_autocast
from lit_rlvr.policy.sources import resolve_model
from lit_rlvr.rollout.record import Record, unpack_rollout
from lit_rlvr.sampling import Sampling
from lit_rlvr.training.step.microbatches import cut_rows
from lit_rlvr.types import Rollout

STEPS = (1, 2, 4, 9, 20, 60, 200)
CELLS = (("32-true", "float32"), ("32-true", "bfloat16"), ("bf16-mixed", "float32"), ("bf16-mixed", "bfloat16"))
"""Precision of training, and of sampling."""
PLACES = {
    "nowhere": (torch.float32, torch.float32),
    "everywhere": (torch.bfloat16, torch.bfloat16),
    "layers": (torch.bfloat16, torch.float32),
    "vocabulary": (torch.float32, torch.bfloat16),
}
"""Where bfloat16 is -> the compute types of the layers and of the vocabulary."""
SUMS = {"low": 1, "high": 9, "held_out": 0, "prompts_per_rollout": 8}
SAMPLING = Sampling(temperature=1.0, max_tokens=24)


# ---- rounding ---------------------------------------------------------------------------------------------


def arriving(weights: list[Tensor], step: float) -> float:
    """Return the share of a step with random signs that arrives in weights rounded to bfloat16."""
    generator = torch.Generator().manual_seed(0)
    arrived = numbers = 0.0
    for weight in weights:
        signs = torch.randint(0, 2, weight.shape, generator=generator) * 2.0 - 1
        moved = (weight + step * signs).bfloat16().float() - weight.bfloat16().float()
        arrived += float((moved * signs).double().sum())
        numbers += weight.numel()
    return arrived / (step * numbers)


def measure_rounding(options: Any) -> None:
    policy = load_policy(resolve_model(options.model))
    named = [(name, p.detach()) for name, p in policy.named_parameters() if p.dim() >= 2]
    starts = {
        "as published": [weight for _, weight in named],
        "on the grid": [weight.bfloat16().float() for _, weight in named],
        "dithered": [weight.clone() for _, weight in named],
    }
    for (name, _), weight in zip(named, starts["dithered"], strict=True):
        dither(name, weight)
    rows = [
        (lr, start, *(round(arriving(weights, k * lr), 3) for k in STEPS))
        for lr in options.lr
        for start, weights in starts.items()
    ]
    print_table(("lr", "weights", *(f"{k} steps" for k in STEPS)), rows)
    print_result(part="rounding", model=options.model, rows=rows)


# ---- gradients --------------------------------------------------------------------------------------------


def recorded(run: Path, iteration: int, tokenizer: Any) -> Rollout:
    """Return a rollout of the task that a run has recorded."""
    data = datamodules.Arithmetic(**SUMS)
    data.tokenizer = tokenizer
    data.setup("fit")
    prompts = {prompt.sample.id: prompt for prompt in data.prompts["train"]}
    about, arrays = Record(run).read(iteration)
    return unpack_rollout(about, arrays, [prompts[name] for name in about["ids"]], SAMPLING, tokenizer)


def gradient(policy: Policy, rollout: Rollout, layers: torch.dtype, vocabulary: torch.dtype) -> dict[str, Tensor]:
    """Return the gradient of the REINFORCE loss with centred rewards.

    Args:
        policy: with dithered weights.
        rollout: recorded.
        layers: the compute type of the layers.
        vocabulary: that of the logits and of their gradients.
    """
    advantages = (rollout.rewards - rollout.rewards.mean(1, keepdim=True)).flatten()
    rows = [i for i, advantage in enumerate(advantages.tolist()) if advantage]
    policy.zero_grad()
    with patch.object(logprobs, "autocast_dtype", lambda *_: vocabulary):
        for microbatch in cut_rows(rollout, rows, 1024, shared_prefix=True):
            with training_autocast(policy.device, layers):
                logp = policy.forward_rows(rollout, microbatch).logp
            mask = rollout.mask[microbatch]
            weights = advantages[microbatch, None] * mask / mask.sum(1, keepdim=True) / len(advantages)
            (-(weights * logp).sum()).backward()
    return {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}


def kinds(names: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Return the weights of each layer, and those of each kind."""
    groups = defaultdict[str, list[str]](list)
    for name in names:
        parts = name.split(".")
        number = next((part for part in parts if part.isdigit()), None)
        if number is not None:
            groups[f"layer {int(number):2}"].append(name)
        groups[".".join(part for part in parts if not part.isdigit())].append(name)
    yield "all", names
    yield from sorted(groups.items())


def compare(one: list[Tensor], other: list[Tensor]) -> tuple[float, float, float]:
    """Return the cosine of two gradients, the ratio of their norms, and the mean product of their signs."""
    dot = sum(float((a.double() * b.double()).sum()) for a, b in zip(one, other, strict=True))
    squares = [sum(float(a.double().square().sum()) for a in gradients) for gradients in (one, other)]
    signs = sum(float((a.sign() * b.sign()).sum()) for a, b in zip(one, other, strict=True))
    return dot / sqrt(squares[0] * squares[1]), sqrt(squares[1] / squares[0]), signs / sum(a.numel() for a in one)


def measure_gradients(options: Any) -> None:
    from transformers import AutoTokenizer

    folder = resolve_model(options.model)
    policy = load_policy(folder)
    for name, parameter in policy.named_parameters():
        dither(name, parameter.data)
    rollout = recorded(Path(options.run), options.iteration, AutoTokenizer.from_pretrained(folder))
    full = gradient(policy, rollout, *PLACES["nowhere"])
    rows = []
    for where in [*PLACES][1:]:
        half = gradient(policy, rollout, *PLACES[where])
        for label, names in kinds([*full]):
            rows.append((where, label, *compare([full[n] for n in names], [half[n] for n in names])))
    print_table(("bfloat16 in", "weights", "cosine", "norms", "signs"), rows)
    print_result(part="gradients", model=options.model, rows=rows)


# ---- learning ---------------------------------------------------------------------------------------------


def rewards_of(options: Any, training: str, sampling: str, seed: int, folder: Path) -> list[float]:
    """Train with `lit-rlvr fit`; return the mean reward of each rollout."""
    engine = f"{{class_path: VLLMEngine, init_args: {{dtype: {sampling}}}}}"
    settings = {
        "--seed_everything": seed, "--model.init_args.lr": options.lr[0], "--model.init_args.model": options.model,
        "--model.init_args.updates_per_rollout": 1, "--model.init_args.optim.lr_schedule": "constant",
        "--data.init_args.low": 1, "--data.init_args.high": 9, "--data.init_args.held_out": 0,
        "--data.init_args.prompts_per_rollout": 8, "--rollout.engine": engine, "--rollout.replay.record": 1,
        "--trainer.max_steps": options.steps, "--trainer.limit_val_batches": 0, "--checkpoint.every": 0,
        "--trainer.precision": training, "--trainer.default_root_dir": folder,
    }  # fmt: skip
    arguments = [str(part) for pair in settings.items() for part in pair]
    run_command("fit", "--config", "quickstart", *arguments)
    return [row["rollout/reward"] for row in read_metrics(folder / "metrics.csv").values()]


def measure_learning(options: Any) -> None:
    means = defaultdict[tuple[str, str], list[float]](list)
    courses = []
    with tempfile.TemporaryDirectory() as temporary:
        for seed, (training, sampling) in product(options.seeds, CELLS):
            folder = Path(options.keep or temporary) / f"{training}-{sampling}-{seed}"
            rewards = rewards_of(options, training, sampling, seed, folder)
            say(f"{training}, {sampling}, seed {seed}: {[round(reward, 2) for reward in rewards]}")
            means[training, sampling].append(fmean(rewards[1:]))
            courses.append((training, sampling, seed, rewards))
    rows = []
    for cell, values in means.items():
        differences = [value - full for value, full in zip(values, means[CELLS[0]], strict=True)]
        spread = stdev(differences) if len(differences) > 1 else float("nan")
        half_width = float(t.ppf(0.975, len(differences) - 1)) * spread / sqrt(len(differences))
        rows.append((*cell, fmean(values), fmean(differences), half_width))
    print_table(("training", "sampling", "reward from the second rollout on", "less float32's", "+- (95 %)"), rows)
    print_result(part="learning", steps=options.steps, lr=options.lr[0], rows=rows, courses=courses)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--part", choices=("rounding", "gradients", "learning"), required=True)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--lr", type=float, nargs="+", default=[1e-5, 1e-6], help="learning takes the first")
    parser.add_argument("--run", help="gradients: the folder of a recorded run")
    parser.add_argument("--iteration", type=int, default=2, help="gradients: of that run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[*range(8)], help="learning")
    parser.add_argument("--steps", type=int, default=9, help="learning: rollouts")
    parser.add_argument("--keep", help="learning: a folder for the runs")
    options = parser.parse_args()
    {"rounding": measure_rounding, "gradients": measure_gradients, "learning": measure_learning}[options.part](options)


if __name__ == "__main__":
    main()
