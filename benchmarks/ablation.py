"""The gain of each technique of a training step: removes one at a time, on a CPU.

One made-up rollout of the sums task on SmolLM2-135M-Instruct: 8 groups of 8 completions of 12 tokens after a
31-token prompt, 4 of the groups dead (all wrong, so their advantages are zero). Every variant trains in a process of
its own, and the variants take turns; factor = its median seconds of an optimizer step / those with everything on.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from common import PRECISIONS, make_parser, print_result, print_table, run_isolated, say

TECHNIQUES = (
    "shared prefix",
    "skipping dead groups",
    "kept logits",
    "vocabulary in chunks",
    "kept freed memory",
)


def parse() -> Any:
    parser = make_parser(__doc__)
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=["bf16", "fp32"], help="one table each")
    parser.add_argument("--techniques", nargs="+", choices=TECHNIQUES, default=TECHNIQUES, help="what to remove")
    parser.add_argument("--model", default="smollm2", help="smollm2, a model folder, or a hub id")
    parser.add_argument("--groups", type=int, default=8, help="prompts")
    parser.add_argument("--dead", type=int, default=4, help="groups without an advantage")
    parser.add_argument("--group-size", type=int, default=8, help="completions per prompt")
    parser.add_argument("--prompt-tokens", type=int, default=31)
    parser.add_argument("--completion-tokens", type=int, default=12)
    parser.add_argument("--steps", type=int, default=3, help="measured steps per process, after a first one")
    parser.add_argument("--rounds", type=int, default=2, help="processes per variant")
    return parser.parse_args()


def variants(precisions: Sequence[str], techniques: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return name -> precision and the technique to leave out, if any."""
    chosen = {}
    for precision in precisions:
        chosen[f"{precision}, everything on"] = {"precision": precision}
        for technique in techniques:
            chosen[f"{precision}, without {technique}"] = {"precision": precision, "without": technique}
    return chosen


def main() -> None:
    options = parse()
    rollout = {
        name: getattr(options, name) for name in ("groups", "dead", "group_size", "prompt_tokens", "completion_tokens")
    }
    chosen = variants(options.precisions, options.techniques)
    seconds: dict[str, list[float]] = {name: [] for name in chosen}
    memory = dict.fromkeys(chosen, 0.0)
    for _ in range(options.rounds):
        for name, variant in chosen.items():
            found = run_isolated("training.py", model=options.model, rollout=rollout, steps=options.steps, **variant)
            seconds[name] += found["seconds"]
            memory[name] = max(memory[name], found["peak_memory_mb"])
            say(f"{name}: {median(found['seconds']):.2f} s")
    rows, results = [], {}
    for name, variant in chosen.items():
        step, full = median(seconds[name]), median(seconds[f"{variant['precision']}, everything on"])
        rows.append((name, step, step / full, memory[name]))
        results[name] = {"seconds": round(step, 4), "factor": round(step / full, 3)}
    if len(options.precisions) == len(PRECISIONS):
        full = [results[f"{precision}, everything on"]["seconds"] for precision in PRECISIONS]
        rows.append(("fp32 in place of bf16", full[0], full[0] / full[1], memory["fp32, everything on"]))
        results["fp32 in place of bf16"] = {"seconds": full[0], "factor": round(full[0] / full[1], 3)}
    print_table(("variant", "seconds", "factor", "peak MiB"), rows)
    print_result(variants=results, rollout=rollout)


if __name__ == "__main__":
    main()
