"""Attention of groups that share their prompt, one layer, forward and backward: three implementations on the same
tokens.

`spans` two flash-attention calls merged by their log-sum-exps; `padded` shared prompts in padded blocks with a mask;
`dense` one completion per row behind its own copy of the prompt, padded (what other trainers do). On a GPU in bf16.

`error` is the largest difference of the spans' output and gradients from plain attention in float64, a few queries at a
time, relative to the largest value of each. `scores_ratio` is the scores in a layout's blocks over those that are
needed, a causal block as its triangle. `padded` and `dense` take their completions in pieces, small enough for a kernel
that keeps the scores. Memory: on a GPU the peak above the inputs, on a CPU what is kept for the backward pass; both of
the largest piece.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any

import torch
from common import alternate, draw_lengths, make_parser, print_result, print_table, say
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from lit_rlvr.policy.attention import Padded, lay_out_padded, shared_prefix_attention
from lit_rlvr.policy.spans import Spans, available, lay_out_spans

HEADS, KEY_HEADS = 12, 2
PIECE = 1 << 27
"""Scores of a piece in one head, with padding: five fp32 tensors of them are 30 GiB in 12 heads."""
SLICE = 1024
"""Number of queries of one float64 attention call: a tensor of scores has 0.8 GiB with 8,192 keys."""
Completions = list[tuple[int, range]]
"""The prompt of each completion, and its position."""


def parse() -> Any:
    parser = make_parser(__doc__)
    parser.add_argument("--lengths", choices=["equal", "lognormal"], default="lognormal", help="of the completions")
    parser.add_argument("--groups", type=int, default=None, help="prompts (4 on a CPU, 16 on a GPU)")
    parser.add_argument("--group-size", type=int, default=None, help="completions per prompt (8 on a CPU, 16 on a GPU)")
    parser.add_argument("--prompt", type=int, default=128, help="tokens of a prompt")
    parser.add_argument("--mean", type=int, default=None, help="mean completion length (128 on a CPU, 512 on a GPU)")
    parser.add_argument("--longest", type=int, default=None, help="longest completion (log-normal; 8 times the mean)")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds; medians are reported")
    parser.add_argument("--head-size", type=int, default=None, help="numbers of a query (64 on a CPU, 128 on a GPU)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    gpu = options.device == "cuda"
    for name, (small, large) in {
        "groups": (4, 16),
        "group_size": (8, 16),
        "mean": (128, 512),
        "head_size": (64, 128),
    }.items():
        if getattr(options, name) is None:
            setattr(options, name, large if gpu else small)
    return options


def lay(options: Any) -> tuple[list[range], Completions, int]:
    """Return the positions of the prompts and completions in a row, and its length."""
    count = options.groups * options.group_size
    lengths = draw_lengths(options.lengths, count, options.mean, options.longest)
    end = options.groups * options.prompt
    prompts = [range(start, start + options.prompt) for start in range(0, end, options.prompt)]
    completions = []
    for n, length in enumerate(lengths):
        completions.append((n // options.group_size, range(end, end + length)))
        end += length
    return prompts, completions, end


def cut(prompts: list[range], completions: Completions) -> Iterator[Completions]:
    """Yield consecutive completions whose padded scores are at most PIECE, or a single completion."""
    piece: Completions = []
    for p, span in completions:
        widest = max(len(prompts[o]) + len(s) for o, s in [*piece, (p, span)])
        if piece and (len(piece) + 1) * widest**2 > PIECE:
            yield piece
            piece = []
        piece.append((p, span))
    yield piece


def padded(prompts: list[range], piece: Completions) -> tuple[Tensor, Padded]:
    """Return the positions (N,) of a piece's tokens with their prompts, and their layout."""
    owners = sorted({p for p, _ in piece})
    position_ids = [t for p in owners for span in (prompts[p], *(s for o, s in piece if o == p)) for t in span]
    new = {t: n for n, t in enumerate(position_ids)}

    def moved(span: range) -> range:
        return range(new[span.start], new[span.start] + len(span))

    inside = [(owners.index(p), moved(span)) for p, span in piece]
    return torch.tensor(position_ids), lay_out_padded([moved(prompts[p]) for p in owners], inside)


