"""Attention of groups that share their prompt, one layer, forward and backward: three ways on the same tokens.

`spans` two flash-attention calls merged by their log-sum-exps; `padded` shared prompts in padded blocks with a mask;
`dense` one completion per row behind its own copy of the prompt, padded (what other trainers do). On a GPU in bf16.

`error` is the largest difference of the spans' output and gradients from `padded` computed in float64, relative to the
largest value of each. `scores_ratio` counts the scores each computes over those that are needed, a causal block as its
triangle. Memory: on a GPU the peak above the inputs, on a CPU what is kept for the backward pass.
"""

from __future__ import annotations

from statistics import median
from typing import Any

import torch
from common import alternate, draw_lengths, make_parser, print_result, print_table
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from lit_rlvr.policy.shared_prefix import lay_out_padded, shared_prefix_attention
from lit_rlvr.policy.spans import lay_out_spans

Spans = tuple[list[range], list[tuple[int, range]], int]


def parse() -> Any:
    parser = make_parser(__doc__)
    parser.add_argument("--lengths", choices=["equal", "lognormal"], default="lognormal", help="of the completions")
    parser.add_argument("--groups", type=int, default=None, help="prompts (4 on a CPU, 16 on a GPU)")
    parser.add_argument("--group-size", type=int, default=None, help="completions per prompt (8 on a CPU, 16 on a GPU)")
    parser.add_argument("--prompt", type=int, default=128, help="tokens of a prompt")
    parser.add_argument("--mean", type=int, default=None, help="mean completion length (128 on a CPU, 512 on a GPU)")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds; medians are reported")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    gpu = options.device == "cuda"
    for name, (small, large) in {"groups": (4, 16), "group_size": (8, 16), "mean": (128, 512)}.items():
        if getattr(options, name) is None:
            setattr(options, name, large if gpu else small)
    return options


def lay(options: Any) -> Spans:
    """Places of the prompts and completions in a row."""
    lengths = draw_lengths(options.lengths, options.groups * options.group_size, options.mean)
    prompts, completions, end = [], [], 0
    for p in range(options.groups):
        prompts.append(range(end, end + options.prompt))
        end += options.prompt
        for length in lengths[p * options.group_size : (p + 1) * options.group_size]:
            completions.append((p, range(end, end + length)))
            end += length
    return prompts, completions, end


def scores(prompts: list[range], completions: list[tuple[int, range]]) -> dict[str, float]:
    """Scores that each way computes, over those that are needed."""

    def triangle(n: int) -> float:
        return n * (n + 1) / 2

    longest, widest = max(map(len, prompts)), max(len(span) for _, span in completions)
    needed = sum(triangle(len(p)) for p in prompts)
    needed += sum(len(span) * len(prompts[p]) + triangle(len(span)) for p, span in completions)
    own = sum(triangle(len(p)) for p in prompts) + sum(triangle(len(span)) for _, span in completions)
    asked = sum(len(span) * len(prompts[p]) for p, span in completions)
    padded = len(prompts) * triangle(longest) + len(completions) * widest * (longest + widest)
    dense = len(completions) * (longest + widest) ** 2
    return {"spans": (own + asked) / needed, "padded": padded / needed, "dense": dense / needed}


class Ways:
    """The three ways on one row's query (1, H, T, D), key and value (1, K, T, D)."""

    def __init__(self, spans: Spans, device: torch.device) -> None:
        prompts, completions, _ = spans
        self.scale = 64**-0.5
        self.layouts = {
            "spans": lay_out_spans(prompts, completions).to(device),
            "padded": lay_out_padded(prompts, completions).to(device),
        }
        width = max(len(prompts[p]) + len(span) for p, span in completions)
        rows = [[*prompts[p], *span] for p, span in completions]
        self.rows = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=device)  # (C, L)
        length = torch.tensor([len(row) for row in rows], device=device)
        step = torch.arange(width, device=device)
        self.mask = ((step[:, None] >= step) & (step < length[:, None, None]))[:, None]  # (C, 1, L, L)

    def __call__(self, name: str, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if name in self.layouts:
            layout: Any = self.layouts[name]
            return shared_prefix_attention(nn.Module(), q, k, v, None, self.scale, segments=layout)[0]
        q, k, v = (x[0, :, self.rows].transpose(0, 1) for x in (q, k, v))  # (C, heads, L, D)
        return scaled_dot_product_attention(q, k, v, self.mask, scale=self.scale, enable_gqa=True)


def main() -> None:
    options = parse()
    device = torch.device(options.device)
    dtype = torch.bfloat16 if options.device == "cuda" else torch.float32
    prompts, completions, tokens = spans = lay(options)
    ways = Ways(spans, device)
    generator = torch.Generator().manual_seed(1)
    made = [torch.randn(1, heads, tokens, 64, generator=generator).to(device, dtype) for heads in (12, 2, 2)]
    inputs = [x.requires_grad_() for x in made]
    grad = torch.randn(1, tokens, 12, 64, generator=generator).to(device, dtype)
    memory: dict[str, float] = {}

    def run(name: str) -> list[Tensor]:
        kept = [0]
        if options.device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            kept[0] = -torch.cuda.memory_allocated()
        with torch.autograd.graph.saved_tensors_hooks(lambda x: (kept.append(x.nbytes), x)[1], lambda x: x):
            out = ways(name, *inputs)
        weights = grad if out.shape == grad.shape else torch.ones_like(out)
        found = [out, *torch.autograd.grad(out, inputs, weights)]
        if options.device == "cuda":
            torch.cuda.synchronize()
            kept = [kept[0] + torch.cuda.max_memory_allocated()]
        memory[name] = sum(kept) / 2**20
        return found

    names = ["spans", "padded", "dense"]
    seconds = {n: median(v) for n, v in alternate({n: lambda n=n: run(n) for n in names}, options.rounds).items()}
    exact = [x.detach().double().requires_grad_() for x in inputs]
    wanted_out = ways("padded", *exact)
    wanted = [wanted_out, *torch.autograd.grad(wanted_out, exact, grad.double())]
    found = run("spans")
    error = max(
        float((a.detach().double() - b.detach()).abs().max() / b.detach().abs().max())
        for a, b in zip(found, wanted, strict=True)
    )
    ratio = scores(prompts, completions)
    rows = [(n, seconds[n] * 1e3, seconds[n] / seconds["spans"], memory[n], ratio[n]) for n in names]
    print_table(("way", "ms", "x spans", "MiB", "scores / needed"), rows)
    print_result(
        error=error, scores_ratio=round(ratio["spans"], 4), lengths=options.lengths, device=options.device,
        tokens=tokens, ms={n: round(v * 1e3, 2) for n, v in seconds.items()},
        mib={n: round(v, 1) for n, v in memory.items()}, ratios={n: round(v, 2) for n, v in ratio.items()},
    )  # fmt: skip


if __name__ == "__main__":
    main()
