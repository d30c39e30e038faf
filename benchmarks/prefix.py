"""The gain of running a prompt once for its group: training time with shared_prefix True and False.

Times forward and backward of one group through Policy.logprobs, cut into the micro-batches that training would run,
as the prompt grows and as the group grows, on SmolLM2-135M-Instruct up to --longest-smollm2 prompt tokens and on a
random Llama of 30 M parameters (8 layers, vocabulary 8192) up to --longest; and on a random Qwen2.5-VL, whose image
encoder runs once per group too, as the image grows. Both take turns; ratio = median
seconds without sharing / with it. The curves go to a PNG.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import passive  # noqa: F401
import torch
from common import MatmulRate, alternate, make_parser, medians, print_result, print_table, say
from plots import Panel, draw
from training import SMALL, build_policy, build_vlm, make_rollout, with_image

from lit_rlvr.policy.policy import Policy
from lit_rlvr.training.step.microbatches import cut_rows
from lit_rlvr.types import Rollout

BUDGET = 4096  # tokens_per_microbatch, the product's default


def parse() -> Any:
    parser = make_parser(__doc__, precision=True, rate=True)
    parser.add_argument("--shortest", type=int, default=64, help="prompt tokens; doubled up to the longest")
    parser.add_argument("--longest", type=int, default=2048, help="prompt tokens on the random Llama")
    parser.add_argument("--longest-smollm2", type=int, default=512, help="prompt tokens on SmolLM2; 0 = leave it out")
    parser.add_argument("--image-tokens", type=int, nargs="*", default=[64, 256, 576, 1024], help="of the VLM's image")
    parser.add_argument("--group-size", type=int, default=8, help="completions where the prompt grows")
    parser.add_argument("--group-sizes", type=int, nargs="+", default=[2, 4, 8, 16], help="completions, growing")
    parser.add_argument("--prompt-tokens", type=int, default=256, help="of the prompt where the group grows")
    parser.add_argument("--completion-tokens", type=int, default=32, help="of every completion")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each; medians are reported")
    parser.add_argument("--out", type=Path, default=Path("runs/prefix.png"), help="the picture")
    return parser.parse_args()


def train_group(policy: Policy, rollout: Rollout, shared: bool, precision: str) -> None:
    """Run forward and backward on a rollout's groups, with or without a shared prefix."""
    policy.share_prefix(shared)
    policy.zero_grad()
    for rows in cut_rows(rollout, list(range(len(rollout.mask))), BUDGET, shared):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            logp, _ = policy.logprobs(rollout, rows)
        logp.sum().backward()


def measure(
    policy: Policy, prompt: int, group_size: int, rate: MatmulRate, options: Any, image: int = 0
) -> dict[str, float]:
    """Return the median seconds with and without a shared prefix on one group, and their ratio."""
    config: Any = policy.model.config
    vocabulary = config.get_text_config().vocab_size
    rollout = make_rollout(1, group_size, prompt, options.completion_tokens, vocabulary)
    if image:
        rollout = with_image(rollout, config, image)
    calls = {
        name: partial(train_group, policy, rollout, shared, options.precision)
        for name, shared in (("shared", True), ("single", False))
    }
    rate.measure(1)
    found = medians(alternate(calls, options.rounds))
    said = ", ".join(f"{name} {value:.2f} s" for name, value in found.items())
    say(f"image {image}, prompt {prompt}, G {group_size}: {said}")
    return found | {"ratio": found["single"] / found["shared"]}


def main() -> None:
    options = parse()
    rate = MatmulRate(options.precision, sizes=options.matmul_sizes)
    rows, by_prompt, by_group = [], {}, {}
    for name, model, longest in (
        ("SmolLM2", "smollm2", options.longest_smollm2),
        ("random Llama, 30 M", SMALL, options.longest),
    ):
        if not longest:
            continue
        policy = build_policy(model)
        lengths = [n for n in (options.shortest << k for k in range(20)) if n <= longest]
        points = [(n, options.group_size) for n in lengths]
        points += [(min(options.prompt_tokens, longest), size) for size in options.group_sizes]
        found = [measure(policy, *point, rate, options) for point in points]
        rows += [(name, *p, f["single"], f["shared"], f["ratio"]) for p, f in zip(points, found, strict=True)]
        ratios = [f["ratio"] for f in found]
        by_prompt[name] = (lengths, ratios[: len(lengths)])
        by_group[name] = (options.group_sizes, ratios[len(lengths) :])
    if options.image_tokens:
        vlm = build_vlm()
        images = [measure(vlm, 32, options.group_size, rate, options, image) for image in options.image_tokens]
        rows += [
            ("random Qwen2.5-VL, 30 M", f"{n} + 34", options.group_size, f["single"], f["shared"], f["ratio"])
            for n, f in zip(options.image_tokens, images, strict=True)
        ]
        by_image = {"random Qwen2.5-VL, 30 M": (options.image_tokens, [f["ratio"] for f in images])}
    print_table(("model", "prompt", "G", "seconds single", "seconds shared", "ratio"), rows)
    y = "time without sharing / with it"
    panels = [Panel("an image in the prompt", "image tokens", y, by_image)] if options.image_tokens else []
    draw(
        [
            *panels,
            Panel(f"G = {options.group_size}", "prompt tokens", y, by_prompt),
            Panel(f"prompt of {options.prompt_tokens} tokens", "completions per prompt, G", y, by_group),
        ],
        options.out,
    )
    print(f"picture: {options.out}")
    print_result(
        largest_ratio=round(max(row[-1] for row in rows), 3),
        precision=options.precision,
        points=rows,
        completion_tokens=options.completion_tokens,
        matmul_gflops=round(rate.best / 1e9, 1),
    )


if __name__ == "__main__":
    main()