def dense(prompts: list[range], piece: Completions) -> tuple[Tensor, Tensor]:
    """Return the positions (C, L) of a piece's rows, padded on the right, and their mask (C, 1, L, L)."""
    rows = [[*prompts[p], *span] for p, span in piece]
    width = max(map(len, rows))
    length = torch.tensor([len(row) for row in rows])
    step = torch.arange(width)
    mask = (step[:, None] >= step) & (step < length[:, None, None])
    return torch.tensor([row + [0] * (width - len(row)) for row in rows]), mask[:, None]


def triangle(n: int) -> int:
    return n * (n + 1) // 2


def scores(layout: Any) -> int:
    """Return the number of scores of one head in the blocks that attention computes."""
    if isinstance(layout, Spans):
        own = sum(triangle(n) for n in layout.own.queries)
        return own + sum(n * m for n, m in zip(layout.shared.queries, layout.shared.keys, strict=True))
    if isinstance(layout, Padded):
        (count, longest), (rows, widest) = layout.prompts.shape, layout.completions.shape
        return count * triangle(longest) + rows * widest * (longest + widest)
    return layout.numel()  # a mask


def attend(position_ids: Tensor, layout: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Run a piece's attention in any implementation; q (1, H, T, D), k and v (1, K, T, D) hold the whole row."""
    scale = q.shape[-1] ** -0.5
    if isinstance(layout, Tensor):  # a mask
        q, k, v = (x[0, :, position_ids].transpose(0, 1) for x in (q, k, v))  # (C, heads, L, D)
        k, v = (x.repeat_interleave(HEADS // KEY_HEADS, 1) for x in (k, v))  # as transformers does with a mask
        return scaled_dot_product_attention(q, k, v, layout, scale=scale)
    if isinstance(layout, Padded):
        q, k, v = (x[:, :, position_ids] for x in (q, k, v))
    return shared_prefix_attention(nn.Module(), q, k, v, None, scale, segments=layout)[0]


def first(grad: Tensor, position_ids: list[Tensor]) -> list[Tensor]:
    """Return each piece's part of a gradient (1, T, H, D); a prompt of several pieces counts only in the first."""
    left, parts = grad.clone(), []
    for at in position_ids:
        parts.append(left[:, at])
        left[:, at] = 0
    return parts


def exact(prompts: list[range], completions: Completions, inputs: Sequence[Tensor], grad: Tensor) -> list[Tensor]:
    """Return the output (1, T, H, D) and the gradients of q, k and v in float64, SLICE queries at a time."""
    q, k, v = (x.detach()[0].double() for x in inputs)  # (heads, T, D)
    out, found = torch.zeros_like(q), [torch.zeros_like(x) for x in (q, k, v)]
    for before, span in [(range(0), span) for span in prompts] + [(prompts[p], span) for p, span in completions]:
        for start in range(0, len(span), SLICE):
            asking = torch.tensor(span[start : start + SLICE], device=q.device)
            seen = torch.tensor([*before, *span[: start + SLICE]], device=q.device)
            parts = [x[:, at].requires_grad_() for x, at in ((q, asking), (k, seen), (v, seen))]
            keys, values = (x.repeat_interleave(HEADS // KEY_HEADS, 0) for x in parts[1:])
            hidden = (seen > asking[:, None]) & (seen >= span.start)  # (queries, keys)
            weights = (parts[0] @ keys.mT * q.shape[-1] ** -0.5).masked_fill(hidden, -torch.inf).softmax(-1)
            out[:, asking] = part = weights @ values
            wanted = grad[0, asking].transpose(0, 1).double()
            for total, at, g in zip(found, (asking, seen, seen), torch.autograd.grad(part, parts, wanted), strict=True):
                total.index_add_(1, at, g)
    return [out.detach().transpose(0, 1)[None], *(x[None] for x in found)]


def main() -> None:
    options = parse()
    device = torch.device(options.device)
    dtype = torch.bfloat16 if options.device == "cuda" else torch.float32
    has_spans = available(device, dtype)
    say(f"attention by spans is {'' if has_spans else 'not '}available on {device} in {dtype}")
    prompts, completions, tokens = lay(options)
    pieces = [*cut(prompts, completions)]
    whole = (torch.arange(tokens), lay_out_spans(prompts, completions))
    laid: dict[str, list[tuple[Tensor, Any]]] = {
        "spans": [whole],
        "padded": [padded(prompts, piece) for piece in pieces],
        "dense": [dense(prompts, piece) for piece in pieces],
    }
    layouts = {name: [(at.to(device), layout.to(device)) for at, layout in parts] for name, parts in laid.items()}
    generator = torch.Generator().manual_seed(1)
    sizes = (HEADS, KEY_HEADS, KEY_HEADS)
    made = [torch.randn(1, heads, tokens, options.head_size, generator=generator).to(device, dtype) for heads in sizes]
    inputs = [x.requires_grad_() for x in made]
    grad = torch.randn(1, tokens, HEADS, options.head_size, generator=generator).to(device, dtype)
    gradients = {name: first(grad, [at for at, _ in parts]) for name, parts in layouts.items() if name != "dense"}
    memory: dict[str, float] = {}

    def run(name: str) -> list[Tensor]:
        """Return the output of the last piece, and the gradients of all."""
        kept, found = [], []
        if options.device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        for n, (position_ids, layout) in enumerate(layouts[name]):
            saved: list[int] = []
            with torch.autograd.graph.saved_tensors_hooks(lambda x, s=saved: (s.append(x.nbytes), x)[1], lambda x: x):
                out = attend(position_ids, layout, *inputs)
            weights = gradients[name][n] if name in gradients else torch.ones_like(out)
            parts = torch.autograd.grad(out, inputs, weights)
            found = [a + b for a, b in zip(found, parts, strict=True)] if found else [*parts]
            kept.append(sum(saved))
        memory[name] = max(kept) / 2**20
        if options.device == "cuda":
            torch.cuda.synchronize()
            memory[name] = (torch.cuda.max_memory_allocated() - before) / 2**20
        return [out, *found]

    seconds = {n: median(v) for n, v in alternate({n: lambda n=n: run(n) for n in layouts}, options.rounds).items()}
    wanted = exact(prompts, completions, inputs, grad)
    error = max(
        float((a.detach().double() - b).abs().max() / b.abs().max()) for a, b in zip(run("spans"), wanted, strict=True)
    )
    needed = sum(map(triangle, map(len, prompts)))
    needed += sum(len(prompts[p]) * len(span) + triangle(len(span)) for p, span in completions)
    ratio = {name: sum(scores(layout) for _, layout in parts) / needed for name, parts in layouts.items()}
    rows = [(n, seconds[n] * 1e3, seconds[n] / seconds["spans"], memory[n], ratio[n], len(layouts[n])) for n in layouts]
    print_table(("layout", "ms", "x spans", "MiB", "scores / needed", "pieces"), rows)
    print_result(
        error=error,
        scores_ratio=round(ratio["spans"], 4),
        lengths=options.lengths,
        device=options.device,
        head_size=options.head_size,
        spans_available=has_spans,
        tokens=tokens,
        longest=max(len(span) for _, span in completions),
        ms={n: round(v * 1e3, 2) for n, v in seconds.items()},
        mib={n: round(v, 1) for n, v in memory.items()},
        ratios={n: round(v, 2) for n, v in ratio.items()},
        pieces={n: len(parts) for n, parts in layouts.items()},
    )


if __name__ == "__main__":
    main()
