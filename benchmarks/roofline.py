"""The share of the machine's arithmetic rate that a training step reaches, on a CPU.

utilisation = useful FLOP/s of whole optimizer steps of GRPO (advantages, forward, backward, clipping, AdamW) on
made-up rollouts / the machine's best rate of large matrix products in the same precision, measured between the steps.
Useful FLOPs: 6 x parameters x input tokens + attention under the mask; prompts count once per group, and nothing that
is computed a second time counts. `strict` counts the output embedding at the scored positions only.
"""

from __future__ import annotations

from statistics import median
from typing import Any

from common import MatmulRate, make_parser, peak_memory_mb, print_result, print_table, say
from flops import step_flops
from training import build_policy, make_rollout, train

WORKLOADS = ((4, 8, 29, 16), (8, 8, 29, 32), (8, 8, 128, 64))


def workload(text: str) -> tuple[int, ...]:
    """Return `8x8x29x32` as numbers."""
    groups, group_size, prompt, completion = map(int, text.split("x"))
    return groups, group_size, prompt, completion


def parse() -> Any:
    parser = make_parser(__doc__, precision=True, rate=True)
    parser.add_argument("--model", default="smollm2", help="smollm2, a model folder, or a hub id")
    parser.add_argument("--rounds", type=int, default=3, help="steps on each workload; medians are reported")
    parser.add_argument(
        "--workloads",
        type=workload,
        nargs="+",
        default=WORKLOADS,
        metavar="PxGxLxT",
        help="groups x completions x prompt tokens x completion tokens",
    )
    return parser.parse_args()


def main() -> None:
    options = parse()
    policy = build_policy(options.model)
    config = policy.model.config
    parameters = sum(p.numel() for p in policy.model.parameters())
    rollouts = [make_rollout(*sizes, vocabulary=config.vocab_size) for sizes in options.workloads]
    rate = MatmulRate(options.precision, sizes=options.matmul_sizes)
    say(f"1 + {options.rounds} rounds of {len(rollouts)} steps")
    # the first round warms up: AdamW's state, and memory at its largest
    seconds = train(policy, rollouts * (1 + options.rounds), options.precision, rate.measure)[len(rollouts) :]
    rows, results = [], []
    for k, (sizes, rollout) in enumerate(zip(options.workloads, rollouts, strict=True)):
        step, (flops, strict) = median(seconds[k :: len(rollouts)]), step_flops(config, parameters, rollout)
        name, share, least = "x".join(map(str, sizes)), flops / step / rate.best, strict / step / rate.best
        rows.append((name, flops / 1e12, step, flops / step / 1e9, f"{share:.1%}", f"{least:.1%}"))
        shares = {"utilisation": round(share, 4), "strict": round(least, 4)}
        results.append({"workload": name, "tflop": flops / 1e12, "seconds": step, **shares})
    columns = ("groups x G x prompt x completion", "TFLOP", "seconds", "GFLOP/s", "utilisation", "strict")
    print_table(columns, rows)
    print(f"large matrix products, {options.precision}: {rate.best / 1e9:.0f} GFLOP/s")
    print_result(
        utilisation=median(r["utilisation"] for r in results),
        precision=options.precision,
        workloads=results,
        matmul_gflops=round(rate.best / 1e9, 1),
        peak_memory_mb=round(peak_memory_mb()),
    )


if __name__ == "__main__":
    main()
