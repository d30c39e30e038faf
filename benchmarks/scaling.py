"""The growth of time and memory of a training step with its sizes, on a CPU.

Each point is a fresh process that trains a random Llama (6 layers, hidden size 256) by GRPO on a made-up rollout:
median seconds of a step, and the peak of resident memory above what the process held before training. One size
grows, the others stay: completion tokens, groups, completions per group (G), and the vocabulary. Memory is bounded by
tokens_per_microbatch (its default, 4096). Prints the fitted exponents (cost ~ size ** exponent; 1 = linear) and draws
the curves.
"""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

from common import growth_exponent, make_parser, print_result, print_table, run_isolated, say
from plots import Panel, draw

MODEL = {
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 8192,
}
BASE = {"groups": 4, "group_size": 8, "prompt_tokens": 64, "completion_tokens": 64}
SWEEPS = {
    "completion_tokens": [32, 64, 128, 256, 512],
    "groups": [1, 2, 4, 8, 16],
    "group_size": [2, 4, 8, 16, 32],
    "vocab_size": [4096, 8192, 16384, 32768, 65536],
}


def parse() -> Any:
    parser = make_parser(__doc__, precision=True)
    parser.add_argument("--steps", type=int, default=3, help="measured steps of each point, after a first one")
    parser.add_argument("--points", type=int, default=5, help="sizes of each sweep, from the smallest")
    parser.add_argument("--sweeps", nargs="+", choices=SWEEPS, default=list(SWEEPS), help="what grows")
    parser.add_argument("--out", type=Path, default=Path("runs/scaling.png"), help="the picture")
    return parser.parse_args()


def measure(sweep: str, size: int, options: Any) -> tuple[float, float]:
    """Return the median seconds and MiB of memory of one point."""
    rollout = BASE | ({sweep: size} if sweep in BASE else {})
    model = MODEL | ({sweep: size} if sweep in MODEL else {})
    found = run_isolated("training.py", model=model, rollout=rollout, steps=options.steps, precision=options.precision)
    seconds, memory = median(found["seconds"]), found["peak_memory_mb"] - found["memory_before_mb"]
    say(f"{sweep} {size}: {seconds:.2f} s, {memory:.0f} MiB")
    return seconds, max(memory, 1.0)


def main() -> None:
    options = parse()
    rows, exponents = [], {}
    panels = [
        Panel("time", "size / smallest size", "seconds of a step"),
        Panel("memory", "size / smallest size", "MiB above the model"),
    ]
    for sweep in options.sweeps:
        sizes = SWEEPS[sweep][: options.points]
        seconds, memory = zip(*(measure(sweep, size, options) for size in sizes), strict=True)
        rows += [(sweep, *point) for point in zip(sizes, seconds, memory, strict=True)]
        exponents[sweep] = {
            "time": round(growth_exponent(sizes, seconds), 3),
            "memory": round(growth_exponent(sizes, memory), 3),
        }
        growing = [size / sizes[0] for size in sizes]
        panels[0].curves[sweep], panels[1].curves[sweep] = (growing, seconds), (growing, memory)
    print_table(("grows", "size", "seconds", "MiB"), rows)
    print_table(("grows", "exponent of time", "of memory"), [(s, e["time"], e["memory"]) for s, e in exponents.items()])
    draw(panels, options.out)
    print(f"picture: {options.out}")
    print_result(exponents=exponents, precision=options.precision, base=BASE, model=MODEL, points=rows)


if __name__ == "__main__":
    main()
